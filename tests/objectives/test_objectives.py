from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.functional import tensors, to_rows
from mmrazor_brecq.graph import (
    BlockPartition,
    LayerPartition,
    NetworkPartition,
    record,
    run_float,
)
from mmrazor_brecq.objectives import (
    MSE,
    FisherDiag,
    FisherLowRank,
    OfficialFisher,
)
from mmrazor_brecq.objectives.gram import explained_fraction
from mmrazor_brecq.objectives.likelihood import (
    Categorical,
    CategoricalSketch,
    Gaussian,
)
from mmrazor_brecq.registry import TASK_UTILS

OBJECTIVES = dict(
    mse=MSE,
    diag=FisherDiag,
    per_sample=lambda: FisherDiag(per_sample=True),
    low_rank=FisherLowRank,
    official=OfficialFisher,
)


#: The likelihood that :class:`FisherLowRank` has by default.
SKETCH = dict(type='CategoricalSketch', temperature=4.0)


def cached(batches):
    return CachedBatches(batches, [len(batch) for batch in batches])


def units_of(network, batches, partition=None):
    recording = record(network, batches[0])
    return (partition or BlockPartition())(network, recording)


def watched(objective, network, batches, partition=None, seed=0):
    """Show the network to an objective; return units and their outputs.

    Only the first call of a unit in a pass counts.
    """
    network.requires_grad_(False)
    units = units_of(network, batches, partition)
    generator = torch.Generator().manual_seed(seed)
    objective.watch(network, units, cached(batches), generator)
    return units, first_outputs(network, units, batches)


def first_outputs(network, units, batches):
    """Return the outputs of each unit's first call, batch by batch."""
    outputs = {unit.name: [] for unit in units}
    for batch in batches:
        found = {}
        hooks = [
            unit.module.register_forward_hook(
                lambda m, args, out, name=unit.name, found=found: (
                    found.setdefault(name, out) is None or None
                )
            )
            for unit in units
        ]
        with torch.no_grad():
            run_float(network, batch)
        for hook in hooks:
            hook.remove()
        for name, out in found.items():
            outputs[name].append(out)
    return outputs


