"""Exported files compute what their networks compute, for every target."""

from __future__ import annotations

import json

import numpy as np
import pytest
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.export import TARGETS, Target, build_target
from mmrazor_brecq.quantizers import ActivationQuantizer

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
from mmrazor_brecq.export.match import LayerMatch  # noqa: E402
from mmrazor_brecq.export.outputs import OutputMatch  # noqa: E402
from mmrazor_brecq.export.proof import Proof  # noqa: E402

ANY_CLASS = dict(least_agreement=0.0)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'model.onnx')


def outputs(path, images, **options):
    session = ort.InferenceSession(path, **options)
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})


def nodes(path, kind):
    return [n for n in onnx.load(path).graph.node if n.op_type == kind]


def exact(report):
    return min(layer['exact'] for layer in report['layers'])


def test_a_residual_network_runs_in_integers(quantized, images, path):
    model = quantized('residual')
    report = mmrazor_brecq.export_onnx(model, images, path, **ANY_CLASS)
    assert exact(report) > 0.99
    assert all(layer['within'] == 1 for layer in report['layers'])
    assert report['matches'][0]['mean'] < 0.02
    assert report['float_convolutions'] == {}
    assert report['operators']['QLinearConv'] == 6
    # Nothing quantizes the second sum.
    assert report['operators']['QLinearAdd'] == 1
    with open(f'{path}.json') as file:
        assert json.load(file) == report

    session = ort.InferenceSession(path)
    assert [x.name for x in session.get_inputs()] == ['image']
    assert [x.name for x in session.get_outputs()] == ['logits']
    for count in (1, 3):  # The batch is dynamic.
        found = session.run(None, {'image': images[:count].numpy()})[0]
        assert found.shape == (count, 5)
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta['weight_bits'])['blocks.0.conv1'] == 8
    assert json.loads(meta['input'])['size'] == [8, 8]
    assert set(json.loads(meta['versions'])) == {'mmrazor_brecq', 'torch'}


@pytest.mark.slow
def test_without_further_scales_it_is_the_same_to_the_last_digit(
    quantized, images, path
):
    """OpenVINO fuses residual adds by itself, so nothing is added."""
    model = quantized('residual', 4, 4)
    report = mmrazor_brecq.export_onnx(
        model, images, path, target='openvino', **ANY_CLASS
    )
    assert exact(report) == 1
    assert report['matches'][0]['largest'] < 1e-5
    scales = {
        round(float(onnx.numpy_helper.to_array(tensor)), 9)
        for tensor in onnx.load(path).graph.initializer
        if tensor.name.endswith('quantizer.scale') and not list(tensor.dims)
    }
    expected = {
        round(float(q.scale), 9)
        for q in model.modules()
        if isinstance(q, ActivationQuantizer)
    }
    assert scales <= expected


@pytest.mark.slow
def test_learned_integers_are_not_rounded_again(quantized, images, path):
    """Weights go into DequantizeLinear as integers, wherever they were
    rounded to, and nothing quantizes them.
    """
    model = quantized('residual', 4, 8)
    layer = model.architecture.blocks[0].conv1
    q = layer.stored_weight.data
    q[0, 0, 0, 0] += 1 if q[0, 0, 0, 0] < 7 else -1
    mmrazor_brecq.export_onnx(
        model, images, path, target='openvino', **ANY_CLASS
    )
    graph = onnx.load(path).graph
    tensors = {
        t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer
    }
    node = next(
        n
        for n in nodes(path, 'DequantizeLinear')
        if any(p.value == 'blocks.0.conv1' for p in n.metadata_props)
    )
    integers, scale, zero_point = (tensors[name] for name in node.input)
    assert integers.dtype == np.int8
    column = (-1, 1, 1, 1)
    centered = integers.astype('f4') - zero_point.reshape(column)
    real = centered * scale.reshape(column)
    assert np.array_equal(real, layer.weight.numpy())
    quantized_inputs = {n.input[0] for n in nodes(path, 'QuantizeLinear')}
    assert not quantized_inputs & set(tensors)


@pytest.mark.slow
@pytest.mark.parametrize('batch', [1, 3])
def test_a_batch_can_be_fixed(quantized, images, path, batch):
    model = quantized('inverted', 4, 4)
    mmrazor_brecq.export_onnx(model, images, path, batch=batch, **ANY_CLASS)
    shape = ort.InferenceSession(path).get_inputs()[0].shape
    assert shape == [batch, 3, 8, 8]


