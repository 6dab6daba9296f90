from __future__ import annotations

import copy

import pytest
import torch

from mmrazor_brecq.layers import quant_layers
from mmrazor_brecq.reconstruction import BlockReconstructor, WhenSettled
from mmrazor_brecq.registry import TASK_UTILS


@pytest.fixture
def layers(quantize):
    """Layers that learn how to round."""
    model, _ = quantize('residual', (3, 3))
    found = list(quant_layers(model).values())[:2]
    for layer in found:
        layer.weight_quantizer.fit(layer.stored_weight)
        layer.weight_quantizer.learn(layer.stored_weight)
        layer.weight_quantizer.train()
    return found


def turn(layers, share):
    """Let this share of the weights go to the other side."""
    for layer in layers:
        alpha = layer.weight_quantizer.rounding.alpha.data.view(-1)
        alpha[: round(share * len(alpha))] *= -1


def looks(settled, every):
    """Pass the iterations of one look; what the last of them says."""
    answers = [settled(i) for i in range(every)]
    assert not any(answers[:-1])
    return answers[-1]


def test_the_error_is_not_asked_for_while_the_rounding_moves(layers):
    settled = WhenSettled(share=0.1, every=3).watch(layers, judge=None)

    for _ in range(4):
        turn(layers, 0.2)
        assert not looks(settled, 3)


def test_it_ends_once_the_error_is_flat(layers):
    errors = [1.0, 0.9, 0.8, 0.795]
    stopping = WhenSettled(share=0.1, gain=0.05, every=3)
    settled = stopping.watch(layers, lambda: errors.pop(0))

    turn(layers, 0.05)  # As few as may.
    answers = [looks(settled, 3) for _ in range(4)]

    assert answers == [False, False, False, True]


def test_a_look_leaves_the_rounding_learning(layers):
    settled = WhenSettled(every=1).watch(layers, lambda: 1.0)
    settled(0)

    assert all(x.weight_quantizer.rounding.training for x in layers)


@pytest.mark.parametrize(
    'key, value', [('share', -0.1), ('gain', float('nan')), ('every', 0)]
)
def test_what_makes_no_sense_is_refused(key, value):
    with pytest.raises(ValueError, match=f'change `{key}` of WhenSettled'):
        WhenSettled(**{key: value})


def reconstructed(model, teacher, batches, stopping=None):
    learn = BlockReconstructor(
        10,
        batch_size=4,
        negligible=0.0,
        objective=dict(type='MSE'),
        stopping=stopping,
    )
    return list(model.reconstruct(teacher, batches, 0, learn))


def test_a_unit_that_has_settled_stops(quantize, batches):
    model, teacher = quantize('residual', (2, 8))
    stopping = dict(type='WhenSettled', share=1.0, gain=0.99, every=3)
    reports = reconstructed(model, teacher, batches, stopping)

    # The second look has one before it.
    assert {report.iterations for report in reports} == {6}
    assert all(layer.frozen for layer in quant_layers(model).values())


@TASK_UTILS.register_module()
class OnlyLooks:
    """Asks for the error, and lets everything go on."""

    errors: list = []

    def watch(self, layers, judge):
        return lambda i: self.errors.append(judge()) or False


def test_to_look_changes_no_bit(quantize, batches):
    looked, teacher = quantize('residual', (2, 4))
    plain = copy.deepcopy(looked)
    reconstructed(plain, teacher, batches)
    reports = reconstructed(looked, teacher, batches, dict(type='OnlyLooks'))

    for unit, report in zip(looked.units, reports):
        assert report.iterations == 10 * unit.depth
    assert len(OnlyLooks.errors) == sum(r.iterations for r in reports)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, looked.state_dict()[key]), key
