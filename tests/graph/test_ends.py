"""The ends of a network, behind whatever follows its last layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrazor_brecq.graph import record
from mmrazor_brecq.graph.ends import end_layers


class Head(nn.Module):
    """A stem, a body and two branches; `finish` makes outputs of theirs."""

    def __init__(self, finish):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.box = nn.Conv2d(4, 4, 1)
        self.cls = nn.Conv2d(4, 6, 1)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.finish = finish

    def forward(self, x):
        x = self.body(self.stem(x).relu()).relu()
        cls, box = self.cls(x), self.box(x)
        return self.finish(self, x, cls, box)


def fcos(net, x, cls, box):
    return [cls], [(box * net.scale).float().clamp(min=0) * 8]


def relu_in_place(net, x, cls, box):
    return cls.sigmoid_(), nn.functional.relu_(box * net.scale)


def exponential(net, x, cls, box):
    return {'cls': cls.permute(0, 2, 3, 1).sigmoid(), 'box': box.exp() * 8}


def joined(net, x, cls, box):
    both = torch.cat([box.sigmoid(), cls], 1)
    return both.flatten(2).permute(0, 2, 1)


def stacked(net, x, cls, box):
    return torch.stack([cls[:, :4], box])


def written_into(net, x, cls, box):
    out = torch.zeros(len(x), 10, *x.shape[2:])
    out[:, :4] = box.exp()
    out[:, 4:] = cls
    return out


def decoded(net, x, cls, box):
    """A grid, made after the boxes, is added to them."""
    grid = torch.arange(8.0).expand(1, 4, 8, 8)
    return cls, (box + grid) * 8


BOTH = ['stem', 'cls', 'box']


@pytest.mark.parametrize(
    'finish',
    [fcos, relu_in_place, exponential, joined, stacked, written_into, decoded],
)
def test_each_branch_has_an_end(finish):
    network = Head(finish).eval()
    recording = record(network, torch.randn(2, 3, 8, 8))
    assert end_layers(recording) == BOTH


def shortcut(net, x, cls, box):
    return (box + x).relu()


def features(net, x, cls, box):
    """Returned, and read by the layers behind as well."""
    return x, cls * 2


@pytest.mark.parametrize(
    ('finish', 'last'),
    [
        (shortcut, ['box']),
        (features, ['cls']),
        (lambda net, x, cls, box: cls.softmax(1), ['cls']),
        (lambda net, x, cls, box: box.argmax(1), ['box']),
        (lambda net, x, cls, box: torch.ones(2), ['box']),
    ],
)
def test_only_the_last_layer_of_an_output_is_an_end(finish, last):
    network = Head(finish).eval()
    recording = record(network, torch.randn(2, 3, 8, 8))
    assert end_layers(recording) == ['stem', *last]


def test_a_shared_layer_is_named_once():
    def finish(net, x, cls, box):
        return [net.cls(x).exp(), net.cls(x[..., ::2, ::2]).exp()]

    recording = record(Head(finish).eval(), torch.randn(2, 3, 8, 8))
    assert end_layers(recording) == ['stem', 'cls']
