"""Data sets that cannot be read are named, with what to do without them."""

from __future__ import annotations

import os
import urllib.request
from urllib.error import HTTPError, URLError

import pytest
from PIL import Image

from mmrazor_brecq.engine.launch import ptq

from .conftest import FLOAT

pytest.importorskip('mmcls')
PIPELINE = [
    dict(type='LoadImageFromFile', color_type='grayscale'),
    dict(type='Resize', scale=32),
    dict(type='PackClsInputs'),
]
FAR = 'https://example.com'


@pytest.fixture
def pictures(tmp_path):
    """A folder of images without subfolders and without labels."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for i in range(6):
        Image.new('L', (40, 40), 40 * i).save(folder / f'{i}.png')
    return folder


@pytest.mark.parametrize('root', ['', 'mine'])
@pytest.mark.parametrize(
    'error',
    [
        URLError('Name or service not known'),
        HTTPError(FAR, 404, 'Not Found', {}, None),
        TimeoutError('timed out'),
        ConnectionResetError('Connection reset by peer'),
    ],
)
def test_a_failed_download_names_the_keys_and_leaves_no_folder(
    quick, tmp_path, monkeypatch, error, root
):
    def offline(*args, **kwargs):
        raise error

    monkeypatch.setattr(urllib.request, 'urlopen', offline)
    monkeypatch.chdir(tmp_path)
    cfg = quick()
    cifar = dict(type='CIFAR10', data_prefix='data/cifar10', pipeline=[])
    if root:
        cifar.update(data_root=root)
    cfg.test_dataloader.dataset = dict(cifar, test_mode=True)
    cfg.test_cfg.calibration.dataloader.dataset = dict(cifar, test_mode=False)
    with pytest.raises(ConnectionError) as info:
        ptq(cfg, FLOAT)
    words = str(info.value)
    for loader in ('test_dataloader', 'test_cfg.calibration.dataloader'):
        assert f"{loader}.dataset.data_prefix='data/cifar10'" in words
        assert not root or f"{loader}.dataset.data_root='mine'" in words
    assert '--cfg-options' in words and '\n' not in words
    assert os.listdir(tmp_path) == []


def test_a_folder_of_the_user_stays_though_it_is_empty(
    quick, tmp_path, monkeypatch
):
    def offline(*args, **kwargs):
        raise URLError('no route')

    monkeypatch.setattr(urllib.request, 'urlopen', offline)
    (tmp_path / 'mine').mkdir()
    cfg = quick()
    cfg.test_dataloader.dataset = dict(
        type='CIFAR10',
        data_prefix=str(tmp_path / 'mine'),
        test_mode=True,
        pipeline=[],
    )
    with pytest.raises(ConnectionError, match='no route'):
        ptq(cfg, FLOAT)
    assert os.listdir(tmp_path) == ['mine']


@pytest.mark.parametrize('labels', [None, '', '0.png\n1.png\n'])
def test_test_images_without_annotations_name_no_eval(
    quick, tmp_path, pictures, labels
):
    """No subfolders for classes; a list that is empty or without labels."""
    cfg = quick()
    cfg.test_dataloader.dataset = dict(
        type='CustomDataset', data_prefix=str(pictures), pipeline=PIPELINE
    )
    if labels is not None:
        (tmp_path / 'list.txt').write_text(labels)
        cfg.test_dataloader.dataset.ann_file = str(tmp_path / 'list.txt')
    with pytest.raises(ValueError) as info:
        ptq(cfg, FLOAT)
    words = str(info.value)
    assert 'test_dataloader.dataset' in words and '--no-eval' in words
    assert '\n' not in words and not (tmp_path / 'run').exists()


def test_a_metric_that_needs_labels_says_so(quick, pictures):
    def unlabeled():
        cfg = quick()
        cfg.test_dataloader.dataset = dict(
            type='mmrazor_brecq.UnlabeledImages',
            data_root=str(pictures),
            pipeline=PIPELINE,
        )
        return cfg

    words = 'test_dataloader.dataset have no labels.*gt_label.*--no-eval'
    with pytest.raises(ValueError, match=words):
        ptq(unlabeled(), FLOAT)


def test_another_error_of_a_metric_is_raised_as_it_is(quick, monkeypatch):
    from mmcls.evaluation import Accuracy

    def broken(*args, **kwargs):
        raise KeyError('mine')

    monkeypatch.setattr(Accuracy, 'process', broken)
    with pytest.raises(KeyError, match='mine'):
        ptq(quick(), FLOAT)
