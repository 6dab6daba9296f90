"""Right files are never refused, and wrong files always are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mmrazor_brecq
from mmrazor_brecq.export import build_target

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
import onnx_ir as ir  # noqa: E402

from mmrazor_brecq.export import build, nodes  # noqa: E402
from mmrazor_brecq.export.calls import CallMatcher  # noqa: E402
from mmrazor_brecq.export.match import compare_layers  # noqa: E402
from mmrazor_brecq.export.outputs import (  # noqa: E402
    OutputMatch,
    compare_outputs,
)
from mmrazor_brecq.export.proof import Proof  # noqa: E402


def conv(inner, outer, **options):
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, padding=1, **options),
        nn.BatchNorm2d(outer),
        nn.ReLU(),
    )


class Chain(nn.Module):
    """Two convolutions, and any function at the end."""

    def __init__(self, end=None, outputs=5):
        super().__init__()
        self.stem, self.body = conv(3, 8), conv(8, 8)
        self.fc = nn.Linear(8, outputs)
        self.end = end or (lambda x: x)

    def features(self, x):
        return self.body(self.stem(x))

    def forward(self, x):
        return self.end(self.fc(self.features(x).mean((2, 3))))


class Dead(Chain):
    """A ReLU that puts out zeros only: all after it is constant."""

    def __init__(self):
        super().__init__()
        self.stem[1].weight.data.zero_()
        self.stem[1].bias.data.fill_(-1)


class Constant(Chain):
    """The same output for all images."""

    def __init__(self):
        super().__init__()
        self.fc.weight.data.zero_()
        self.fc.bias.data.normal_()


class Zero(Constant):
    """An output of zeros, which has no range."""

    def __init__(self):
        super().__init__()
        self.fc.bias.data.zero_()


class Twice(Chain):
    """A stem that runs twice on one input, a head on two sizes."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        both = self.stem(x), F.max_pool2d(self.stem(x), 2)
        return [self.head(x) for x in both]


class Unused(Chain):
    """Three calls of a layer, one of which nothing uses."""

    def forward(self, x):
        a, b = self.stem(x), self.stem(x * 0.5)
        self.body(a + 1)
        return self.fc((self.body(a) + self.body(b)).mean((2, 3)))


class Maps(Chain):
    """N x K x H x W scores, as in segmentation."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return F.interpolate(self.head(self.features(x)), scale_factor=2)


class Tiny(nn.Module):
    """Layers with a single element."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(192, 1), nn.Linear(1, 1)

    def forward(self, x):
        return self.b(self.a(x.flatten(1)).relu())


class Tokens(Chain):
    """A linear layer over positions, then a mean, which OpenVINO gets
    wrong.
    """

    def __init__(self):
        super().__init__()
        self.token = nn.Linear(8, 16)
        self.out = nn.Linear(16, 5)

    def forward(self, x):
        x = self.token(self.stem(x).flatten(2).transpose(1, 2))
        return self.out(x.mean(1))