def gradients(network, unit, batches, likelihood, seed=0):
    """Return each image's gradient at a unit's outputs, by definition."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for batch in batches:
        kept = []
        hook = unit.module.register_forward_hook(
            lambda m, args, out, kept=kept: kept.append(tensors(out))
        )
        with torch.enable_grad():
            out = run_float(network, batch.clone().requires_grad_())
            loss = likelihood(tensors(out), generator)
            found.append(torch.autograd.grad(loss, kept[0]))
        hook.remove()
    return [torch.cat(column) for column in zip(*found)]


def disturbed(structure, generator, size=0.1):
    """Return the structure with noise added to its tensors."""
    noise = [
        size * torch.randn(x.shape, generator=generator)
        for x in tensors(structure)
    ]
    if isinstance(structure, torch.Tensor):
        return structure + noise[0]
    return [x + n for x, n in zip(tensors(structure), noise)]


@pytest.mark.parametrize('name', OBJECTIVES)
def test_the_loss_is_zero_without_error_and_grows_with_the_error(
    name, each_toy, batches, generator
):
    objective = OBJECTIVES[name]()
    units, outputs = watched(objective, each_toy, batches)
    index = torch.arange(len(batches[0]))
    for unit in units:
        objective.begin(
            unit,
            [
                disturbed(out, torch.Generator().manual_seed(1))
                for out in outputs[unit.name]
            ],
            outputs[unit.name],
        )
        target = outputs[unit.name][0]
        noise = torch.Generator().manual_seed(2)
        near, far = (
            disturbed(target, noise.manual_seed(2), s) for s in (0.01, 0.1)
        )
        assert objective.loss(unit, target, target, index) == 0
        losses = [
            objective.loss(unit, out, target, index) for out in (near, far)
        ]
        assert losses[0].shape == ()
        torch.testing.assert_close(
            losses[1], losses[0] * 100, rtol=1e-2, atol=0
        )
        assert losses[0] > 0


def test_the_squared_errors_of_all_outputs_add_up(generator):
    a, b, c, d = torch.randn(4, 3, 2, generator=generator)
    index = torch.arange(3)
    unit = units_of(nn.Sequential(nn.Linear(2, 2)), [a])[0]

    single = MSE().loss(unit, a, b, index)
    torch.testing.assert_close(single, F.mse_loss(a, b))
    double = MSE().loss(unit, dict(x=[a, c]), dict(x=[b, d]), index)
    torch.testing.assert_close(double, single + F.mse_loss(c, d))


def test_labels_are_drawn_from_the_networks_own_softmax(generator):
    """The mean gradient is zero; the mean square is the Fisher information."""
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5]]).expand(20_000, -1)
    logits = logits.clone().requires_grad_()
    Categorical()([logits], generator).backward()

    p = logits[0].detach().softmax(-1)
    torch.testing.assert_close(
        logits.grad.mean(0), torch.zeros(4), atol=0.02, rtol=0
    )
    torch.testing.assert_close(
        logits.grad.square().mean(0), p * (1 - p), atol=0.02, rtol=0
    )


@pytest.mark.parametrize('kind', [Categorical, CategoricalSketch])
def test_a_temperature_divides_the_logits(kind, generator):
    logits = torch.randn(6, 5, generator=generator)
    slopes = {}
    for temperature, scale in (1.0, 1.0), (4.0, 4.0):
        hot = (logits * scale).requires_grad_()
        draws = torch.Generator().manual_seed(1)
        kind(temperature)([hot], draws).backward()
        slopes[temperature] = hot.grad * scale
    torch.testing.assert_close(slopes[4.0], slopes[1.0])


@pytest.mark.parametrize('temperature', [0.0, -1.0, float('nan')])
def test_a_wrong_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match='temperature=.*above 0'):
        Categorical(temperature)


def test_labels_are_drawn_for_every_position(generator):
    """Logits of several positions in an image, and of several heads."""
    logits = [
        torch.randn(3, 7, 5, generator=generator, requires_grad=True),
        torch.randn(3, 4, generator=generator, requires_grad=True),
    ]
    Categorical()(logits, generator).backward()

    for x in logits:
        # softmax minus one-hot: rows sum to zero, one entry is negative.
        torch.testing.assert_close(
            x.grad.sum(-1), torch.zeros(x.shape[:-1]), atol=1e-6, rtol=0
        )
        assert ((x.grad < 0).sum(-1) == 1).all()


def test_regression_measures_the_jacobian(generator):
    weight = torch.randn(6, 4, generator=generator)
    x = torch.randn(20_000, 4, generator=generator, requires_grad=True)
    Gaussian()([F.linear(x, weight)], generator).backward()

    torch.testing.assert_close(
        x.grad.square().mean(0), weight.square().sum(0), rtol=0.05, atol=0
    )


@pytest.mark.parametrize('temperature', [1.0, 2.5])
def test_the_divergence_is_half_the_fisher_of_a_small_error(
    temperature, generator
):
    likelihood = Categorical(temperature)
    goals = [torch.randn(5, n, generator=generator).double() for n in (4, 7)]
    errors = [1e-3 * torch.randn(x.shape, generator=generator) for x in goals]
    outputs = [goal + error for goal, error in zip(goals, errors)]

    expected = 0.0
    for goal, error in zip(goals, errors):
        p = (goal / temperature).softmax(-1)
        variance = (p * error**2).sum(-1) - (p * error).sum(-1) ** 2
        expected += float(variance.mean()) / 2 / temperature**2
    found = likelihood.divergence(outputs, goals)
    assert float(found) == pytest.approx(expected, rel=1e-2)
    squares = sum(float(error.square().sum(-1).mean()) for error in errors)
    found = Gaussian().divergence(outputs, goals)
    assert float(found) == pytest.approx(squares / 2, rel=1e-3)


@pytest.mark.parametrize('temper', [1.0, 0.5])
def test_diagonal_weights_are_the_mean_squared_gradients(temper, toy, batches):
    network = toy('residual')
    objective = FisherDiag(temper=temper)
    units, outputs = watched(objective, network, batches)
    for unit in units:
        (grad,) = gradients(network, unit, batches, Categorical())
        weight = grad.square().mean(0).pow(temper)
        weight = weight / weight.mean()
        target = outputs[unit.name][1]
        error = torch.randn_like(target)

        found = objective.loss(unit, target + error, target, torch.arange(4))
        torch.testing.assert_close(
            found, (error.square() * weight).mean(), rtol=1e-3, atol=0
        )


@pytest.mark.parametrize('images', [5, 7])
def test_the_mean_is_over_the_number_of_images_in_the_config(
    images, toy, batches
):
    some, only = FisherDiag(images=images), FisherDiag()
    watched(some, toy('residual'), batches)
    rest = [batches[0], batches[1][: images - 5]]
    watched(only, toy('residual'), [x for x in rest if len(x)])

    assert some.weights.keys() == only.weights.keys() != set()
    for key, weight in some.weights.items():
        assert torch.equal(weight, only.weights[key])


def test_weights_per_sample_belong_to_the_images_of_the_batch(toy, batches):
    network = toy('residual')
    objective = FisherDiag(per_sample=True, temper=1.0)
    units, outputs = watched(objective, network, batches)
    index = torch.tensor([7, 0, 7, 11])
    for unit in units:
        (grad,) = gradients(network, unit, batches, Categorical())
        weight = grad.square() / grad.square().mean()
        target = torch.cat(outputs[unit.name])[index]
        error = torch.randn_like(target)

        found = objective.loss(unit, target + error, target, index)
        torch.testing.assert_close(
            found, (error.square() * weight[index]).mean(), rtol=1e-3, atol=0
        )


@pytest.mark.parametrize(
    'name', ['diag', 'per_sample', 'low_rank', 'official']
)
def test_modules_after_a_unit_may_write_to_its_output(
    name, batches, generator
):
    """The gradient is with respect to the output before it is changed."""
    losses = []
    for inplace in False, True:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.ReLU(inplace),
            nn.Conv2d(3, 4, 1),
            nn.Hardtanh(-0.1, 0.2, inplace),
            nn.Flatten(),
            nn.Linear(256, 3),
        )
        objective = OBJECTIVES[name]()
        network.requires_grad_(False)
        units = units_of(network, [batches[0].clone()])
        images = [batch.clone() for batch in batches]
        objective.watch(
            network, units, cached(images), torch.Generator().manual_seed(0)
        )
        with torch.no_grad():
            outputs = [network[1](x.relu()) for x in batches]
        objective.begin(units[0], [out + 0.1 for out in outputs], outputs)
        target = outputs[0]
        out = target + torch.linspace(0, 1, target.numel()).view_as(target)
        losses.append(objective.loss(units[0], out, target, torch.arange(5)))

    torch.testing.assert_close(*losses)


def fisher(network, unit, batches, temper=1.0):
    """Return the Fisher matrix at a unit's first output, by definition."""
    grad = gradients(network, unit, batches, TASK_UTILS.build(SKETCH))[0]
    grad = grad.reshape(sum(map(len, batches)), -1).double()
    values, vectors = torch.linalg.eigh(grad.T @ grad / len(grad))
    tempered = values.clamp_min(0).pow(temper)
    tempered[values < 1e-6 * values.max()] = 0
    return vectors * (tempered / tempered.sum()) @ vectors.T


