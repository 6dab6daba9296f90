"""`quantize` with `max_drop`: more bits, until a function is content."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.engine import accuracy_control

BRIEF = dict(type='BlockReconstructor', iterations=1, batch_size=8)


@pytest.fixture(autouse=True)
def few_sensitivities(monkeypatch):
    """Sensitivities of nearest rounding, at two or three widths."""
    monkeypatch.setattr(
        accuracy_control, 'read_part', lambda *_: dict(type='NearestRounding')
    )
    monkeypatch.setattr(accuracy_control, 'WIDTHS', (4, 8))
    monkeypatch.setattr(accuracy_control, 'IMAGES', 8)


@pytest.fixture
def images(generator):
    return torch.randn(20, 3, 6, 6, generator=generator)


@pytest.fixture
def subject(images):
    """Return a network, and how near another comes to its outputs, in %."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1),
            nn.Flatten(),
            nn.Linear(16, 5),
        ).eval()
    with torch.no_grad():
        wanted = network(images)

    def evaluate(model):
        assert not model.training
        with torch.no_grad():
            error = (model(images) - wanted).square().mean()
        return 100 - 100 * float(error / wanted.var())

    return network, evaluate


def quantize(network, images, evaluate=None, max_drop=None, **kwargs):
    return mmrazor_brecq.quantize(
        network,
        images,
        2,
        4,
        reconstructor=BRIEF,
        batch_size=16,
        evaluate=evaluate,
        max_drop=max_drop,
        **kwargs,
    )


def equal(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor)
    )


def test_bits_are_given_back_until_it_holds(subject, images):
    """The same bits from the beginning give the same integers."""
    network, evaluate = subject
    before = {k: v.clone() for k, v in network.state_dict().items()}
    plain, without = quantize(network, images)
    assert 'max_drop' not in without
    allowed = (100 - evaluate(plain)) / 4
    same, report = quantize(network, images, evaluate, 5 * allowed)
    assert equal(plain, same)  # It holds already: nothing is changed.
    assert report['max_drop']['met'] and report['max_drop']['kept'] == 0
    assert len(report['max_drop']['attempts']) == 1
    model, report = quantize(network, images, evaluate, allowed)
    path = report['max_drop']
    first, *others = path['attempts']
    assert (
        path['met']
        and 1 <= len(others) <= 3
        and first['drop'] == pytest.approx(4 * allowed, rel=1e-4)
    )
    assert 100 - evaluate(model) == pytest.approx(others[-1]['drop'], abs=1e-3)
    assert others[-1]['drop'] <= allowed
    changed = others[-1]['changed']
    assert changed and set(changed) <= set(model.bits)
    for layer, (weight, activation) in changed.items():
        assert model.bits[layer] == (weight, activation)
        assert weight >= 2 and activation >= 4
    assert all(o['reused'] >= 1 for o in others)  # The stem has 8 bits.
    overrides = {
        name: dict(weight=w, activation=a) for name, (w, a) in changed.items()
    }
    again, _ = quantize(network, images, bit_overrides=overrides)
    assert equal(model, again)
    assert all(
        torch.equal(v, before[k]) for k, v in network.state_dict().items()
    )
    page = mmrazor_brecq.report.page(report)
    assert 'Accuracy control' in page and 'evaluate' in page


def test_a_target_that_cannot_hold_ends_with_8_bits(
    subject, images, warnings_log
):
    network, evaluate = subject
    model, report = quantize(network, images, evaluate, 0)
    path = report['max_drop']
    assert not path['met'] and len(path['attempts']) == 2
    assert set(model.bits.values()) == {(8, 8)}
    assert any('`max_drop`' in text for text in warnings_log)


def test_layers_may_stay_float_by_choice(subject, images):
    network, evaluate = subject
    model, report = quantize(network, images, evaluate, 0, up_to='float')
    changed = report['max_drop']['attempts'][-1]['changed']
    assert [32, 32] in changed.values()
    assert report['account']['left_float']


def test_what_cannot_be_measured_is_refused(subject, images):
    network, evaluate = subject
    for wrong in -1, float('nan'), float('inf'), 'half', True:
        with pytest.raises(ValueError, match='max_drop'):
            quantize(network, images, evaluate, wrong)
    with pytest.raises(ValueError, match='both or neither'):
        quantize(network, images, max_drop=0.5)
    with pytest.raises(ValueError, match='both or neither'):
        quantize(network, images, evaluate)
    for value in None, float('nan'), 'good':
        with pytest.raises(ValueError, match='`evaluate`'):
            quantize(network, images, lambda model, v=value: v, 0.5)


def test_a_network_with_nothing_to_give_back_says_so(
    subject, images, warnings_log
):
    network, evaluate = subject
    _, report = quantize(network, images, evaluate, 0, bit_overrides={'*': 3})
    path = report['max_drop']
    assert not path['met'] and len(path['attempts']) == 1
    assert any('bit_overrides' in text for text in warnings_log)
