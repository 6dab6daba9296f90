"""Configs of all kinds are found and read without running YAML."""

from __future__ import annotations

import os

import pytest
from mmengine.config import Config

from mmrazor_brecq.config.load import KNOWN_KEYS, check_data, check_writable
from mmrazor_brecq.config.read import find_config, read_file
from mmrazor_brecq.config.safe import MAX_BYTES, read_yaml


def test_a_config_of_a_package_is_found():
    name = 'mmrazor_brecq::brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'
    assert find_config(name).endswith(name.split('::')[1])
    assert find_config(name[:-3]) == find_config(name)
    assert read_file(name).model.type == 'mmrazor_brecq.BRECQ'
    assert read_file('mmcls::resnet/resnet18_8xb32_in1k.py').model


@pytest.mark.parametrize(
    'name, words',
    [
        ('none.py', "No config at 'none.py'"),
        ('basis.py', "did you mean 'base.py'"),
        ('mmnone::a/b.py', "'mmnone' is not installed"),
        ('json::a/b.py', "'json' has no configs"),
        ('os.path::a/b.py', 'is not installed'),
        (
            'mmrazor_brecq::_base_/bits/w4a5.py',
            "did you mean 'mmrazor_brecq::_base_/bits/",
        ),
    ],
)
def test_the_error_for_a_missing_config_names_it(
    tmp_path, monkeypatch, name, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'base.py').write_text('a = 1\n')
    with pytest.raises(FileNotFoundError, match=words):
        read_file(name)
    (tmp_path / 'heir.py').write_text(f'_base_ = {name!r}\n')
    with pytest.raises(FileNotFoundError, match=f'{words}|_base_.*heir.py'):
        read_file('heir.py')


def test_bases_of_all_kinds_are_inherited(tmp_path):
    (tmp_path / 'a.json').write_text('{"a": {"x": 1}}')
    (tmp_path / 'b.yml').write_text('_base_: a.json\nb: [1, 2]\n')
    (tmp_path / 'c.py').write_text("_base_ = 'b.yml'\nc = _base_.a.x + 1\n")
    (tmp_path / 'd.yaml').write_text(
        "_base_: ['./c.py']\nd: {{ _base_.a }}\ne: '{{ fileBasename }}'\n"
    )
    cfg = read_file(str(tmp_path / 'd.yaml')).to_dict()
    assert cfg == dict(a=dict(x=1), b=[1, 2], c=2, d=dict(x=1), e='d.yaml')


def test_a_dumped_config_can_be_read(tmp_path):
    path = tmp_path / 'a.yml'
    path.write_text('a: 1\n')
    cfg = read_file(str(path))
    cfg.merge_from_dict(dict(size=(0.1, 0.5), names=['b', None], on=True))
    cfg.dump(path)
    assert read_file(str(path)).to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    'change, words',
    [
        ('x = y\n', "line 1: NameError: name 'y'"),
        ('x = (\n', 'syntax error|SyntaxError'),
        ("x = open('nowhere')\n", 'line 1: FileNotFoundError'),
        ("raise RuntimeError('odd')\n", 'line 1: RuntimeError: odd'),
        ('x = "\x00"\n', 'cannot be read'),
        ('_base_ = 3\n', '_base_.*3.*names of configs'),
        ("_base_ = 'self.py'\n", 'inherit itself'),
        ("_base_ = './'\n", 'No config|is no config|no regular file'),
    ],
)
def test_the_error_for_a_broken_config_names_the_line(tmp_path, change, words):
    (tmp_path / 'self.py').write_text(change)
    (tmp_path / 'heir.py').write_text("_base_ = 'self.py'\n")
    for name in ('self.py', 'heir.py'):
        with pytest.raises((ValueError, OSError, ImportError), match=words):
            read_file(str(tmp_path / name))


def test_the_error_names_a_wrong_encoding(tmp_path):
    (tmp_path / 'a.py').write_bytes(b'x = "\xff\xfe"\n')
    with pytest.raises(ValueError, match='cannot be read.*Unicode'):
        read_file(str(tmp_path / 'a.py'))


def test_a_work_dir_is_checked_without_creating_it(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(PermissionError, match='--work-dir'):
        check_writable(str(tmp_path / 'file' / 'run'))
    check_writable(str(tmp_path / 'a' / 'b'))
    assert os.listdir(tmp_path) == ['file']


def test_options_may_set_all_keys_of_the_runner():
    from inspect import signature

    from mmengine.runner import Runner

    taken = set(signature(Runner.__init__).parameters) - {'self'}
    assert taken <= set(KNOWN_KEYS)


DATA = dict(
    type='ConcatDataset',
    datasets=[
        dict(type='mmcls.CustomDataset', data_root='data', data_prefix='val/'),
        dict(type='RepeatDataset', dataset=dict(type='IDXDataset')),
        dict(type='CIFAR10', data_root='fetched'),
        dict(type='CustomDataset', data_root='s3://far'),
    ],
)


def test_missing_files_of_data_sets_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config(dict(test_dataloader=dict(dataset=DATA), val_dataloader=None))
    keys = ['test_dataloader', 'val_dataloader', 'test_cfg.dataloader']
    key = 'test_dataloader.dataset.datasets.0'
    with pytest.raises(FileNotFoundError, match=f"{key}.data_root='data'"):
        check_data(cfg, keys)
    (tmp_path / 'data').mkdir()
    with pytest.raises(FileNotFoundError, match=f"{key}.data_prefix='val/"):
        check_data(cfg, keys)
    (tmp_path / 'data/val').mkdir()
    check_data(cfg, keys)


def test_yaml_is_read_as_plain_values():
    text = (
        'a: &a {x: 1, y: [1.5, null, true]}\n'
        'b: *a\nc: {<<: *a, x: 2}\nd: !!python/tuple [1, 2]\n'
    )
    y = [1.5, None, True]
    assert read_yaml(text) == dict(
        a=dict(x=1, y=y), b=dict(x=1, y=y), c=dict(x=2, y=y), d=(1, 2)
    )


def test_a_large_file_is_refused_without_reading_it(tmp_path):
    path = tmp_path / 'a.yml'
    path.write_text('a: 1\n' + '#' * MAX_BYTES)
    with pytest.raises(ValueError, match='bytes'):
        read_file(str(path))