@pytest.mark.parametrize('temper', [1.0, 0.5])
def test_with_full_rank_the_error_uses_the_whole_matrix(
    temper, each_toy, batches
):
    objective = FisherLowRank(even=0.0, temper=temper)
    units, outputs = watched(objective, each_toy, batches)
    index = torch.tensor([3, 9, 3])
    for unit in units:
        target = first_of(outputs[unit.name])
        objective.begin(unit, outputs[unit.name], outputs[unit.name])
        matrix = fisher(each_toy, unit, batches, temper)
        error = 0.1 * torch.sin(torch.arange(target[index].numel()) ** 2.0)
        error = error.view(target[index].shape)

        found = objective.error(
            unit, 0, target[index] + error, target[index], index
        )
        flat = error.flatten(1).double()
        expected = torch.einsum('nd,de,ne->n', flat, matrix, flat).mean()
        torch.testing.assert_close(
            float(found), float(expected), rtol=1e-3, atol=0
        )


def first_of(outputs):
    """Return the first output tensor of a unit, for all images."""
    return torch.cat([tensors(out)[0] for out in outputs])


@pytest.mark.parametrize('rank', [1, 3])
def test_with_low_rank_the_largest_eigenvectors_remain(rank, toy, batches):
    network = toy('residual')
    objective = FisherLowRank(even=0.0, rank=rank, temper=1.0)
    units, outputs = watched(objective, network, batches)
    for unit in units:
        objective.begin(unit, outputs[unit.name], outputs[unit.name])
        matrix = fisher(network, unit, batches)
        target = outputs[unit.name][0]
        index = torch.arange(len(target))

        def loss(error, unit=unit, target=target, index=index):
            error = error.view(target.shape[1:]).float()
            return float(objective.loss(unit, target + error, target, index))

        values, vectors = torch.linalg.eigh(matrix)
        share = values[-rank:] / values[-rank:].sum()
        for k in range(rank):
            assert loss(vectors[:, k - rank]) == pytest.approx(
                float(share[k]), rel=1e-3
            )
        assert loss(vectors[:, -rank - 1]) < 1e-6