class Sequence(nn.Module):
    """One-dimensional convolutions."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv1d(3, 8, 3, padding=1)
        self.b = nn.Conv1d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.b(self.a(x.flatten(2)).relu()).mean(2))


class Deep(nn.Module):
    """Many random layers, each of which amplifies earlier rounding."""

    def __init__(self):
        super().__init__()
        layers = [conv(3, 8)]
        for _ in range(10):
            layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)]
            layers += [nn.ReLU()]
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.layers(x).mean((2, 3)))


RIGHT = dict(
    plain=Chain,
    dead=Dead,
    constant=Constant,
    zero=Zero,
    twice=Twice,
    unused=Unused,
    maps=Maps,
    tiny=Tiny,
    tokens=Tokens,
    sequence=Sequence,
    deep=Deep,
    one_logit=lambda: Chain(outputs=1),
    flat=lambda: Chain(lambda x: x.flatten(), 1),
    regression=lambda: Chain(lambda x: 1000 + 3 * x, 4),
    probabilities=lambda: Chain(lambda x: x.softmax(1)),
    classes=lambda: Chain(lambda x: x.argmax(1)),
    several=lambda: Chain(lambda x: dict(a=x, b=[x[:, :1], x.sum(1)])),
    equal=lambda: Chain(lambda x: 1e-4 * x + 7),
)


QUICKLY = 'dead', 'twice', 'tokens'


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'model.onnx')


@pytest.fixture
def finished(images):
    """Return a function that builds a network and quantizes it."""

    def build_one(kind, bits=8, symmetric=None, **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = RIGHT[kind]().train()
            for _ in range(10):
                network(images)
        return mmrazor_brecq.quantize(
            network.eval(),
            images,
            *(bits, bits),
            reconstructor=dict(type='NearestRounding', batch_size=8),
            symmetric=symmetric,
            **options,
        )[0]

    return build_one


@pytest.mark.parametrize(
    'kind',
    [
        *QUICKLY,
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in RIGHT
            if kind not in QUICKLY
        ),
    ],
)
def test_a_right_file_is_written(kind, finished, images, path):
    report = mmrazor_brecq.export_onnx(finished(kind), images, path)
    assert all(layer['within'] == 1 for layer in report['layers'])
    assert all(layer['largest'] < 2 for layer in report['layers'])
    assert ort.InferenceSession(path)


#: Each network, and each target at each number of bits, at least twice.
@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'target', 'bits'),
    [
        ('plain', 'onnxruntime', 2),
        ('plain', 'tensorrt', 4),
        ('plain', 'tensorrt', 2),
        ('dead', 'onnxruntime', 4),
        ('dead', 'tensorrt', 8),
        ('twice', 'onnxruntime', 2),
        ('twice', 'tensorrt', 8),
        ('deep', 'onnxruntime', 4),
        ('deep', 'tensorrt', 2),
        ('deep', 'tensorrt', 4),
        ('maps', 'onnxruntime', 8),
        ('maps', 'onnxruntime', 4),
    ],
)
def test_a_right_file_of_any_bits(kind, target, bits, finished, images, path):
    model = finished(kind, bits, symmetric=target == 'tensorrt' or None)
    mmrazor_brecq.export_onnx(model, images, path, target=target)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['plain', 'one_logit', 'maps'])
def test_a_right_file_of_one_image_at_a_time(kind, finished, images, path):
    model = finished(kind)
    mmrazor_brecq.export_onnx(model, images[:2], path, batch=1)


@pytest.mark.slow
def test_a_right_file_for_openvino(finished, images, path):
    pytest.importorskip('openvino')
    model = finished('plain')
    report = mmrazor_brecq.export_onnx(model, images, path, target='openvino')
    assert any(m['runtime'].startswith('Open') for m in report['matches'])


def first_layer(model):
    return next(node for _, node in nodes.weights(model))


def activation(model):
    return next(n for n in model.graph if nodes.QUANTIZER in n.metadata_props)


def replace_constant(model, node, position, change):
    """Change a constant of the graph."""
    old = node.inputs[position]
    value = change(nodes.array_of(old).copy())
    new = nodes.Editor(model).constant('damaged', value)
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, new)


def one_weight(model):
    def change(q):
        q.flat[5] += 1 if q.flat[5] < 100 else -1
        return q

    replace_constant(model, first_layer(model), 0, change)


def one_scale(model):
    def change(scale):
        scale[0] *= np.float32(1.001)
        return scale

    replace_constant(model, first_layer(model), 1, change)


def weight_zero_point(model):
    def change(zero_point):
        zero_point[0] += 1
        return zero_point

    replace_constant(model, first_layer(model), 2, change)


def input_scale(model):
    replace_constant(
        model, activation(model), 1, lambda x: x * np.float32(1.001)
    )


def input_zero_point(model):
    replace_constant(
        model, activation(model), 2, lambda x: x + np.array(1, x.dtype)
    )


def one_bias(model):
    node = first_layer(model)
    (user, *_) = nodes.users(node)
    integers = user.inputs[2].producer()

    def change(bias):
        bias[0] = bias[0] * 1.1 + (0 if integers is None else 1)
        return bias

    if integers is None:
        replace_constant(model, user, 2, change)
    else:
        replace_constant(model, integers, 0, change)


def no_clip(model):
    for node in list(model.graph):
        if node.op_type == 'Clip':
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)


def no_relu(model):
    for node in list(model.graph):
        if node.op_type == 'Relu':
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)


def another_end(model):
    """Add an operator between the last layer and the output."""
    (output,) = model.graph.outputs
    output.producer().outputs[0].name = 'before'
    value = nodes.Editor(model).node(
        'Neg', [output], 'damaged', ir.DataType.FLOAT, output
    )
    output.name, value.name = 'before', 'logits'
    model.graph.outputs[0] = value


DAMAGES = [
    (one_weight, 'weight in the file'),
    (one_scale, 'weight in the file'),
    (weight_zero_point, 'weight in the file'),
    (input_scale, 'scale and zero point in the file'),
    (input_zero_point, 'scale and zero point in the file'),
    (one_bias, 'bias in the file'),
    (no_clip, 'a Clip is missing'),
    (no_relu, 'is the first layer that differs'),
    (another_end, 'is the first layer that differs'),
]


QUICK = (one_scale, no_clip, another_end)


@pytest.mark.parametrize(
    'damage, words, kind',
    [
        pytest.param(
            *(damage, words, kind),
            id=f'{damage.__name__}-{kind}',
            marks=[]
            if damage in QUICK and kind == 'plain'
            else pytest.mark.slow,
        )
        for i, (damage, words) in enumerate(DAMAGES)
        for kind in ('plain', ('one_logit', 'deep')[i % 2])
    ],
)
def test_a_wrong_file_is_refused(
    damage, words, kind, finished, images, path, monkeypatch, tmp_path
):
    original = build.tidy

    def tidy(model):
        original(model)
        damage(model)

    monkeypatch.setattr(build, 'tidy', tidy)
    target = 'openvino' if damage is no_relu else 'onnxruntime'
    with pytest.raises(ValueError, match=f'is not the network: .*{words}'):
        mmrazor_brecq.export_onnx(
            finished(kind, 4 if damage is no_clip else 8),
            images,
            path,
            target=target,
            least_agreement=0.0,
        )
    assert not list(tmp_path.iterdir())


def test_another_runtime_is_a_warning_that_names_it():
    good = OutputMatch('ONNX Runtime 1', 100, 1.0, 0.0, 0.0)
    bad = OutputMatch('OpenVINO 2', 100, 0.2, 1.0, 1.0)
    found = Proof([good, bad], [])
    for runtime in 'ONNX Runtime', 'TensorRT', '':
        assert found.problem(runtime, 0.9, 1.0, 1.0) is None
        (warning,) = found.others(runtime, 0.9)
        assert 'OpenVINO 2 and torch agree on 20.00%' in warning
    assert 'OpenVINO 2 and torch' in found.problem('OpenVINO', 0.9, 1.0, 1.0)
    assert found.others('OpenVINO', 0.9) == []
    only = Proof([good], [])  # OpenVINO is not installed.
    assert only.problem('OpenVINO', 0.9, 1.0, 1.0) is None


@pytest.mark.slow
def test_a_file_that_openvino_gets_wrong_has_a_warning(
    finished, images, tmp_path, warnings_log
):
    pytest.importorskip('openvino')
    model = finished('sequence')
    path = str(tmp_path / 'a.onnx')
    report = mmrazor_brecq.export_onnx(model, images, path)
    if report['matches'][1]['near'] > 0.9:
        pytest.skip('this version of OpenVINO computes it')
    assert any('OpenVINO' in line and 'else' in line for line in warnings_log)
    # OpenVINO computes the file that is made for it.
    path = str(tmp_path / 'b.onnx')
    mmrazor_brecq.export_onnx(model, images, path, target='openvino')


def test_ties_are_no_disagreement():
    expected = np.array([[1.0, 0.99], [1.0, 0.0]])
    other = np.array([[0.99, 1.0], [0.0, 1.0]])
    match = compare_outputs('x', [expected], [other], noise=[0.02])
    assert (match.agreement, match.tied) == (0.0, 0.5)
    assert match.near == 0.5
    assert match.problem(0.5) is None
    assert 'agree on 0.00% of 2 images (50.00%' in match.problem(0.6)


@pytest.mark.parametrize('shape', [(6, 1), (6,), (6, 2, 3)])
def test_outputs_without_classes_are_compared_by_value(shape):
    expected = np.random.default_rng(0).normal(size=shape).astype('f4')
    right = compare_outputs('x', [expected], [expected + 1e-3], noise=[0.01])
    wrong = compare_outputs('x', [expected], [expected + 1], noise=[0.01])
    assert right.agreement is None and right.problem(0.9) is None
    assert 'in 0.00% of the outputs' in wrong.problem(0.9)


def test_maps_are_compared_by_value():
    """The best channel of a map says nothing where there is no object."""
    expected = np.zeros((2, 3, 4, 4), 'f4')
    expected[:, 1] = 1
    other = expected.copy()
    other[0, 2, :2] = 2
    match = compare_outputs('x', [expected], [other], noise=[0.5])
    assert match.agreement is None and match.near == 1 - 8 / 96
    assert match.largest == 2 and match.problem(0.95)


@pytest.mark.parametrize(
    'first_calls, found, indices',
    [
        ([0, 1, 2], 3, [0, 1, 2]),
        ([0, 0, 2], 2, [0, 0, 1]),
        ([0, 0, 2], 3, [0, 1, 2]),
        ([0, 1, 0], 2, [0, 1, 0]),
        ([0], 0, [None]),
    ],
)
def test_calls_on_one_input_are_one(first_calls, found, indices):
    calls = CallMatcher(first_calls, found)
    assert [calls.index(lambda i: True) for _ in first_calls] == indices


def test_a_call_that_nothing_uses_is_skipped():
    calls = CallMatcher([0, 1, 2], 2)
    fits = iter([True, False])
    found = [calls.index(lambda i: next(fits)) for _ in range(3)]
    assert found == [0, None, 1]


def test_tensorrt_names_the_argument_in_python(finished, images, path):
    with pytest.raises(ValueError, match=r'quantize\(..., symmetric=True\)'):
        mmrazor_brecq.export_onnx(
            finished('plain'), images, path, target='tensorrt'
        )
    for bits in 8, 4:  # With 4, the first and the last layer have 8.
        model = finished('plain', bits, symmetric=True)
        build_target('tensorrt').check(model.architecture)


def test_layers_are_compared_on_a_constant_output(finished, images):
    model = finished('zero')
    built = build.build(
        model.architecture,
        None,
        [images],
        build.Options(build_target('openvino')),
    )
    matches = compare_layers(model.architecture, built, images, images)
    assert matches[-1].name == 'logits'
    assert all(np.isfinite(m.largest) for m in matches)
    assert all(m.exact + m.ties == 1 for m in matches)
