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


def turn(layers, fraction):
    """Round this fraction of the weights to their other side."""
    for layer in layers:
        alpha = layer.weight_quantizer.rounding.alpha.data.view(-1)
        alpha[: round(fraction * len(alpha))] *= -1


def looks(settled, every):
    """Run the iterations up to a look, and return its answer."""
    answers = [settled(i) for i in range(every)]
    assert not any(answers[:-1])
    return answers[-1]


def test_the_error_is_not_computed_while_the_rounding_changes(layers):
    settled = WhenSettled(share=0.1, every=3).watch(layers, validate=None)

    for _ in range(4):
        turn(layers, 0.2)
        assert not looks(settled, 3)


def test_learning_ends_once_the_error_no_longer_falls(layers):
    errors = [1.0, 0.9, 0.8, 0.795]
    stopping = WhenSettled(share=0.1, gain=0.05, every=3)
    settled = stopping.watch(layers, lambda: errors.pop(0))

    turn(layers, 0.05)  # Fewer than `share`.
    answers = [looks(settled, 3) for _ in range(4)]

    assert answers == [False, False, False, True]


def test_a_look_keeps_the_rounding_in_training_mode(layers):
    settled = WhenSettled(every=1).watch(layers, lambda: 1.0)
    settled(0)

    assert all(x.weight_quantizer.rounding.training for x in layers)


@pytest.mark.parametrize(
    'key, value', [('share', -0.1), ('gain', float('nan')), ('every', 0)]
)
def test_an_argument_out_of_range_is_refused(key, value):
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

    # The first look has no error to compare with.
    assert {report.iterations for report in reports} == {6}
    assert all(layer.frozen for layer in quant_layers(model).values())


@TASK_UTILS.register_module()
class NeverEnds:
    """Rule that computes the error and never ends learning."""

    errors: list = []

    def watch(self, layers, validate):
        return lambda i: self.errors.append(validate()) or False


def test_computing_the_error_changes_no_bit(quantize, batches):
    looked, teacher = quantize('residual', (2, 4))
    plain = copy.deepcopy(looked)
    reconstructed(plain, teacher, batches)
    reports = reconstructed(looked, teacher, batches, dict(type='NeverEnds'))

    for unit, report in zip(looked.units, reports):
        assert report.iterations == 10 * unit.depth
    assert len(NeverEnds.errors) == sum(r.iterations for r in reports)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, looked.state_dict()[key]), key