def explained(gradients, rank):
    """Return the fraction that other images explain of N gradients."""
    return explained_fraction(gradients.double() @ gradients.double().T, rank)


def test_common_directions_are_explained_and_noise_is_not(generator):
    """Noise has a direction of its own for each image."""
    shared = torch.randn(64, 4, generator=generator)
    axes = torch.linalg.qr(torch.randn(300, 4, generator=generator))[0]
    assert explained(shared @ axes.T, 8) == pytest.approx(1)
    assert explained(torch.eye(64), 8) == pytest.approx(0, abs=1e-12)
    noise = torch.randn(64, 300, generator=generator)
    inside = torch.linalg.svdvals(noise).square()
    assert inside[:8].sum() / inside.sum() > 0.2
    assert explained(noise, 8) < 0.05
    half = shared @ axes.T
    half = half / half.norm() + noise / noise.norm()
    assert explained(half, 8) == pytest.approx(0.5, abs=0.07)


def test_the_explained_fraction_is_that_of_a_projection(generator):
    images, rank = 10, 3
    grad = torch.randn(images, 6, generator=generator).double()
    grad[:, 0] *= 4
    projected = 0.0
    for part in range(4):
        one = torch.arange(images) % 4 == part
        axes = torch.linalg.svd(grad[~one])[2][:rank]
        projected += float((grad[one] @ axes.T).square().sum())
    expected = projected / float(grad.square().sum())
    assert explained(grad, rank) == pytest.approx(expected)
    assert 0.3 < expected < 1


@pytest.mark.parametrize('images', [1, 2, 3])
def test_a_single_image_explains_nothing_and_two_explain_each_other(images):
    alike = torch.ones(images, 5)
    assert explained(alike, 2) == pytest.approx(float(images > 1))


def test_the_matrix_explains_less_the_more_classes_there_are(generator):
    """Gradients of few classes span few directions."""
    torch.manual_seed(0)
    images = torch.randn(48, 64, 1, 1, generator=generator)
    fractions = []
    for classes in (4, 400):
        network = nn.Sequential(
            nn.Conv2d(64, 64, 1),
            nn.Flatten(),
            nn.Linear(64, classes),
        ).eval()
        objective = FisherLowRank()
        units, outputs = watched(
            objective, network, list(images.split(16)), LayerPartition()
        )
        first = units[0]
        goals = outputs[first.name]
        nearest = [disturbed(goal, generator) for goal in goals]
        objective.begin(first, nearest, goals)
        fractions.append(objective.explained[first.name, 0])
    assert fractions[0] > 0.95
    assert fractions[1] < 0.8 * fractions[0]