@pytest.mark.slow
def test_a_head_that_is_called_twice_is_exported(quantized, images, path):
    model = quantized('shared', 4, 4)
    report = mmrazor_brecq.export_onnx(model, images, path, **ANY_CLASS)
    names = [layer['name'] for layer in report['layers']]
    assert names.count('head.0.conv') == names.count('head.0.out') == 2
    assert report['operators']['QLinearConv'] == 7


@pytest.mark.slow
def test_packed_weights_make_a_file_small(quantized, images, tmp_path):
    model = quantized('residual', 2, 8)
    sizes = {}
    for target, pack in (
        ('openvino', False),
        ('openvino', True),
        ('onnxruntime', True),
    ):
        path = str(tmp_path / f'{target}{pack}.onnx')
        report = mmrazor_brecq.export_onnx(
            model, images, path, target=target, pack=pack, **ANY_CLASS
        )
        assert exact(report) > 0.97
        content = onnx.load(path)
        kinds = {t.data_type for t in content.graph.initializer}
        weights = [
            t
            for t in content.graph.initializer
            if t.name.startswith('network.blocks') and len(t.dims) == 4
        ]
        sizes[target, pack] = sum(len(t.raw_data) for t in weights)
        opset = next(o.version for o in content.opset_import if not o.domain)
        assert (onnx.TensorProto.INT4 in kinds) == (
            (target, pack) == ('openvino', True)
        )
        assert (onnx.TensorProto.INT2 in kinds) == (target == 'onnxruntime')
        assert opset == (25 if target == 'onnxruntime' else 21)
    assert sizes['openvino', True] * 2 == sizes['openvino', False]
    assert sizes['onnxruntime', True] * 4 == sizes['openvino', False]


@pytest.mark.slow
def test_two_bits_come_with_a_warning(quantized, images, path, warnings_log):
    mmrazor_brecq.export_onnx(
        quantized('residual', 2, 8), images, path, pack=True, verify=False
    )
    assert any('INT2' in line and 'storage' in line for line in warnings_log)


def test_tensorrt_names_the_first_layer_that_is_asymmetric(
    quantized, images, path
):
    with pytest.raises(ValueError) as info:
        mmrazor_brecq.export_onnx(
            quantized('residual'), images, path, target='tensorrt'
        )
    assert "'stem.0'" in str(info.value)
    for kind in ('weight', 'activation'):
        assert f'model.quantization.{kind}.symmetric=True' in str(info.value)


@pytest.mark.slow
def test_tensorrt_takes_the_symmetric_form(quantized, images, path):
    model = quantized('residual', 8, 8, symmetric=True)
    report = mmrazor_brecq.export_onnx(
        model, images, path, target='tensorrt', **ANY_CLASS
    )
    assert exact(report) == 1
    for tensor in onnx.load(path).graph.initializer:
        if tensor.name.endswith('zero_point'):
            assert tensor.data_type == onnx.TensorProto.INT8
            assert not onnx.numpy_helper.to_array(tensor).any()


def test_targets_warn_of_weights_that_run_slowly(quantized):
    plain, symmetric = (
        quantized('inverted', symmetric=x) for x in (False, True)
    )
    for name, word in (
        ('onnxruntime', "'blocks.0.depthwise.0' first"),
        ('openvino', "'stem.0' first"),
    ):
        target = build_target(name)
        (remark,) = target.remarks(plain.architecture, pack=False)
        assert word in remark and 'weight.symmetric=True' in remark
        assert target.remarks(symmetric.architecture, pack=False) == []
        (remark, *_) = target.remarks(symmetric.architecture, pack=True)
        assert '--pack changes nothing' in remark


def test_too_few_images_are_refused(quantized, images, path):
    with pytest.raises(ValueError, match='1 images, expected two batches'):
        mmrazor_brecq.export_onnx(quantized('residual'), images[:1], path)


@pytest.fixture
def own_target():
    """Register a target of a user, and remove it again."""

    @TARGETS.register_module(name='mine')
    class Mine(Target):
        def check(self, model):
            raise ValueError('not on my device')

    yield
    TARGETS.module_dict.pop('mine')


def test_a_registered_target_is_found(quantized, images, path, own_target):
    with pytest.raises(ValueError, match='not on my device'):
        mmrazor_brecq.export_onnx(
            quantized('residual'), images, path, target='mine'
        )


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="'npu' is unknown.*onnxruntime"):
        build_target('npu')


def damaged(kind):
    """Return a ``tidy`` that damages a layer of the file."""
    from mmrazor_brecq.export import build, nodes

    original = build.tidy

    def tidy(model):
        original(model)
        name, node = list(nodes.weights(model))[2]
        if kind == 'scale':
            position, value = (
                1,
                nodes.array_of(node.inputs[1]) * np.float32(1.2),
            )
        else:
            position, value = 0, np.roll(nodes.array_of(node.inputs[0]), 1, 0)
        new = nodes.Editor(model).constant('damaged', value)
        node.replace_input_with(position, new)

    return tidy


