"""demo/classify.py: a file of tools/export.py and an image are enough."""

from __future__ import annotations

import ast
import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
Image = pytest.importorskip('PIL.Image')

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'demo/classify.py'


@pytest.fixture
def picture(tmp_path):
    """Red on the left, blue on the right, 20 pixels wide and 10 high."""
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10, 0] = 200
    pixels[:, 10:, 2] = 100
    path = str(tmp_path / 'picture.png')
    Image.fromarray(pixels).save(path)
    return path


def model(path, dtype, channels='RGB', **about):
    """A network whose logits are the means of the channels it is given."""
    nhwc = dtype == 'uint8'
    kind = onnx.TensorProto.UINT8 if nhwc else onnx.TensorProto.FLOAT
    axes = onnx.numpy_helper.from_array(
        np.array([1, 2] if nhwc else [2, 3]), 'axes'
    )
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node('Cast', ['image'], ['x'], to=1),
            onnx.helper.make_node(
                'ReduceMean', ['x', 'axes'], ['logits'], keepdims=0
            ),
        ],
        'means',
        [onnx.helper.make_tensor_value_info('image', kind, [None] * 4)],
        [onnx.helper.make_tensor_value_info('logits', 1, [None, 3])],
        [axes],
    )
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid('', 21)], ir_version=10
    )
    normalisation = dict(mean=[0, 0, 0], std=[100] * 3, channels=channels)
    about = dict(
        input=dict(dtype=dtype, size=[10, 10]),
        normalisation=normalisation,
        classes=['red', 'green', 'blue'],
        **about,
    )
    onnx.helper.set_model_props(
        proto, {k: json.dumps(v) for k, v in about.items()}
    )
    onnx.save(proto, path)
    return str(path)


def classify(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['classify.py', *map(str, args)])
    with pytest.raises(SystemExit) as info:
        runpy.run_path(str(SCRIPT), run_name='__main__')
    return info.value.code


@pytest.mark.parametrize(
    'dtype, channels, first',
    [
        ('uint8', 'RGB', 'red'),
        ('float32', 'RGB', 'red'),
        ('float32', 'BGR', 'blue'),
    ],
)  # a network that takes BGR has its blue where this one has red
def test_classes_come_in_order(
    monkeypatch, capsys, tmp_path, picture, dtype, channels, first
):
    path = model(tmp_path / 'm.onnx', dtype, channels)
    assert classify(monkeypatch, picture, '--model', path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines][0] == first
    assert len(lines) == 3
    shares = [float(line.split('%')[0]) for line in lines]
    assert sum(shares) == pytest.approx(100, abs=0.1)


def test_the_middle_is_cut_out(monkeypatch, capsys, tmp_path, picture):
    resize = dict(edge=10, crop=10)
    path = model(tmp_path / 'm.onnx', 'uint8', resize=resize)
    classify(monkeypatch, picture, '--model', path)
    assert capsys.readouterr().out.splitlines()[0].split()[-1] == 'red'


def test_an_image_that_is_none(monkeypatch, tmp_path):
    path = model(tmp_path / 'm.onnx', 'uint8')
    text = tmp_path / 'notes.txt'
    text.write_text('no image')
    assert 'is no image' in classify(monkeypatch, text, '--model', path)
    missing = tmp_path / 'missing.png'
    assert 'No image at' in classify(monkeypatch, missing, '--model', path)


def test_pipes_are_never_opened(monkeypatch, tmp_path, picture):
    path = model(tmp_path / 'm.onnx', 'uint8')
    pipe = tmp_path / 'pipe.png'
    os.mkfifo(pipe)
    assert 'regular file' in classify(monkeypatch, pipe, '--model', path)
    assert 'regular file' in classify(monkeypatch, picture, '--model', pipe)


@pytest.mark.parametrize('orientation, corner', [(1, 0), (3, 2), (6, 1)])
def test_an_image_is_turned_as_the_camera_says(tmp_path, orientation, corner):
    """Corners from the upper left, clockwise."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / 'a.png')
    Image.fromarray(pixels).save(path, exif=exif)
    found = runpy.run_path(str(SCRIPT))['read_image'](path, [8, 8], {})
    corners = [found[y, x, 0] for y, x in ((0, 0), (0, 7), (7, 7), (7, 0))]
    assert corners.index(200) == corner


@pytest.mark.parametrize('kind', ['png', 'tif'])
def test_sixteen_bits_are_scaled(tmp_path, kind):
    gray = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = str(tmp_path / f'a.{kind}')
    Image.fromarray(gray).save(path)
    found = runpy.run_path(str(SCRIPT))['read_image'](path, [16, 16], {})
    assert np.abs(found[..., 0].astype(int) - gray // 256).max() <= 1


def test_a_model_that_is_none(monkeypatch, tmp_path, picture):
    path = tmp_path / 'm.onnx'
    path.write_text('no model')
    message = classify(monkeypatch, picture, '--model', path)
    assert 'is no model' in message


def test_it_needs_three_packages_alone():
    names = {
        name.split('.')[0]
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
        )
    }
    assert names - set(sys.stdlib_module_names) == {
        'numpy',
        'onnxruntime',
        'PIL',
    }


@pytest.mark.parametrize(
    'about, message',
    [
        (dict(input=dict(dtype='uint8', size=[100000, 100000])), 'input.size'),
        (dict(input=dict(dtype='uint8', size=[16384, 16384])), 'input.size'),
        (dict(input=dict(dtype='uint8', size=[-1, 10])), 'input.size'),
        (dict(input=dict(dtype='uint8', size='10')), 'input.size'),
        (dict(input=dict(dtype='uint8', size=[10])), 'input.size'),
        (dict(input=dict(dtype='uint8', size=[1e9, 10])), 'input.size'),
        (dict(input=dict(dtype='int64', size=[10, 10])), 'input.dtype'),
        (dict(input=7), 'input.size'),
        (dict(resize=dict(edge=100000, crop=10)), 'resize'),
        (dict(resize=[1]), 'resize'),
        (dict(classes='abc'), 'classes'),
        (dict(normalisation=dict(mean=[0], std=[1])), 'normalisation'),
        (
            dict(
                normalisation=dict(mean=[0] * 3, std=[1, 0, 1], channels='RGB')
            ),
            'normalisation',
        ),
    ],
)
def test_metadata_is_checked_before_memory_is_taken(
    monkeypatch, tmp_path, picture, about, message
):
    path = model(tmp_path / 'm.onnx', 'uint8')
    proto = onnx.load(path)
    for prop in list(proto.metadata_props):
        if prop.key in about:
            proto.metadata_props.remove(prop)
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(proto, path)
    said = classify(monkeypatch, picture, '--model', path)
    assert f'{message}=' in said and 'metadata' in said


def test_a_narrow_image_is_not_blown_up(monkeypatch, tmp_path):
    path = model(tmp_path / 'm.onnx', 'uint8', resize=dict(edge=10, crop=10))
    wide = tmp_path / 'wide.png'
    Image.new('RGB', (2_000_000, 1)).save(wide)
    said = classify(monkeypatch, wide, '--model', path)
    assert '2000000 x 1 would be 20000000 x 10' in said


def test_an_image_that_claims_too_much(monkeypatch, tmp_path):
    path = model(tmp_path / 'm.onnx', 'uint8')
    image = tmp_path / 'bomb.png'
    Image.new('1', (20000, 20000)).save(image)
    said = classify(monkeypatch, image, '--model', path)
    assert 'is too large an image' in said