@pytest.mark.parametrize('size', [0.0, 1e-4])
def test_with_small_errors_of_nearest_rounding_only_the_diagonal_counts(
    size, each_toy, batches, generator
):
    both, diagonal = FisherLowRank(), FisherDiag(likelihood=SKETCH)
    for objective in both, diagonal:
        units, outputs = watched(objective, each_toy, batches)
    for unit in units:
        goals = outputs[unit.name]
        both.begin(
            unit, [disturbed(goal, generator, size) for goal in goals], goals
        )
        out = disturbed(goals[0], generator)
        index = torch.arange(5)

        torch.testing.assert_close(
            both.loss(unit, out, goals[0], index),
            diagonal.loss(unit, out, goals[0], index),
            rtol=1e-3,
            atol=0,
        )


def test_directions_are_converted_to_low_precision_once(
    each_toy, batches, generator
):
    objective = FisherLowRank()
    units, outputs = watched(objective, each_toy, batches)
    for unit in units:
        goals = outputs[unit.name]
        out = disturbed(goals[0], generator)
        objective.begin(unit, [out], goals[:1])

        def loss(found, unit=unit, goal=goals[0]):
            return objective.loss(unit, found, goal, torch.arange(5))

        exact = loss(out)
        assert not objective.cast_directions
        low = loss(tree_map(torch.Tensor.bfloat16, out))
        once = dict(objective.cast_directions)
        loss(tree_map(torch.Tensor.bfloat16, out))

        torch.testing.assert_close(low, exact, rtol=0.03, atol=0)
        assert torch.equal(loss(out), exact)
        assert once and set(once) == set(objective.directions)
        for key, directions in objective.cast_directions.items():
            assert directions is once[key]
            assert directions.dtype == torch.bfloat16
        objective.end(unit)
        assert not objective.cast_directions


@pytest.mark.parametrize('objective', [FisherDiag, FisherLowRank])
@pytest.mark.parametrize(
    'order', [torch.contiguous_format, torch.channels_last]
)
def test_weights_are_reordered_like_the_outputs_once(
    objective, order, toy, batches, generator
):
    objective = objective()
    units, outputs = watched(objective, toy('residual'), batches)
    unit = units[0]
    goals = [x.contiguous(memory_format=order) for x in outputs[unit.name]]
    objective.begin(unit, [disturbed(goals[0], generator)], goals)
    before = objective.weights[unit.name, 0].clone()
    out = disturbed(goals[0], generator)
    error = objective.loss(unit, out, goals[0], torch.arange(5))
    weight = objective.weights[unit.name, 0]

    assert torch.equal(weight, before)
    assert to_rows(weight, out).data_ptr() == weight.data_ptr()
    assert objective.loss(unit, out, goals[0], torch.arange(5)) == error


def test_outputs_of_nearest_rounding_are_freed_batch_by_batch(
    toy, batches, generator
):
    objective = FisherLowRank()
    units, outputs = watched(objective, toy('residual'), batches)
    goals = outputs[units[0].name]
    given = []

    def one_by_one(offset):
        for k in range(len(goals)):
            assert not [ref for ref in given[:-1] if ref() is not None]
            yield fresh(goals[k] + offset)

    def fresh(x):
        given.append(weakref.ref(x))
        return x

    objective.begin(units[0], one_by_one(0.1), one_by_one(0))
    assert len(given) == 2 * len(goals) > 2


@pytest.mark.parametrize('even', [0.0, 0.05, 1.0])
def test_the_matrix_counts_more_the_larger_the_error_of_nearest_rounding(
    even, each_toy, batches, generator
):
    """It does not depend on the ratio of both errors."""
    objective = FisherLowRank(even=even)
    diagonal = FisherDiag(likelihood=SKETCH)
    units, outputs = watched(objective, each_toy, batches)
    watched(diagonal, each_toy, batches)
    for unit in units:
        goals = outputs[unit.name]
        nearest = [disturbed(goal, generator) for goal in goals]
        objective.begin(unit, nearest, goals)

        directions = dict(objective.directions)
        for name, i in directions:

            def mean(objective, found, unit=unit, goals=goals, i=i):
                return sum(
                    len(batch)
                    * objective.error(
                        unit,
                        i,
                        tensors(out)[i],
                        tensors(goal)[i],
                        torch.arange(len(batch)),
                    )
                    for batch, out, goal in zip(batches, found, goals)
                )

            error = mean(diagonal, nearest)
            torch.testing.assert_close(
                mean(objective, nearest), error, rtol=1e-3, atol=0
            )
            del objective.directions[name, i]
            zeros = [tree_map(torch.zeros_like, goal) for goal in goals]
            share = (error / mean(diagonal, zeros)) ** 2
            share = share / (share + even**2) * objective.explained[name, i]
            torch.testing.assert_close(
                mean(objective, nearest),
                (1 - share) * error,
                rtol=1e-3,
                atol=1e-6,
            )
        assert directions