@pytest.mark.parametrize(
    'kind', ['scale', pytest.param('weight', marks=pytest.mark.slow)]
)
def test_a_wrong_layer_is_found_and_nothing_is_written(
    quantized, images, path, monkeypatch, tmp_path, kind
):
    monkeypatch.setattr('mmrazor_brecq.export.build.tidy', damaged(kind))
    with pytest.raises(ValueError, match='not the network: blocks.0.conv2 is'):
        mmrazor_brecq.export_onnx(
            quantized('residual'), images, path, **ANY_CLASS
        )
    assert not list(tmp_path.iterdir())


def test_a_disagreement_is_reported():
    match = OutputMatch('ONNX Runtime 1', 100, 0.5, 0.1, 0.1)
    layer = LayerMatch('stem', 0.99, 1.0, 0.6)
    found = Proof([match], [layer], refused=dict(OpenVINO='no INT2'))
    assert found.problem('', 0.5, 0.9, 1.0) is None
    problem = found.problem('', 0.6, 0.9, 1.0)
    assert 'ONNX Runtime 1 and torch agree on 50.00% of 100' in problem
    assert 'stem is the first layer' in found.problem('', 0.5, 0.999, 1.0)
    assert 'no INT2' in found.problem('OpenVINO', 0.5, 0.9, 1.0)
    match.agreement = float('nan')
    assert 'agree on' in found.problem('', 0.5, 0.9, 1.0)


def test_an_existing_file_stays(quantized, images, path):
    model = quantized('residual')
    with open(path, 'w') as file:
        file.write('precious')
    with pytest.raises(FileExistsError, match='--force'):
        mmrazor_brecq.export_onnx(model, images, path)
    with open(path) as file:
        assert file.read() == 'precious'


def test_a_missing_package_is_named(quantized, images, path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'onnxruntime.*_brecq\[export\]'):
        mmrazor_brecq.export_onnx(quantized('residual'), images, path)


class Windows(nn.Module):
    """Network whose code makes a constant of the batch, as Swin's does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x).relu().permute(0, 2, 3, 1).reshape(-1, 16, 4)
        count = int(x.shape[0] / 4)
        return self.out(x.view(count, 64, 4).mean(1))


@pytest.mark.slow
def test_a_batch_that_cannot_be_dynamic_is_refused(images, path):
    """Alone, torch's exporter silently fixes it, and the file is wrong."""
    model, _ = mmrazor_brecq.quantize(
        Windows().eval(),
        images,
        reconstructor=dict(type='NearestRounding', batch_size=8),
    )
    with pytest.raises(ValueError, match='Windows cannot be.*fixed --batch'):
        mmrazor_brecq.export_onnx(model, images, path)
    report = mmrazor_brecq.export_onnx(
        model, images, path, batch=4, least_agreement=0.0
    )
    assert exact(report) > 0.99


class Unexportable(nn.Module):
    """Network whose code depends on the values of its tensors."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.out = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.out(x.relu() if x.sum() > 0 else x)


@pytest.mark.slow
def test_what_cannot_be_exported_says_so(images, path):
    model, _ = mmrazor_brecq.quantize(
        Unexportable().eval(),
        images,
        reconstructor=dict(type='NearestRounding', batch_size=8),
    )
    with pytest.raises(ValueError, match='Unexportable cannot be exported'):
        mmrazor_brecq.export_onnx(model, images, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, bits, target',
    [
        ('inverted', (8, 8), 'onnxruntime'),
        ('grouped', (4, 4), 'onnxruntime'),
        ('nested', (2, 8), 'onnxruntime'),
        ('transformer', (4, 4), 'onnxruntime'),
        ('transposed', (4, None), 'onnxruntime'),
        ('inverted', (4, 4), 'openvino'),
        ('shared', (2, 8), 'openvino'),
        ('transformer', (4, None), 'openvino'),
    ],
)
def test_every_toy_network_is_exported(
    quantized, images, path, name, bits, target
):
    model = quantized(name, *bits)
    report = mmrazor_brecq.export_onnx(
        model,
        images,
        path,
        target=target,
        pack=target == 'openvino',
        least_exact=0.95,
        **ANY_CLASS,
    )
    first = report['matches'][0]
    assert first['mean'] < (0.06 if target == 'onnxruntime' else 1e-4)
    assert len(report['matches']) == 2 or not report['refused']
