"""Layers that `bit_overrides` leave in float."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from mmengine.config import Config
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.layers import QuantLayer, activation_quantizers


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.bbox_head = nn.ModuleDict(
            dict(cls=nn.Conv2d(8, 5, 1), reg=nn.Conv2d(8, 4, 1))
        )

    def forward(self, x):
        x = self.backbone(x)
        return self.bbox_head['cls'](x), self.bbox_head['reg'](x).exp()


def images(count=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator)


def prepared(**overrides):
    model = BRECQ(
        Detector(),
        dict(
            weight=dict(bits=4), activation=dict(bits=4), first_last_bits=None
        )
        | dict(bit_overrides=overrides['bit_overrides'])
        | {k: v for k, v in overrides.items() if k != 'bit_overrides'},
    )
    model.prepare(images(2))
    return model


@pytest.mark.parametrize('bits', [None, 32, dict(weight=32, activation=None)])
def test_a_pattern_leaves_layers_in_float(bits, caplog):
    with caplog.at_level(logging.WARNING):
        model = prepared(bit_overrides={'bbox_head.*': bits})
    head = model.architecture.bbox_head
    assert not any(isinstance(x, QuantLayer) for x in head.values())
    assert not activation_quantizers(head)
    assert list(model.bits) == ['backbone.0', 'backbone.2']
    assert dict(model.account.left_float) == {
        'bbox_head.cls': 'left in float by `bit_overrides`',
        'bbox_head.reg': 'left in float by `bit_overrides`',
    }
    assert '2 of 4 layers quantized' in str(model.account)
    assert 'left in float' not in caplog.text  # It was asked for.


def test_the_last_layer_before_a_float_head_is_no_end():
    model = prepared(bit_overrides={'bbox_head.*': None}, first_last_bits=8)
    assert model.bits == {'backbone.0': (8, 8), 'backbone.2': (4, 4)}


def test_later_patterns_win_in_both_directions():
    model = prepared(bit_overrides={'bbox_head.*': None, '*.reg': 6})
    assert model.bits['bbox_head.reg'] == (6, 6)
    assert 'bbox_head.cls' not in model.bits
    model = prepared(bit_overrides={'bbox_head.*': 6, '*.cls': None})
    assert 'bbox_head.cls' not in model.bits
    assert model.bits['bbox_head.reg'] == (6, 6)


def test_an_input_alone_stays_float():
    model = prepared(bit_overrides={'backbone.2': dict(activation=None)})
    layer = model.architecture.backbone[2]
    assert isinstance(layer, QuantLayer)
    assert not activation_quantizers(layer)
    assert model.bits['backbone.2'] == (4, 32)


@pytest.mark.parametrize('value', [dict(weight=None), dict(weight=32)])
def test_a_float_weight_with_an_integer_input_is_refused(value):
    with pytest.raises(ValueError, match=r"'backbone.2'.*4 bits.*float"):
        prepared(bit_overrides={'backbone.2': value})


def test_nothing_left_to_quantize_says_why():
    with pytest.raises(ValueError, match='nothing to quantize.*bit_override'):
        prepared(bit_overrides={'*': None})


def test_saves_loads_and_keeps_the_float_weights(tmp_path):
    network = Detector().eval()
    before = copy.deepcopy(network.state_dict())
    model, _ = mmrazor_brecq.quantize(
        network,
        images(),
        weight_bits=4,
        bit_overrides={'bbox_head.*': None},
        reconstructor=dict(
            type='BlockReconstructor', iterations=2, batch_size=4
        ),
    )
    state = model.architecture.state_dict()
    for name in ('bbox_head.cls.weight', 'bbox_head.reg.weight'):
        assert torch.equal(state[name], before[name])
    assert state['backbone.2.weight'].dtype == torch.int8
    mmrazor_brecq.save(model, tmp_path / 'quantized.pth')
    again = mmrazor_brecq.load(network, tmp_path / 'quantized.pth')
    for x, y in zip(again(images()), model(images())):
        assert torch.equal(x, y)


@pytest.mark.parametrize('name', ['everything', 'qdrop'])
def test_both_conventions_are_files(name, tmp_path):
    (tmp_path / 'bits.py').write_text(
        "_base_ = ['mmrazor_brecq::_base_/bits/w4a4.py', "
        f"'mmrazor_brecq::_base_/placement/{name}.py']\n"
        'bits = dict(**_base_.bits, **_base_.placement)\n'
    )
    scheme = Config.fromfile(tmp_path / 'bits.py').bits.to_dict()

    class WithNeck(Detector):
        def __init__(self):
            super().__init__()
            self.neck = nn.Module()
            self.neck.fpn_convs = nn.ModuleList([nn.Conv2d(8, 8, 3)])

        def forward(self, x):
            x = self.neck.fpn_convs[0](self.backbone(x))
            return self.bbox_head['cls'](x), self.bbox_head['reg'](x).exp()

    model = BRECQ(WithNeck(), scheme)
    model.prepare(images(2))
    float_parts = {
        'everything': set(),
        'qdrop': {'neck.fpn_convs.0', 'bbox_head.cls', 'bbox_head.reg'},
    }
    assert set(model.account.left_float) == float_parts[name]
    assert model.bits['backbone.0'] == (8, 8)
    if name == 'everything':
        assert model.bits['bbox_head.reg'] == (8, 8)