def test_large_outputs_have_fewer_eigenvectors(toy, batches, monkeypatch):
    monkeypatch.setattr(FisherLowRank, 'max_elements', 600)
    objective = FisherLowRank()
    units, outputs = watched(objective, toy('residual'), batches)
    for unit in units:
        objective.begin(unit, outputs[unit.name], outputs[unit.name])
        directions = objective.directions[unit.name, 0]
        elements = directions[0].numel()
        assert len(directions) == min(4, 600 // elements)


def test_gradients_are_cached_in_the_store_of_the_images_until_used(
    toy, batches
):
    objective = FisherLowRank(images=7)
    network = toy('residual')
    units = units_of(network, batches)
    images = cached(batches)
    before = images.store.cached_bytes
    network.requires_grad_(False)
    objective.watch(network, units, images, torch.Generator().manual_seed(0))
    outputs = first_outputs(network, units, batches)
    elements = sum(outputs[unit.name][0][0].numel() for unit in units)
    assert images.store.cached_bytes - before == 4 * 7 * elements

    for unit in units[1:]:
        objective.begin(unit, outputs[unit.name], outputs[unit.name])
    for unit in units:  # `begin` was not called for the first.
        objective.end(unit)
    assert images.store.cached_bytes == before
    assert not (objective.weights or objective.directions)


class Table(nn.Module):
    """Network with a unit that has one output row for all images."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Summary()])
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x, mean = self.blocks[0](x)
        return self.head(x.mean((2, 3)) + mean)


class Summary(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.a(x), self.b(x).mean((0, 2, 3))[None]


def test_elements_of_an_output_shared_by_all_images_count_the_same(batches):
    objective = FisherLowRank()
    units, outputs = watched(objective, Table().eval(), batches)
    goals = outputs[units[0].name]
    objective.begin(units[0], goals, goals)

    (key,) = objective.directions
    assert key[1] == 0
    image, row = goals[0]
    found = objective.loss(
        units[0], [image, row + 2], [image, row], torch.arange(5)
    )
    torch.testing.assert_close(found, torch.tensor(4.0))


def test_with_gradients_that_are_not_finite_the_error_is_plain_mse(
    toy, batches
):
    network = toy('residual')
    broken = [batches[0].clone().fill_(torch.inf), *batches[1:]]
    objective = FisherLowRank()
    units, _ = watched(objective, network, broken)
    outputs = first_outputs(network, units, batches)
    unit = units[0]
    goals = outputs[unit.name]
    objective.begin(unit, goals, goals)

    found = objective.loss(unit, goals[1] + 2, goals[1], torch.arange(4))
    torch.testing.assert_close(found, torch.tensor(4.0))


@pytest.mark.parametrize('per_sample', [False, True])
def test_a_constant_error_has_its_square_as_loss(
    per_sample, each_toy, batches
):
    """The weights of each tensor have mean 1."""
    objective = FisherDiag(per_sample=per_sample, temper=1.0)
    units, outputs = watched(objective, each_toy, batches)
    everything = torch.arange(12)
    for unit in units:
        columns = zip(*(tensors(out) for out in outputs[unit.name]))
        target = [torch.cat(column) for column in columns]
        moved = [x + 0.1 for x in target]

        found = objective.loss(unit, moved, target, everything)
        expected = torch.tensor(0.01 * len(target))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize('per_sample', [False, True])
def test_with_an_exponent_of_zero_the_diagonal_is_plain_mse(
    per_sample, toy, batches, generator
):
    objective = FisherDiag(per_sample=per_sample, temper=0.0)
    units, outputs = watched(objective, toy('nested'), batches)
    index = torch.arange(5)
    for unit in units:
        target = outputs[unit.name][0]
        out = disturbed(target, generator)
        torch.testing.assert_close(
            objective.loss(unit, out, target, index),
            MSE().loss(unit, out, target, index),
        )


class Windows(nn.Module):
    """Network whose units see several windows of each image."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, 2)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.embed(x).unflatten(2, (2, 2)).flatten(3, 4)
        n = len(x)
        x = x.permute(0, 2, 3, 1).reshape(n * 2, 8, 6)
        x = self.inner(x).view(n, 2, 8, 6)
        return self.head(x.mean((1, 2)).relu())


@pytest.mark.parametrize('name', OBJECTIVES)
def test_windows_belong_to_their_image(name, batches, generator):
    network = Windows().eval()
    objective = OBJECTIVES[name]()
    units, outputs = watched(objective, network, batches, LayerPartition())
    unit = units[1]
    assert unit.name == 'inner'
    objective.begin(
        unit,
        [disturbed(out, generator) for out in outputs['inner']],
        outputs['inner'],
    )
    index = torch.tensor([6, 2])
    whole = torch.cat(outputs['inner']).unflatten(0, (12, 2))
    target = whole[index].flatten(0, 1)
    error = torch.randn(target.shape, generator=generator)
    found = objective.loss(unit, target + error, target, index)

    if name == 'low_rank':
        alone = FisherLowRank(even=0.0)
        units, _ = watched(alone, network, batches, LayerPartition())
        alone.begin(units[1], outputs['inner'], outputs['inner'])
        matrix = fisher(network, unit, batches, 0.5)
        flat = error.reshape(2, -1).double()
        expected = torch.einsum('nd,de,ne->n', flat, matrix, flat).mean()
        found = alone.loss(unit, target + error, target, index)
        assert float(found) == pytest.approx(float(expected), rel=1e-2)
    elif name == 'per_sample':
        (grad,) = gradients(network, unit, batches, Categorical())
        grad = grad.reshape(12, -1)
        error = error.reshape(2, -1)
        weight = grad.abs() / grad.abs().mean()
        expected = (weight[index] * error.square()).mean()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)
    else:
        assert found > 0


