from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from mmrazor_brecq.activations import CachedBatches, Stream, images_per_pass
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.functional import annealed_beta, rounding_penalty
from mmrazor_brecq.graph import run_float
from mmrazor_brecq.layers import activation_quantizers, quant_layers
from mmrazor_brecq.objectives import MSE, takes_low_precision
from mmrazor_brecq.quantizers import ActivationQuantizer, AdaRound
from mmrazor_brecq.reconstruction import (
    BlockReconstructor,
    NearestRounding,
    UnitData,
    UnitReport,
)
from mmrazor_brecq.reconstruction.ranges import fit_scales
from mmrazor_brecq.runtime import autocast

#: Rates at which nothing of use is learned.
RUIN = dict(rounding_lr=1e3, weight_scale_lr=3.0, activation_scale_lr=3.0)


def learner(iterations=6, **kwargs):
    kwargs = {**dict(objective=dict(type='MSE'), negligible=0.0), **kwargs}
    return BlockReconstructor(iterations, batch_size=4, **kwargs)


def run(model, teacher, batches, reconstructor, seed=0, done=None):
    return list(model.reconstruct(teacher, batches, seed, reconstructor, done))


def states(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def first_block(model, teacher, batches):
    """Return the unit after the stem and the activations around it."""
    name = model.units[1].name
    module = teacher.get_submodule(name)
    calls = []
    hook = module.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        for batch in batches:
            run_float(teacher, batch)
        hook.remove()
        targets = [module(*args, **kwargs) for args, kwargs in calls]
    sizes = [len(batch) for batch in batches]
    caches = [CachedBatches(x, sizes) for x in (calls, calls, targets)]
    return model.units[1], UnitData(*caches, held_out=2)


class Spy(MSE):
    """Objective that notes the images of learning and of validation."""

    def __init__(self):
        self.learned, self.validated, self.begun = [], [], []

    def begin(self, unit, outputs, targets):
        self.begun.append((unit.name, list(outputs)))

    def loss(self, unit, output, target, index):
        seen = self.learned if torch.is_grad_enabled() else self.validated
        seen.append((unit.name, index.tolist()))
        return super().loss(unit, output, target, index)


@pytest.mark.parametrize(
    'reconstructor',
    [NearestRounding(), learner(3)],
    ids=lambda r: type(r).__name__,
)
def test_every_unit_becomes_integers(
    reconstructor, each_toy, quantize, batches
):
    model, teacher = quantize(each_toy)
    reports = run(model, teacher, batches, reconstructor)

    assert [r.name for r in reports] == [u.name for u in model.units]
    for report in reports:
        assert report.before > 0 and report.after > 0
        assert report.seconds > 0
    for layer in quant_layers(model).values():
        low, high = layer.weight_quantizer.grid.range
        assert layer.frozen and layer.stored_weight.dtype == torch.int8
        assert (
            low <= layer.stored_weight.min()
            and layer.stored_weight.max() <= high
        )
        assert layer.weight_quantizer.rounding is None
    for quantizer in activation_quantizers(model):
        assert quantizer.active and quantizer.log_scale is None
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(
        m.training
        for m in model.architecture.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    )


def test_eight_bits_are_close_to_float(each_toy, quantize, batches):
    model, teacher = quantize(each_toy, (8, 8))
    run(model, teacher, batches, NearestRounding())

    with torch.no_grad():
        x = torch.cat(batches)
        found, expected = model(x), teacher(x)
    assert (found - expected).norm() / expected.norm() < 0.05


def test_nearest_rounding_rounds_to_nearest_and_learns_nothing(
    toy, quantize, batches
):
    model, teacher = quantize('residual', (3, 3))
    before = {
        n: m.stored_weight.clone() for n, m in quant_layers(model).items()
    }
    reports = run(model, teacher, batches, NearestRounding())

    for name, layer in quant_layers(model).items():
        quantizer = layer.weight_quantizer
        found = layer.stored_weight.float()
        best = copy.deepcopy(quantizer).freeze(before[name])
        assert torch.equal(found, best.float())
    for report in reports:
        assert report.after == report.before and not report.accepted


def test_the_reported_error_is_that_of_held_out_images(quantize, batches):
    model, teacher = quantize('residual', (3, 3))
    unit, data = first_block(model, teacher, batches)
    report = NearestRounding(batch_size=1)(unit, data, torch.Generator())

    args, kwargs = data.inputs.take(torch.tensor([10, 11]))
    target = data.targets.take(torch.tensor([10, 11]))
    with torch.no_grad():
        error = (unit.module(*args, **kwargs) - target).square().mean()
    assert report.before == pytest.approx(float(error), rel=1e-4)


def test_scales_are_chosen_on_outputs_of_the_quantized_layers_before(
    quantize, batches
):
    """Not on those of the float network."""
    model, teacher = quantize('inverted', (2, 2))
    unit, data = first_block(model, teacher, batches)
    seen = []
    quantizer = unit.module.depthwise[0].input_quantizer
    original = quantizer.fit
    quantizer.fit = lambda x: (seen.append(x), original(x))
    fit_scales(unit, data, 7, 32, MSE())
    args, kwargs = data.inputs.take(torch.arange(7))
    with torch.no_grad():
        inner = unit.module.expand(unit.module.door.inputs['0'](*args))

    assert len(seen) == 1
    torch.testing.assert_close(seen[0][:-2], inner.flatten())


@pytest.mark.parametrize(('name', 'ends'), [('inverted', 8), ('shared', 32)])
def test_a_quantizer_is_fitted_alike_in_parts_and_passes_end_early(
    name, ends, quantize, batches, monkeypatch
):
    """Also for a quantizer that is called twice in a pass."""
    monkeypatch.setattr(
        ActivationQuantizer, 'sample', lambda q, x, *_: x.flatten()
    )

    def shown(size):
        """Return what quantizers are fitted on, and runs of the last layer."""
        model, _ = quantize(
            name, (4, 4), partition=dict(type='NetworkPartition')
        )
        values, runs = [], []
        last = list(quant_layers(model).values())[-1]
        last.register_forward_hook(lambda *_: runs.append(1))
        fit = ActivationQuantizer.fit
        monkeypatch.setattr(
            ActivationQuantizer,
            'fit',
            lambda q, x: (values.append(x.sort()[0]), fit(q, x)),
        )
        (unit,) = model.units
        calls = [((batch,), {}) for batch in batches]
        cached = CachedBatches(calls, [len(x) for x in batches])
        data = UnitData(cached, cached, cached, held_out=1)
        fit_scales(unit, data, 256, size, MSE())
        monkeypatch.setattr(ActivationQuantizer, 'fit', fit)
        return values, len(runs)

    (whole, _), (parts, found) = shown(12), shown(1)
    assert len(whole) == len(parts) > 1
    for one, other in zip(whole, parts):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert found == ends


def test_a_batch_in_parts_learns_the_same_as_a_whole_batch(
    quantize, batches, monkeypatch
):
    """The gradients of images too large to run together are summed."""
    found = []
    for max_elements in 2**21, 1:
        monkeypatch.setattr(images_per_pass, '__defaults__', (max_elements,))
        model, teacher = quantize('residual', (3, 3))
        unit, data = first_block(model, teacher, batches)
        assert len(data.parts(torch.arange(4), 4)) == (
            4 if max_elements == 1 else 1
        )
        # Without QDrop, which draws a mask for each part.
        for quantizer in activation_quantizers(unit.module):
            quantizer.drop_prob = 0.0
        generator = torch.Generator().manual_seed(0)
        report = learner(12)(unit, data, generator)
        found.append((report, states(unit.module)))
    (whole, one), (parts, other) = found

    assert whole.losses[1] == pytest.approx(parts.losses[1], rel=1e-3)
    assert whole.after == pytest.approx(parts.after, rel=0.05)
    for key in one:
        if one[key].is_floating_point():
            torch.testing.assert_close(one[key], other[key], rtol=1e-2, atol=0)


def test_the_penalty_counts_after_the_warmup(quantize, batches, monkeypatch):
    model, teacher = quantize('residual', (3, 3))
    unit, data = first_block(model, teacher, batches)
    seen = []
    monkeypatch.setattr(
        AdaRound, 'penalty', lambda self, beta: seen.append(beta)
    )
    learn = learner(5, warmup=0.4, penalty=0.7, beta=(8.0, 2.0))
    learn(unit, data, torch.Generator().manual_seed(0))

    layers = quant_layers(unit.module).values()
    assert len(layers) == 2
    assert seen == [
        annealed_beta(i / 10, 0.4, 8.0, 2.0)
        for i in range(4, 10)
        for _ in layers
    ]


def test_the_penalty_is_the_mean_over_the_weights_of_a_unit(quantize, batches):
    model, teacher = quantize('residual', (3, 3))
    unit, data = first_block(model, teacher, batches)
    fit_scales(unit, data, 12, 12, MSE())
    layers = list(quant_layers(unit.module).values())
    for layer in layers:
        layer.weight_quantizer.learn(layer.stored_weight)
        rounding = layer.weight_quantizer.rounding
        rounding.penalty = partial(rounding_penalty, rounding.alpha)
    reconstructor = learner(warmup=0.4, penalty=0.7, beta=(8.0, 2.0))
    undecided = [
        1 - (layer.weight_quantizer.rounding.train()() % 1 * 2 - 1).square()
        for layer in layers
    ]

    assert reconstructor._penalty(layers, 0.39) == 0
    found = float(reconstructor._penalty(layers, 1.0).detach())
    mean = float(torch.cat([x.flatten() for x in undecided]).mean())
    assert found == pytest.approx(0.7 * mean, rel=1e-4)


def test_learning_reduces_the_error(quantize, batches):
    nearest, teacher = quantize('residual', (2, 8))
    learned = copy.deepcopy(nearest)
    run(nearest, teacher, batches, NearestRounding())
    reports = run(learned, teacher, batches, learner(60))

    assert any(report.accepted for report in reports)
    for report in reports:
        assert report.accepted == (report.after < report.before)
        if report.accepted:
            assert not report.note
    x = torch.randn(32, 3, 8, 8)
    with torch.no_grad():
        goal = teacher(x)
        errors = [(m(x) - goal).norm() for m in (learned, nearest)]
    assert errors[0] < 0.8 * errors[1]


def test_the_report_has_a_falling_loss(quantize, batches):
    model, teacher = quantize('residual', (2, 8))
    reports = run(model, teacher, batches, learner(30))

    steps, losses = zip(*reports[1].losses)
    assert steps == (0, 10, 20, 30, 40, 50)
    assert losses[-1] < losses[0]
    assert [step for step, _ in reports[1].to_dict()['losses']] == [*steps]


def test_of_a_long_curve_some_points_are_kept():
    report = UnitReport('a', losses=[(10 * i, 1 / (i + 3)) for i in range(95)])
    points = report.to_dict()['losses']
    assert len(points) == 48 and points[1] == [20, 0.2]


@pytest.mark.parametrize('name', ['residual', 'nested', 'shared'])
def test_a_unit_with_more_layers_learns_longer(
    name, quantize, batches, monkeypatch
):
    taken = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        'step',
        lambda self: taken.append(self) or step(self),
    )
    model, teacher = quantize(name, (2, 4))
    units = {unit.name: unit for unit in model.units}
    frozen = set()
    for report in model.reconstruct(teacher, batches, 0, learner(3)):
        fresh = set(report.layers) - frozen
        depth = units[report.name].depth
        assert len(taken) == 3 * max(1, min(depth, len(fresh)))
        frozen |= fresh
        taken.clear()


