"""Biases take back what rounded weights add to a layer's mean."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.layers import quant_layers
from mmrazor_brecq.reconstruction import (
    BlockReconstructor,
    NearestRounding,
    far_from_zero,
)

LEARNER = dict(iterations=4, batch_size=8, objective=dict(type='MSE'))


class Rejecting(BlockReconstructor):
    """It learns, and none of it is kept."""

    def learn(self, unit, data, generator, report):
        super().learn(unit, data, generator, report)
        report.accepted = False


class Scaled(nn.Conv2d):
    """Convolution with an argument of its own."""

    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return super().forward(x * scale)


class Network(nn.Module):
    """Padding, groups, strides, an argument, and a layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, groups=4)
        self.point = Scaled(8, 8, 1)
        self.plain = nn.Conv2d(8, 8, 1, bias=False)
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.stem(x).relu()).relu()
        x = self.point(x, 1.0).relu()
        x = x + self.plain(x - x.mean((2, 3), keepdim=True))
        return self.last(x.mean((2, 3)))


def images(mean=30.0):
    torch.manual_seed(0)
    return torch.rand(32, 3, 12, 12) * 4 - 2 + mean


def quantized(x, reconstructor=None, **kwargs):
    """A quantized network, the float one, and the reports."""
    torch.manual_seed(1)
    bits = dict(bits=4)
    model = BRECQ(
        Network(), dict(weight=bits, first_last_bits=None), **kwargs
    ).eval()
    teacher = model.prepare(x[:1])
    batches = CachedBatches([x[:20], x[20:]], [20, 12])
    reports = model.reconstruct(
        teacher, batches, 0, reconstructor or NearestRounding(batch_size=8)
    )
    return model, teacher, list(reports)


def error(model, teacher, x):
    with torch.no_grad():
        goal = teacher(x)
        return float((model.architecture(x) - goal).square().mean())


def test_images_that_are_far_from_zero_are_told_by_their_mean():
    def told(x):
        return far_from_zero(CachedBatches([x], [len(x)]))

    assert told(torch.rand(9, 3, 4, 4)) and told(images())
    assert not told(torch.randn(9, 3, 4, 4))
    # Most of a normalized image may be background.
    x = torch.full((9, 1, 4, 4), -0.5)
    x[:, :, :2, :2] = 2
    assert not told(x)
    assert not told(torch.zeros(9, 3, 4, 4))
    assert not told(torch.ones(9, 7, dtype=torch.long))


@pytest.mark.parametrize('learns', [False, True])
def test_the_shift_of_an_output_is_taken_back(learns):
    x = images()
    make = (lambda: BlockReconstructor(**LEARNER)) if learns else lambda: None
    plain, teacher, _ = quantized(x, make(), center_biases=False)
    model, _, reports = quantized(x, make())
    layers = quant_layers(model.architecture)
    centered = {r.name: r.centered for r in reports}
    assert centered['stem'] and centered['grouped'] and centered['point']
    assert not centered['plain']
    assert error(model, teacher, x) < 0.3 * error(plain, teacher, x)
    assert all(layer.mean_input is None for layer in layers.values())
    # What makes up for the mean is a bias: a state has nothing else of it.
    assert model.state_dict().keys() == plain.state_dict().keys()
    again = copy.deepcopy(plain)
    again.load_state_dict(model.state_dict())
    assert error(again, teacher, x) == error(model, teacher, x)
    # The float network is as it was.
    torch.manual_seed(1)
    for key, value in Network().state_dict().items():
        assert torch.equal(teacher.state_dict()[key], value)


def test_a_rejected_unit_has_the_biases_of_nearest_rounding():
    x = images()
    nearest, _, _ = quantized(x)
    model, _, reports = quantized(x, Rejecting(**LEARNER, negligible=0.0))
    assert all(report.iterations for report in reports)
    for name, value in nearest.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_mean_of_each_layer_is_that_of_the_float_weights():
    """Padding, strides and groups count."""
    x = images()
    model, _, _ = quantized(x)
    floats = {
        name: layer.weight.clone()
        for name, layer in Network().named_children()
        if name != 'plain'
    }
    assert floats.keys() < quant_layers(model.architecture).keys()
    torch.manual_seed(1)
    original = Network()
    shifts = {}
    for name, layer in quant_layers(model.architecture).items():

        def note(layer, args, output, name=name):
            float_layer = original.get_submodule(name)
            goal = float_layer(layer.input_quantizer(args[0]), *args[1:])
            axes = [i for i in range(goal.dim()) if i != 1]
            shifts[name] = (output - goal).mean(axes)

        layer.register_forward_hook(note)
    with torch.no_grad():
        model.architecture(x[:28])
    for name in floats:
        assert shifts[name].abs().max() < 2e-3, name


def test_normalized_images_change_nothing():
    x = images(mean=0.0)
    found = [quantized(x, center_biases=on) for on in (True, False)]
    assert not any(report.centered for report in found[0][2])
    states = [model.state_dict() for model, _, _ in found]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