@pytest.mark.parametrize('name', ['diag', 'per_sample'])
def test_only_the_first_call_of_a_unit_counts(name, toy, batches):
    """Such as a head on a pyramid, whose levels differ in size."""
    network = toy('shared')
    objective = OBJECTIVES[name]()
    units, outputs = watched(objective, network, batches, LayerPartition())
    unit = next(u for u in units if u.name == 'head.0.conv')
    (grad,) = gradients(network, unit, batches, Categorical())
    target = torch.cat(outputs[unit.name])
    assert grad.shape == target.shape == (12, 8, 8, 8)
    index = torch.tensor([8, 1, 4])
    error = torch.randn(3, 8, 8, 8)
    target = target[index]

    found = objective.loss(unit, target + error, target, index)
    if name == 'diag':
        weight = grad.square().mean(0, keepdim=True).sqrt()
        weight = (weight / weight.mean()).expand_as(grad)[index]
        expected = (weight * error.square()).mean()
    elif name == 'per_sample':
        weight = (grad.abs() / grad.abs().mean())[index]
        expected = (weight * error.square()).mean()
    else:
        change = (grad[index] * error).flatten(1).sum(1).square().mean()
        expected = change / grad.square().flatten(1).sum(1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)


class Forgets(nn.Module):
    """Network whose unit has two outputs; the second reaches the loss."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Pair()])
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        _, x = self.blocks[0](x)
        return self.head(x.mean((2, 3)))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.a(x), self.b(x)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_elements_of_an_output_without_gradient_count_the_same(
    name, batches, generator
):
    network = Forgets().eval()
    objective = OBJECTIVES[name]()
    units, outputs = watched(objective, network, batches)
    unit = units[0]
    objective.begin(
        unit,
        [disturbed(out, generator) for out in outputs[unit.name]],
        outputs[unit.name],
    )
    unused, used = target = outputs[unit.name][0]
    index = torch.arange(5)
    error = torch.randn(unused.shape, generator=generator)

    found = objective.loss(unit, [unused + error, used], target, index)
    torch.testing.assert_close(found, error.square().mean())
    assert objective.loss(unit, [unused, used + 1], target, index) > 0


def test_the_official_weights_are_nearly_equal(toy, batches, generator):
    """They are ``(|g| + 1)^2``, and ``g`` is close to zero."""
    network = toy('residual')
    objective = OfficialFisher()
    units, outputs = watched(objective, network, batches)
    index = torch.arange(5)
    for unit in units:
        noisy = [disturbed(out, generator, 0.01) for out in outputs[unit.name]]
        objective.begin(unit, noisy, outputs[unit.name])
        target = outputs[unit.name][0]
        out = disturbed(target, generator)
        ratio = objective.loss(unit, out, target, index) / MSE().loss(
            unit, out, target, index
        )
        assert 1 <= ratio < 1.05


def test_the_official_weights_come_from_the_divergence(toy, batches):
    network = toy('residual')
    objective = OfficialFisher()
    units, outputs = watched(objective, network, batches)
    (unit,) = [u for u in units if u.name == 'blocks.1']
    noisy = [out + torch.randn_like(out) for out in outputs[unit.name]]
    objective.begin(unit, noisy, outputs[unit.name])

    leaf = noisy[1].clone().requires_grad_()
    logits = network.head(leaf.mean((2, 3)))
    goal = network(batches[1])
    F.kl_div(
        logits.log_softmax(-1), goal.softmax(-1), reduction='batchmean'
    ).backward()
    weight = (leaf.grad.abs() + 1).square()
    target = outputs[unit.name][1]
    error = torch.randn_like(target)
    found = objective.loss(unit, target + error, target, torch.arange(5, 9))
    torch.testing.assert_close(found, (weight * error.square()).mean())


@pytest.mark.parametrize('name', OBJECTIVES)
def test_the_teacher_is_not_changed(name, toy, batches):
    network = toy('residual')
    state = {k: v.clone() for k, v in network.state_dict().items()}
    objective = OBJECTIVES[name]()
    units, outputs = watched(objective, network, batches)
    objective.begin(units[1], *[outputs[units[1].name]] * 2)

    for module in network.modules():
        assert not module._forward_hooks
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize('name', ['diag', 'per_sample', 'low_rank'])
def test_the_whole_network_may_be_one_unit(name, toy, batches):
    objective = OBJECTIVES[name]()
    units, outputs = watched(
        objective, toy('residual'), batches, NetworkPartition()
    )
    target = outputs[''][0]
    objective.begin(units[0], outputs[''], outputs[''])

    loss = objective.loss(units[0], target + 1, target, torch.arange(5))
    assert loss.isfinite()


def test_the_same_seed_gives_the_same_weights(toy, batches, generator):
    network = toy('residual')
    losses = []
    for seed in 0, 0, 1:
        objective = FisherDiag(temper=1.0)
        units, outputs = watched(objective, network, batches, seed=seed)
        target = outputs[units[1].name][0]
        out = target + torch.linspace(0, 1, target.numel()).view_as(target)
        losses.append(objective.loss(units[1], out, target, torch.arange(5)))

    assert losses[0] == losses[1] != losses[2]


def test_an_objective_of_another_package_is_built_by_its_name():
    @TASK_UTILS.register_module()
    class AbsoluteForTheTest(MSE):
        def error(self, unit, i, output, target, index):
            return (output - target).abs().mean()

    try:
        objective = TASK_UTILS.build(dict(type='AbsoluteForTheTest'))
        x = torch.ones(2, 3)
        index = torch.arange(2)
        assert objective.loss(None, [x, x * 2], [x, x * 5], index) == 3
    finally:
        TASK_UTILS.module_dict.pop('AbsoluteForTheTest')