def test_a_rejected_unit_keeps_nearest_rounding_bit_for_bit(
    each_toy, quantize, batches
):
    nearest, teacher = quantize(each_toy, (4, 4))
    ruined = copy.deepcopy(nearest)
    run(nearest, teacher, batches, NearestRounding())
    reports = run(ruined, teacher, batches, learner(**RUIN))

    for report in reports:
        assert not report.accepted
        assert report.after >= report.before
        assert 'held-out' in report.note
    assert same_state(ruined, nearest)


def test_with_a_negligible_error_nothing_is_learned(quantize, batches):
    """It is relative to the energy of the output."""
    models = {}
    for negligible in 0.0, 1.0:
        model, teacher = quantize('residual', (8, 8))
        reports = run(model, teacher, batches, learner(negligible=negligible))
        models[negligible] = reports
    nearest, teacher = quantize('residual', (8, 8))
    run(nearest, teacher, batches, NearestRounding())

    assert not any('negligible' in r.note for r in models[0.0])
    for report in models[1.0]:
        assert 'negligible' in report.note and not report.losses
    assert same_state(model, nearest)


def test_without_iterations_nearest_rounding_is_kept(quantize, batches):
    nearest, teacher = quantize('residual')
    idle = copy.deepcopy(nearest)
    run(nearest, teacher, batches, NearestRounding())
    reconstructor = learner()
    reconstructor.iterations = 0
    reports = run(idle, teacher, batches, reconstructor)

    assert not any(report.accepted for report in reports)
    assert same_state(idle, nearest)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('when', ['learning', 'validation'])
