"""Likelihoods of the maps of detectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrazor_brecq.objectives import FromOutput
from mmrazor_brecq.objectives.dense_head import chance_of_object, value_maps
from mmrazor_brecq.objectives.gradients import real_outputs

SIZES = (8, 4, 2)


def maps(channels, mean, spread=1.0, sizes=SIZES, seed=0):
    generator = torch.Generator().manual_seed(seed + channels)
    return [
        mean + spread * torch.randn(2, channels, s, s, generator=generator)
        for s in sizes
    ]


#: By name: lists of maps, and which of them are values.
HEADS = dict(
    retinanet=([maps(18, -5), maps(24, 0)], [1]),
    # As many channels in both lists.
    four_classes=([maps(36, -5), maps(36, 0)], [1]),
    fcos=([maps(6, -5), maps(4, 5), maps(1, 0)], [1]),
    yolox=([maps(80, -6), maps(4, 1), maps(1, -4)], [1]),
    one_level=([maps(6, -5, sizes=[8]), maps(4, 0.5, sizes=[8])], [1]),
    one_class=([maps(1, -6), maps(4, 1)], [1]),
    boxes_first=([maps(4, 0), maps(18, -5)], [0]),
)


@pytest.mark.parametrize('name', HEADS)
def test_boxes_are_values_and_classes_are_events(name):
    lists, values = HEADS[name]
    outputs = [x for level in lists for x in level]
    likelihood = FromOutput()
    likelihood.see(Returns(lists), torch.zeros(2, 3, 8, 8), outputs)
    levels = len(lists[0])
    kinds = [form.kind for form in likelihood.forms]
    assert kinds == [
        'value' if i in values else 'event'
        for i in range(len(lists))
        for _ in range(levels)
    ]
    assert set(str(likelihood).split(' and ')) == {
        'Bernoulli',
        'Gaussian where an object is likely',
    }
    # The chances of a map of values are those of its own level.
    for i, chances in value_maps(outputs).items():
        assert len(chances) == len(lists) - len(values)
        for k in chances:
            assert outputs[k].shape[2:] == outputs[i].shape[2:]


@pytest.mark.parametrize(
    'lists',
    [
        [maps(5, 0, sizes=[8])],  # A segmenter.
        [maps(5, 0, sizes=[8]), maps(7, 0, sizes=[8])],  # Two of them.
        [maps(5, 0, sizes=[8]), maps(1, -5, sizes=[8])],  # Edges beside it.
        [maps(8, 0)],  # Features of a pyramid.
        [maps(5, -5, sizes=[8]), maps(4, 0, sizes=[4])],  # Other sizes.
    ],
)
def test_other_maps_are_no_dense_head(lists):
    outputs = [x for level in lists for x in level]
    assert value_maps(outputs) == {}


class Returns(nn.Module):
    """A network that returns given maps, in a graph with its input."""

    def __init__(self, lists):
        super().__init__()
        self.lists = lists
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, x):
        zero = 0 * self.conv(x).mean()
        return tuple([x + zero for x in level] for level in self.lists)


def test_errors_of_boxes_count_where_an_object_is():
    cls, box = maps(6, -8, 0.1, [4])[0], maps(4, 0, sizes=[4])[0]
    cls[:, 2, 1, 1] = 6.0
    likelihood = FromOutput()
    network = Returns([[cls], [box]])
    outputs = real_outputs(network(torch.zeros(2, 3, 4, 4)))
    likelihood.see(network, torch.zeros(2, 3, 4, 4), outputs)
    assert [form.kind for form in likelihood.forms] == ['event', 'value']

    def cost(row, column):
        wrong = box.clone()
        wrong[:, :, row, column] += 1.0
        return float(likelihood.divergence([cls, wrong], [cls, box]))

    assert cost(1, 1) == pytest.approx(4 / 2 * 0.9975, rel=1e-3)
    assert cost(0, 0) < 0.002
    # The Fisher information is that weight, too.
    leaf = box.clone().requires_grad_()
    squares = torch.zeros_like(box)
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        (grad,) = torch.autograd.grad(likelihood([cls, leaf], generator), leaf)
        squares += grad.square() / 300
    weight = chance_of_object([cls]).expand_as(box)
    assert squares[:, :, 1, 1].mean() == pytest.approx(0.9975, rel=0.1)
    assert torch.allclose(squares, weight, rtol=0.5, atol=1e-3)


def test_the_chance_is_a_product_of_all_chances():
    cls, centerness = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    cls[0, 1] = 2.0
    expected = torch.tensor(2.0).sigmoid() / 2
    found = chance_of_object([cls, centerness])
    assert found.shape == (1, 1, 2, 2)
    assert torch.allclose(found, expected)
