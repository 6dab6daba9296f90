from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.graph import Unit
from mmrazor_brecq.mixed_precision import (
    FisherDiagError,
    FisherError,
    find_choices,
    measure,
    uniform,
)
from mmrazor_brecq.mixed_precision.sensitivity import quantized_choices
from mmrazor_brecq.objectives.likelihood import Categorical, CategoricalSketch


def kl(logits, other):
    p, q = logits.log_softmax(1), other.log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


def cached(batches):
    return CachedBatches(batches, [len(batch) for batch in batches])


def table(models, teacher, batches, kinds=('weight',), error=None, **kwargs):
    choices = find_choices(models, kinds)
    units = dict(
        measure(
            teacher,
            next(iter(models.values())).units,
            models,
            choices,
            cached(batches),
            error or FisherError(),
            **kwargs,
        )
    )
    return choices, units


@pytest.mark.parametrize('likelihood', [Categorical(), CategoricalSketch()])
def test_drawn_gradients_have_the_fisher_information(likelihood, generator):
    logits = torch.tensor([[2.0, 0.0, -1.0]]).repeat(20000, 1)
    logits.requires_grad_()
    likelihood([logits], generator).backward()
    p = logits[0].detach().softmax(0)
    fisher = logits.grad.T @ logits.grad / len(logits)
    expected = p.diag() - torch.outer(p, p)
    torch.testing.assert_close(fisher, expected, rtol=0, atol=0.01)


def test_errors_of_a_linear_unit_are_the_loss_to_second_order(generator):
    """In a linear network, Fisher information gives the divergence."""
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    network.requires_grad_(False)
    images = torch.randn(64, 4, generator=generator)
    unit = Unit('0', network[0], ('0',))
    target = network[0](images)
    change = 0.03 * torch.randn(target.shape, generator=generator)
    error = FisherError(draws=200)
    error.watch(network, unit, cached(images.split(8)), generator)
    found = error(target + change, target, slice(0, 64)) / 64
    expected = kl(network[1](target), network[1](target + change))
    assert found == pytest.approx(expected, rel=0.15)


def test_the_diagonal_does_not_see_errors_cancel(generator):
    """The head subtracts two outputs with the same error."""
    network = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2, bias=False))
    network.requires_grad_(False)
    network[1].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    images = torch.randn(16, 4, generator=generator)
    unit = Unit('0', network[0], ('0',))
    target = network[0](images)
    for error, cancels in ((FisherError(), True), (FisherDiagError(), False)):
        error.watch(network, unit, cached(images.split(8)), generator)
        assert (error(target + 1, target, slice(0, 16)) < 1e-6) is cancels
        assert error(target, target, slice(0, 16)) == 0


@pytest.mark.parametrize('name', ['residual', 'inverted', 'transformer'])
def test_the_divergence_of_one_layer_is_predicted(
    uniform_models, batches, name
):
    models, teacher = uniform_models(name, (2, 3, 4), activation=None)
    choices, units = table(
        models, teacher, batches, error=FisherError(draws=64)
    )
    parts = dict(teacher.named_modules())
    images = torch.cat(batches)
    pairs = []
    for choice in choices:
        for bits in models:
            with torch.no_grad():
                before = teacher(images)
                with quantized_choices(parts, models, {choice: bits}):
                    after = teacher(images)
            predicted = units[choice.unit].alone[choice.name][bits]
            pairs.append((predicted, kl(before, after)))
    predicted, measured = torch.tensor(pairs).log().T
    correlation = torch.corrcoef(torch.stack([predicted, measured]))[0, 1]
    assert correlation > 0.9


def test_pairs_make_two_layers_exact(uniform_models, batches):
    """The terms of two layers and of their pair sum to the measured loss."""
    models, teacher = uniform_models('residual', activation=None)
    choices, units = table(models, teacher, batches)
    unit = Unit('blocks.1', teacher.blocks[1], ())
    first, second, third = (c for c in choices if c.unit == unit.name)
    found = units[unit.name]
    assert set(found.pairs) == {
        (a.name, b.name)
        for a, b in itertools.combinations((first, second, third), 2)
    }
    images = torch.cat(batches)
    parts = dict(teacher.named_modules())
    error = FisherError()
    error.watch(
        teacher, unit, cached(batches), torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        inputs = teacher.blocks[0](teacher.stem(images))
        target = unit.module(inputs)
        for a, b in itertools.product(models, repeat=2):
            with quantized_choices(parts, models, {first: a, third: b}):
                output = unit.module(inputs)
            both = error(output, target, slice(0, len(images))) / len(images)
            predicted = (
                found.alone[first.name][a]
                + found.alone[third.name][b]
                + found.pairs[first.name, third.name][a, b]
            )
            assert predicted == pytest.approx(both, rel=1e-3)


def test_the_teacher_stays_as_it_was(uniform_models, batches):
    models, teacher = uniform_models(
        'residual', kinds=('weight', 'activation')
    )
    before = copy.deepcopy(teacher)
    table(models, teacher, batches, ('weight', 'activation'))
    for (name, x), y in zip(
        teacher.state_dict().items(), before.state_dict().values()
    ):
        assert torch.equal(x, y), name
    hooks = [m._forward_pre_hooks for m in teacher.modules()]
    assert not any(hooks)
    assert torch.equal(teacher(batches[0]), before(batches[0]))


def test_activations_have_sensitivities(uniform_models, batches):
    kinds = ('weight', 'activation')
    models, teacher = uniform_models('nested', kinds=kinds)
    choices, units = table(models, teacher, batches, kinds)
    for choice in choices:
        terms = units[choice.unit].alone[choice.name]
        assert terms[2] > terms[8] >= 0
    fuse = units['fuse.0']
    kinds_of_pairs = {
        tuple(name.rsplit('.', 1)[1] for name in pair) for pair in fuse.pairs
    }
    assert ('weight', 'activation') in kinds_of_pairs


def test_finished_units_are_left_out(uniform_models, batches):
    models, teacher = uniform_models('residual', activation=None)
    _, units = table(models, teacher, batches)
    names = list(units)
    _, left = table(models, teacher, batches, done=names[:1])
    assert list(left) == names[1:]
    for name in left:
        assert left[name] == units[name]


def test_units_run_as_often_as_documented(uniform_models, batches):
    models, teacher = uniform_models('residual', activation=None)
    calls = []
    teacher.blocks[0].register_forward_hook(
        lambda *args: calls.append(torch.is_grad_enabled())
    )
    table(models, teacher, batches, error=FisherError(draws=1))
    n, w = 2, 3
    measured = n * w + n * (n - 1) // 2 * w**2
    units = 2
    # One pass in float, and one for the gradients of every unit.
    assert calls.count(False) == len(batches) * (measured + 1)
    assert calls.count(True) == len(batches) * units


def test_the_model_stays_as_it_was(toy):
    from mmrazor_brecq.algorithms import BRECQ

    model = BRECQ(toy('residual'), dict(weight=dict(bits=5, symmetric=True)))
    other = uniform(model, 3, ('weight',))
    assert model.scheme.weight['bits'] == 5 and not model.prepared
    assert other.scheme.weight == dict(bits=3, symmetric=True)
    assert other.scheme.activation == model.scheme.activation