def test_an_error_that_is_not_finite_ends_the_unit(
    when, value, quantize, batches
):
    """Its nearest rounding is kept, and the report says why."""

    class Breaks(MSE):
        def loss(self, unit, output, target, index):
            loss = super().loss(unit, output, target, index)
            learning = torch.is_grad_enabled()
            self.learned = getattr(self, 'learned', False) or learning
            broken = (
                learning
                if when == 'learning'
                else (not learning and self.learned)
            )
            return (
                loss * value if (unit.name == 'blocks.0' and broken) else loss
            )

    nearest, teacher = quantize('residual')
    model = copy.deepcopy(nearest)
    run(nearest, teacher, batches, NearestRounding())
    reconstructor = learner(**RUIN)
    reconstructor.objective = Breaks()
    reports = {r.name: r for r in run(model, teacher, batches, reconstructor)}

    report = reports['blocks.0']
    assert not report.accepted and 'NaN or infinity' in report.note
    assert 'nearest' in report.note
    assert not any(
        'NaN' in reports[n].note for n in reports if n != 'blocks.0'
    )
    assert same_state(model.units[1].module, nearest.units[1].module)


def test_a_negative_error_is_refused(quantize, batches):
    """It cannot be minimized to zero."""

    class Likeness(MSE):
        def error(self, unit, i, output, target, index):
            return -super().error(unit, i, output, target, index)

    model, teacher = quantize('residual')
    reconstructor = learner()
    reconstructor.objective = Likeness()
    with pytest.raises(ValueError, match='Likeness has an error of -.*stem'):
        run(model, teacher, batches, reconstructor)


