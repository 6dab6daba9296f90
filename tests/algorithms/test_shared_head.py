"""A head that is shared over the levels of a pyramid."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.graph import record, show_calls
from mmrazor_brecq.layers import activation_quantizers

SCHEDULE = dict(
    type='BlockReconstructor', iterations=20, batch_size=8, fit_images=16
)


class Shared(nn.Module):
    """Two convolutions for two levels, the coarser one far larger."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1)])
        self.out = nn.Conv2d(6, 4, 1)

    def forward(self, levels):
        return [self.out(self.convs[0](x).relu()) for x in levels]


class Detector(nn.Module):
    """Runs its head past `__call__`, as mmdet does, or through it."""

    def __init__(self, past_call=True):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1))
        self.bbox_head = Shared()
        self.past_call = past_call

    def forward(self, x):
        x = self.backbone(x).relu()
        levels = [x, 20 * nn.functional.avg_pool2d(x, 2)]
        if self.past_call:
            return self.bbox_head.forward(levels)
        return self.bbox_head(levels)


def images(count=24):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator)


@pytest.mark.parametrize('past_call', [True, False])
def test_the_head_is_one_unit(past_call):
    model = BRECQ(Detector(past_call).eval())
    model.prepare(images(2))
    assert [unit.name for unit in model.units] == ['backbone.0', 'bbox_head']
    assert model.units[1].layers == ('bbox_head.convs.0', 'bbox_head.out')


def test_outputs_and_names_stay_and_calls_are_seen():
    network = Detector().eval()
    x, keys = images(2), list(network.state_dict())
    before = network(x)
    assert show_calls(network, record(network, x))
    assert not show_calls(network, record(network, x))
    seen = []
    hook = network.bbox_head.register_forward_hook(lambda *_: seen.append(1))
    after = network(x)
    hook.remove()
    assert len(seen) == 1
    for a, b in zip(before, after):
        assert torch.equal(a, b)
    assert list(network.state_dict()) == keys
    assert isinstance(network.bbox_head, Shared)
    for other in copy.deepcopy(network), pickle.loads(pickle.dumps(network)):
        assert torch.equal(other(x)[1], before[1])
        assert type(other.bbox_head) is type(network.bbox_head)


def test_a_network_that_calls_its_modules_stays_as_it_is():
    network = Detector(past_call=False).eval()
    assert not show_calls(network, record(network, images(2)))
    assert type(network.bbox_head) is Shared


def test_ranges_and_weights_suit_all_levels():
    network = Detector().eval()
    model, report = mmrazor_brecq.quantize(
        network,
        images(),
        weight_bits=4,
        activation_bits=8,
        reconstructor=SCHEDULE,
    )
    assert type(network.bbox_head) is Shared  # The caller's stays as it was.
    head = report['units'][1]
    assert head['name'] == 'bbox_head' and head['after'] <= head['before']
    goal, found = network(images()), model(images())
    for x, y in zip(goal, found):
        error = (x - y).square().mean() / x.var()
        assert error < 0.02
    # One range for the inner layer covers the large values of the other.
    quantizer = activation_quantizers(model.architecture.bbox_head.out)[0]
    levels = [
        network.backbone(images()).relu(),
        20 * nn.functional.avg_pool2d(network.backbone(images()).relu(), 2),
    ]
    inner = [network.bbox_head.convs[0](x).relu().max() for x in levels]
    assert inner[1] > 4 * inner[0]
    assert float(quantizer.scale) * 255 > inner[1] / 2


def test_saves_and_loads(tmp_path):
    network = Detector().eval()
    model, _ = mmrazor_brecq.quantize(
        network, images(), reconstructor=dict(SCHEDULE, iterations=2)
    )
    mmrazor_brecq.save(model, tmp_path / 'quantized.pth')
    again = mmrazor_brecq.load(network, tmp_path / 'quantized.pth')
    for x, y in zip(again(images()), model(images())):
        assert torch.equal(x, y)


def test_a_state_without_the_unit_still_loads(monkeypatch):
    """As it was saved when heads that are run so were no units."""
    with monkeypatch.context() as patch:
        patch.setattr(
            'mmrazor_brecq.algorithms.recorded.show_calls', lambda *_: False
        )
        old = BRECQ(Detector().eval(), reconstructor=SCHEDULE)
        teacher = old.prepare(images(2))
        for _ in old.reconstruct(teacher, list(images().split(12))):
            pass
    assert 'bbox_head' not in [unit.name for unit in old.units]
    new = BRECQ(Detector().eval(), reconstructor=SCHEDULE)
    new.load_state_dict(old.state_dict())
    assert [u.name for u in new.units] == [u.name for u in old.units]
    for x, y in zip(new(images()), old(images())):
        assert torch.equal(x, y)
