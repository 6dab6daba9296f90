from __future__ import annotations

import copy
import math

import pytest
import torch

from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.layers import activation_quantizers, quant_layers
from mmrazor_brecq.reconstruction import (
    WHOLE,
    BlockReconstructor,
    NearestRounding,
    NetworkRefiner,
)


def refiner(iterations=40, **kwargs):
    return NetworkRefiner(iterations, batch_size=6, augment=[], **kwargs)


@pytest.fixture
def rounded(quantize, batches):
    """A quantized network, its teacher and the images."""
    model, teacher = quantize('residual', (2, 4))
    list(model.reconstruct(teacher, batches, 0, NearestRounding()))
    images = CachedBatches(batches, [len(batch) for batch in batches])
    return model, teacher, images


def states(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('likelihood', ['Categorical', 'Gaussian'])
def test_the_divergence_from_the_float_network_falls(likelihood, rounded):
    model, teacher, images = rounded
    report = refiner(likelihood=dict(type=likelihood))(
        model.architecture, teacher, images, 3, seed=0
    )

    assert report.accepted and report.after < 0.9 * report.before
    assert report.name == WHOLE
    assert report.layers == list(quant_layers(model.architecture))


def test_all_weights_are_integers_afterwards(rounded):
    model, teacher, images = rounded
    before = states(model)
    refiner()(model.architecture, teacher, images, 3, seed=0)
    after = states(model)

    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype
        assert before[key].shape == after[key].shape
    for layer in quant_layers(model.architecture).values():
        low, high = layer.weight_quantizer.grid.range
        assert layer.frozen and not layer.weight_quantizer.trainable()
        assert (
            low
            <= int(layer.stored_weight.min())
            <= int(layer.stored_weight.max())
        )
        assert int(layer.stored_weight.max()) <= high
    for quantizer in activation_quantizers(model.architecture):
        assert not quantizer.trainable()
    assert not any(p.requires_grad for p in model.parameters())


def test_activation_scales_learn_except_those_of_8_bits(rounded):
    model, teacher, images = rounded
    quantizers = activation_quantizers(model.architecture)
    before = [float(quantizer.scale) for quantizer in quantizers]
    refiner()(model.architecture, teacher, images, 3, seed=0)

    assert {quantizer.grid.bits for quantizer in quantizers} == {4, 8}
    for quantizer, scale in zip(quantizers, before):
        learned = float(quantizer.scale) != scale
        assert learned == (quantizer.grid.bits < 8)


@pytest.mark.parametrize('iteration', [0, 20])
def test_a_pass_that_is_not_finite_ends_and_is_undone(
    iteration, rounded, monkeypatch
):
    model, teacher, images = rounded
    before = states(model)
    refine = refiner(iterations=200)
    divergence = refine.likelihood.divergence
    calls = []

    def broken(outputs, goals):
        error = divergence(outputs, goals)
        calls.append(torch.is_grad_enabled())
        return error * (math.nan if sum(calls) > iteration else 1)

    monkeypatch.setattr(refine.likelihood, 'divergence', broken)
    report = refine(model.architecture, teacher, images, 3, seed=0)

    assert report.note == (
        f'NaN or infinity in iteration {iteration}: left as it was'
    )
    assert not report.accepted and report.after == report.before
    assert equal(states(model), before)
    assert sum(calls) <= iteration + 10


def test_thawing_and_freezing_changes_no_bit(rounded):
    model, teacher, images = rounded
    before = states(model)
    for name, layer in quant_layers(model.architecture).items():
        layer.thaw(teacher.get_submodule(name).weight)
        layer.weight_quantizer.learn(
            layer.weight, dict(type='StraightThrough')
        )
        layer.freeze()

    assert equal(states(model), before)


def test_a_pass_that_does_not_help_is_undone(rounded):
    model, teacher, images = rounded
    before = states(model)
    report = refiner(rounding_lr=1e3, bias_lr=1e3)(
        model.architecture, teacher, images, 3, seed=0
    )

    assert not report.accepted and 'left as it was' in report.note
    assert equal(states(model), before)


class Counter:
    """Augmentation that counts the images."""

    def __init__(self):
        self.images = 0

    def __call__(self, images, generator):
        self.images += len(images)
        return images + torch.rand(1, generator=generator)


def test_validation_has_the_same_variations_each_time(rounded):
    model, teacher, images = rounded
    refine = refiner(draws=5)
    refine.iterations = 0
    counter = Counter()
    refine.augment = [counter]
    report = refine(model.architecture, teacher, images, 3, seed=0)

    assert counter.images == 3 * 5 * 3  # the teacher's, before, after
    assert report.after == report.before and not report.accepted


def test_images_that_are_not_varied_are_validated_once(rounded):
    model, teacher, images = rounded
    refine = refiner(draws=5)
    refine.iterations = 0
    looks = []
    take = images.take
    images.take = lambda index: looks.append(len(index)) or take(index)
    refine(model.architecture, teacher, images, 3, seed=0)

    assert sum(looks) == 3 * 3


def test_the_same_seed_gives_the_same_bits(rounded):
    model, teacher, images = rounded
    other = copy.deepcopy(model)
    for each in model, other:
        refiner(5)(each.architecture, teacher, images, 3, seed=4)

    assert equal(states(model), states(other))


def test_the_pass_follows_the_units_and_is_resumed_like_one(quantize, batches):
    def learner():
        return BlockReconstructor(
            4, batch_size=4, refiner=dict(type='NetworkRefiner', iterations=5)
        )

    model, teacher = quantize('residual', (2, 4))
    fresh = copy.deepcopy(model)
    done = {}
    for report in model.reconstruct(teacher, batches, 0, learner()):
        done[report.name] = {
            k: v.clone()
            for k, v in model.part(report.name).state_dict().items()
        }

    assert list(done) == [*(unit.name for unit in model.units), WHOLE]
    assert len(report.losses) == 1
    reports = list(
        fresh.reconstruct(teacher, batches, 0, learner(), done=done)
    )
    assert not reports and equal(states(fresh), states(model))