def test_the_report_of_a_failed_unit_has_its_type(quantize, batches):
    """A resumed run uses this type, even if all units before failed."""
    model, teacher = quantize('residual')
    model.architecture.blocks[1].conv1.bias[3] = float('nan')
    reports = run(model, teacher, batches, learner(autocast='bfloat16'))

    assert {report.autocast for report in reports} == {'bfloat16'}


def test_an_activation_that_is_not_finite_is_named_and_the_run_continues(
    quantize, batches
):
    model, teacher = quantize('residual')
    model.architecture.blocks[1].conv1.bias[3] = float('nan')

    reports = {r.name: r for r in run(model, teacher, batches, learner())}
    assert list(reports) == [unit.name for unit in model.units]
    note = reports['blocks.1'].note
    assert 'NaN or infinity at blocks.1.conv2.input_quantizer' in note
    assert 'nearest rounding kept' in note
    assert not reports['blocks.1'].accepted
    assert 'NaN' not in reports['blocks.0'].note
    for layer in quant_layers(model).values():
        assert layer.frozen and layer.weight_quantizer.scale.isfinite().all()


def test_an_activation_that_is_constant_is_named(
    quantize, batches, warnings_log
):
    model, teacher = quantize('residual')
    model.architecture.blocks[1].conv1.weight.zero_()
    model.architecture.blocks[1].conv1.bias.zero_()

    run(model, teacher, batches, NearestRounding())
    assert any(
        'blocks.1.conv2.input_quantizer: the activation is 0' in message
        for message in warnings_log
    )


def test_held_out_images_are_never_learned_from(quantize, batches):
    model, teacher = quantize('residual', held_out=0.25)
    spy = Spy()
    reconstructor = learner(20)
    reconstructor.objective = spy
    run(model, teacher, batches, reconstructor)

    for unit in model.units:
        learned = [
            i for n, part in spy.learned for i in part if n == unit.name
        ]
        validated = [
            i for n, part in spy.validated for i in part if n == unit.name
        ]
        assert len(learned) == 20 * unit.depth * 4
        assert set(learned) == set(range(9))
        assert set(validated) == {9, 10, 11}
        assert len({validated.count(i) for i in validated}) == 1


