"""Checkpoints are exported to files that are proven."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmrazor_brecq.engine.deploy import Request, check_output, export
from mmrazor_brecq.engine.deploy_images import resizing
from mmrazor_brecq.engine.launch import build_model, ptq
from mmrazor_brecq.engine.launch import test as evaluate

from .conftest import FLOAT, quick_config

ort = pytest.importorskip('onnxruntime')


def test_a_float_checkpoint_is_refused(quick, tmp_path):
    request = Request(output=str(tmp_path / 'm.onnx'))
    with pytest.raises(ValueError, match='float checkpoint.*tools/ptq.py'):
        export(quick(), FLOAT, request)


def test_the_options_are_checked_before_any_work(quick, tmp_path):
    existing = tmp_path / 'm.onnx'
    existing.touch()
    with pytest.raises(FileExistsError, match='--force'):
        export(quick(), 'none.pth', Request(output=str(existing)))
    check_output(str(existing), force=True)
    with pytest.raises(ValueError, match=r'expected a name with .onnx'):
        export(quick(), 'none.pth', Request(output='model.trt'))
    with pytest.raises(ValueError, match="expected 'dynamic' or a whole"):
        export(quick(), 'none.pth', Request(batch='many'))
    with pytest.raises(ValueError, match="'npu' is unknown"):
        export(quick(), 'none.pth', Request(target='npu'))
    with pytest.raises(FileNotFoundError, match='No checkpoint at'):
        export(quick(), 'none.pth', Request())


def test_resizing_is_read_from_the_test_pipeline(quick):
    cfg = quick()
    assert resizing(cfg) == dict(size=[32, 32])
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=256, edge='short'),
        dict(type='mmcls.CenterCrop', crop_size=224),
    ]
    assert resizing(cfg) == dict(edge=256, crop=224)
    cfg.test_dataloader.dataset.pipeline = [dict(type='PackClsInputs')]
    assert resizing(cfg) is None
    cfg.test_dataloader = None  # Those of the calibration images, then.
    assert resizing(cfg) == dict(size=[32, 32])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Return folder, checkpoint and metrics of a run with safetensors."""
    folder = tmp_path_factory.mktemp('run')
    name = 'quantized.safetensors'
    cfg = quick_config(folder, test_cfg__checkpoint=name)
    metrics = ptq(cfg, FLOAT)
    return folder, folder / name, metrics


@pytest.mark.slow
def test_a_checkpoint_of_safetensors_has_the_same_metrics(run):
    folder, checkpoint, metrics = run
    assert evaluate(quick_config(folder), str(checkpoint)) == metrics


@pytest.mark.slow
def test_a_checkpoint_of_another_config_is_refused(run, tmp_path):
    folder, checkpoint, _ = run
    cfg = quick_config(folder, model__quantization__weight__bits=3)
    with pytest.raises(ValueError, match='use the config of its run'):
        export(cfg, str(checkpoint), Request(output=str(tmp_path / 'm.onnx')))


@pytest.mark.slow
def test_a_file_with_preprocessing_takes_raw_images(run, tmp_path):
    """Its output is that of the file without preprocessing."""
    folder, checkpoint, _ = run
    path = str(tmp_path / 'm.onnx')
    request = Request(
        output=path, preprocess=True, images=64, least_agreement=0.5
    )
    report = export(quick_config(folder), str(checkpoint), request)
    assert report['matches'][0]['accuracy'] is not None
    assert not report['float_convolutions']
    assert report['operators']['QLinearConv'] == 20

    session = ort.InferenceSession(path)
    given = session.get_inputs()[0]
    assert given.type == 'tensor(uint8)' and given.shape[1:] == [32, 32, 3]
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta['classes'])[9] == 'Ankle boot'
    assert json.loads(meta['normalisation'])['mean'] == [73.0] * 3

    model = build_model(quick_config(folder))
    plain = str(tmp_path / 'plain.onnx')
    export(
        quick_config(folder),
        str(checkpoint),
        Request(output=plain, verify=False),
    )
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), 'u1')
    bgr = torch.from_numpy(image[..., ::-1].copy()).permute(0, 3, 1, 2)
    x = model.data_preprocessor(dict(inputs=list(bgr)), False)['inputs']
    found = session.run(None, {'image': image})[0]
    expected = ort.InferenceSession(plain).run(None, {'image': x.numpy()})[0]
    assert np.allclose(found, expected, atol=0.05 * np.abs(expected).max())