@pytest.mark.parametrize(
    ('fraction', 'count'), [(0.01, 1), (0.25, 3), (0.5, 6), (0.99, 11)]
)
def test_at_least_one_image_is_held_out_and_one_is_learned_from(
    fraction, count, quantize, batches
):
    model, teacher = quantize('uncalled', held_out=fraction)
    spy = Spy()
    reconstructor = learner(2)
    reconstructor.objective = spy
    run(model, teacher, batches, reconstructor)

    validated = {i for _, part in spy.validated for i in part}
    assert validated == set(range(12 - count, 12))


def test_an_objective_begins_with_the_outputs_of_nearest_rounding(
    quantize, batches
):
    """The rejected unit returns the same outputs again."""
    model, teacher = quantize('residual', (3, 3))
    spy = Spy()
    reconstructor = learner(**RUIN)
    reconstructor.objective = spy
    run(model, teacher, batches, reconstructor)

    assert [name for name, _ in spy.begun] == [u.name for u in model.units]
    with torch.no_grad():
        for out, batch in zip(spy.begun[0][1], batches):
            found = model.architecture.stem[0](batch)
            torch.testing.assert_close(out, found)


@pytest.mark.parametrize('name', ['residual', 'nested', 'shared'])
@pytest.mark.parametrize(
    'objective',
    [
        dict(type='FisherDiag'),
        dict(type='FisherDiag', per_sample=True),
        dict(type='FisherLowRank'),
        dict(type='OfficialFisher'),
        dict(type='SuffixLoss'),
    ],
    ids=lambda cfg: '-'.join(map(str, cfg.values())),
)
def test_a_run_works_with_every_objective(name, objective, quantize, batches):
    model, teacher = quantize(name, (3, 8))
    reconstructor = learner(objective=objective)
    reports = run(model, teacher, batches, reconstructor)

    assert all(report.before > 0 for report in reports)
    assert all(layer.frozen for layer in quant_layers(model).values())
    pickle.dumps(reconstructor)  # Neither network nor images are left in it.


def test_the_same_seed_gives_the_same_bits(quantize, batches):
    models = [quantize('residual', (2, 4)) for _ in range(3)]
    for seed, (model, teacher) in zip((5, 5, 6), models):
        torch.manual_seed(seed + 100 * len(models))
        run(model, teacher, batches, learner(objective=None), seed=seed)
        torch.rand(seed)

    assert same_state(models[0][0], models[1][0])
    assert not same_state(models[0][0], models[2][0])


@pytest.mark.parametrize('objective', ['MSE', 'FisherLowRank'])
@pytest.mark.parametrize('finished', [1, 2, 4])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    finished, objective, quantize, batches
):
    learns = learner(objective=dict(type=objective))
    whole, teacher = quantize('residual', (2, 4))
    run(whole, teacher, batches, learns, seed=3)

    killed, teacher = quantize('residual', (2, 4))
    done = {}
    for report in killed.reconstruct(teacher, batches, 3, learns):
        unit = killed.architecture.get_submodule(report.name)
        done[report.name] = copy.deepcopy(unit.state_dict())
        if len(done) == finished:
            break
    resumed, teacher = quantize('residual', (2, 4))
    reports = run(resumed, teacher, batches, learns, 3, done)

    assert len(done) == finished
    assert [r.name for r in reports] == [
        unit.name for unit in whole.units[finished:]
    ]
    assert same_state(resumed, whole)


def test_the_memory_format_of_the_images_hardly_matters(quantize, batches):
    outs = []
    for order in torch.contiguous_format, torch.channels_last:
        model, teacher = quantize('residual', (8, 8))
        ordered = [x.to(memory_format=order) for x in batches]
        run(model, teacher, ordered, learner())
        with torch.no_grad():
            outs.append(model(batches[0]) - teacher(batches[0]))

    assert (outs[0] - outs[1]).norm() < 0.05 * teacher(batches[0]).norm()


class Preactivated(nn.Module):
    """Block that may write to its argument; the output is the same."""

    def __init__(self, inplace):
        super().__init__()
        self.relu = nn.ReLU(inplace)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = self.relu(x)
        return x + self.b(self.a(x).relu())


@pytest.mark.parametrize(
    'objective', [dict(type='MSE'), dict(type='OfficialFisher')]
)
def test_the_input_of_a_unit_that_writes_to_it_is_cached_before(
    objective, quantize, batches
):
    models = []
    for inplace in False, True:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.Sequential(Preactivated(inplace), Preactivated(inplace)),
            nn.Flatten(),
            nn.Linear(512, 3),
        ).eval()
        model, teacher = quantize(network, (2, 3))
        run(model, teacher, batches, learner(12, objective=objective))
        models.append(model)

    assert same_state(*models)


class Twice(nn.Module):
    """Two blocks that share a layer."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Preactivated(False), Preactivated(False))
        self.blocks[1].a = self.blocks[0].a
        self.stem = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return self.blocks(self.stem(x)).mean((2, 3))


def test_a_shared_layer_is_frozen_with_the_first_block(quantize, batches):
    model, teacher = quantize(Twice().eval(), (3, 4))
    shared = model.architecture.blocks[0].a
    states = []
    for report in model.reconstruct(teacher, batches, 0, learner()):
        if report.name.startswith('blocks'):
            states.append(copy.deepcopy(shared.state_dict()))

    assert len(states) == 2
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    with torch.no_grad():
        assert model(batches[0]).isfinite().all()


@pytest.mark.parametrize(
    ('drop', 'fraction'), [(0.0, 0), (0.5, 0.5), (1.0, 1)]
)
def test_inputs_are_mixed_with_those_of_the_float_network(
    drop, fraction, quantize, batches
):
    model, teacher = quantize(
        'residual',
        quantization=dict(activation=dict(bits=4, drop_prob=drop)),
    )
    unit, data = first_block(model, teacher, batches)
    (inner,), kwargs = data.inputs.take(torch.arange(12))
    sizes = data.inputs.sizes
    parts = [((part,), kwargs) for part in (inner + 1000).split(sizes)]
    data = replace(data, float_inputs=CachedBatches(parts, sizes))
    seen = []

    def keep(module, args):
        if torch.is_grad_enabled():
            seen.append(args[0])

    unit.module.register_forward_pre_hook(keep, prepend=True)
    learner(5)(unit, data, torch.Generator().manual_seed(0))

    seen = torch.cat(seen)
    assert len(seen) == 5 * 2 * 4
    assert ((seen > 900).float().mean() - fraction).abs() < 0.05


def test_a_run_without_activation_quantizers(each_toy, quantize, batches):
    model, teacher = quantize(each_toy, (8, None))
    run(model, teacher, batches, learner(4))

    with torch.no_grad():
        found, expected = model(batches[0]), teacher(batches[0])
    assert (found - expected).norm() / expected.norm() < 0.03


def test_the_teacher_is_not_changed(quantize, batches):
    model, teacher = quantize('residual')
    before = copy.deepcopy(teacher)
    run(model, teacher, batches, learner(objective=None))

    assert same_state(teacher, before)
    x = batches[0]
    assert torch.equal(teacher(x), before(x))


def test_a_report_is_plain_python():
    report = UnitReport('a', ['a.b'], {'a.b': (4, 8)}, 0.5, 0.25, True)
    plain = report.to_dict()

    assert plain['name'] == 'a' and plain['layers'] == ['a.b']
    assert plain['accepted'] is True and plain['after'] == 0.25


def test_a_network_can_be_run_and_read_while_its_passes_wait(
    quantize, batches
):
    model, teacher = quantize('residual')
    expected = teacher(batches[0])
    holder = nn.ModuleDict(dict(teacher=teacher))
    units = [
        replace(unit, module=teacher.get_submodule(unit.name))
        for unit in model.units
    ]
    state = dict(teacher.state_dict())
    images = CachedBatches(batches, [len(x) for x in batches])
    with Stream(holder, 'teacher', units, images) as stream:
        stream.advance()
        assert torch.equal(teacher(batches[0]), expected)
        parked = teacher.state_dict()
        assert parked.keys() == state.keys()
        assert all(torch.equal(parked[key], state[key]) for key in state)


def test_a_unit_with_nothing_to_learn_keeps_nearest():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    model = BRECQ(
        network,
        quantization=dict(
            weight=dict(
                bits=2, rounding=dict(type='Nearest'), learn_scale=False
            ),
            activation=None,
            first_last_bits=None,
        ),
        reconstructor=dict(
            type='BlockReconstructor', iterations=2, batch_size=4
        ),
    ).eval()
    images = torch.rand(12, 3, 8, 8)
    teacher = model.prepare(images[:1])
    for report in model.reconstruct(teacher, list(images.split(6))):
        assert 'nothing to learn' in report.note and not report.accepted


class Types(nn.Identity):
    """Identity that notes types and whether gradients are enabled."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, x):
        self.seen.add((torch.is_grad_enabled(), x.dtype))
        return super().forward(x)


@pytest.mark.parametrize('name', ['bfloat16', None])
def test_a_unit_learns_in_the_chosen_type(name, quantize, batches):
    model, teacher = quantize('residual')
    block = model.units[1].module
    block.relu = Types()
    reports = run(model, teacher, batches, learner(autocast=name))

    low = {
        learning for learning, dtype in block.relu.seen if dtype.itemsize < 4
    }
    assert low == ({True} if name else set())
    assert reports[1].losses and reports[1].autocast == name
    for layer in quant_layers(model).values():
        assert layer.frozen
    for quantizer in activation_quantizers(model):
        assert quantizer.scale.dtype == torch.float32


class Huber(MSE):
    """Objective whose backward pass cannot take two types."""

    def error(self, unit, i, output, target, index):
        assert output.dtype == target.dtype == torch.float32
        return nn.functional.huber_loss(output, target)


class Whole(MSE):
    """Objective with a loss over all outputs, in full precision."""

    def loss(self, unit, output, target, index):
        for x in tree_leaves((output, target)):
            assert x.dtype == torch.float32
        return super().loss(unit, output, target, index)


@pytest.mark.parametrize('objective', [Huber, Whole])
@pytest.mark.parametrize('name', ['residual', 'nested'])
def test_an_objective_gets_outputs_in_the_type_of_the_target(
    objective, name, quantize, batches
):
    model, teacher = quantize(name, (3, 8))
    reconstructor = learner(autocast='bfloat16')
    reconstructor.objective = objective()
    reports = run(model, teacher, batches, reconstructor)

    assert all(report.losses for report in reports)


class LowPrecision(MSE):
    """Objective that accepts low precision, and notes the types."""

    seen: set

    @takes_low_precision
    def error(self, unit, i, output, target, index):
        self.seen.add(output.dtype)
        return super().error(unit, i, output, target, index)


def test_an_objective_that_accepts_low_precision_gets_it(quantize, batches):
    model, teacher = quantize('residual', (3, 8))
    reconstructor = learner(autocast='bfloat16')
    reconstructor.objective = objective = LowPrecision()
    objective.seen = set()
    run(model, teacher, batches, reconstructor)

    assert torch.bfloat16 in objective.seen


def test_learning_in_bfloat16_is_close_to_full_precision(quantize, generator):
    # Of twelve images one would be held out, which is too few.
    batches = torch.randn(96, 3, 8, 8, generator=generator).split(32)
    after = {}
    for name in None, 'bfloat16':
        model, teacher = quantize('residual', (3, 4))
        reconstructor = learner(160, autocast=name)
        reports = run(model, teacher, batches, reconstructor)
        after[name] = [r.after / r.before for r in reports]
    for exact, fast in zip(after[None], after['bfloat16']):
        assert abs(exact - fast) < 0.2


def test_all_units_learn_in_the_type_that_was_measured(
    quantize, batches, monkeypatch
):
    monkeypatch.setattr(
        autocast, '_seconds', lambda *args: 0.5 if args[-1] else 1.0
    )
    model, teacher = quantize('residual')
    refiner = dict(type='NetworkRefiner', iterations=2, batch_size=4)
    reconstructor = learner(autocast='fastest', refiner=refiner)
    relu = model.units[1].module.relu = Types()
    seen = []
    for report in model.reconstruct(teacher, batches, 0, reconstructor):
        assert report.autocast == 'bfloat16' and report.losses
        seen.append((True, torch.bfloat16) in relu.seen)
        relu.seen.clear()

    assert seen == [False, True, *[False] * (len(seen) - 3), True]
