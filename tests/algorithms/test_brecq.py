from __future__ import annotations

import copy
import io

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.graph import record, relative_difference
from mmrazor_brecq.layers import activation_quantizers, quant_layers
from mmrazor_brecq.reconstruction import BlockReconstructor, NearestRounding
from mmrazor_brecq.registry import MODELS


def learner(iterations=6):
    return BlockReconstructor(
        iterations, batch_size=4, objective=dict(type='MSE')
    )


def finish(model, teacher, batches, reconstructor=None, **kwargs):
    return list(
        model.reconstruct(
            teacher,
            batches,
            reconstructor=reconstructor or NearestRounding(),
            **kwargs,
        )
    )


def outputs(model, batches):
    with torch.no_grad():
        return model(torch.cat(batches))


class Head(BaseModel):
    """A model of OpenMMLab around a toy network."""

    def __init__(self, network, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone = network

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.backbone(inputs)
        return out if mode == 'tensor' else (mode, out, data_samples)


def test_until_it_is_prepared_it_is_the_float_network(each_toy, batches):
    expected = outputs(each_toy, batches)
    model = BRECQ(each_toy)

    assert not model.prepared
    torch.testing.assert_close(outputs(model, batches), expected)


def test_the_teacher_is_the_folded_float_network(each_toy, quantize, batches):
    expected = outputs(each_toy, batches)
    model, teacher = quantize(each_toy)

    torch.testing.assert_close(
        outputs(teacher, batches), expected, rtol=1e-4, atol=1e-5
    )
    assert quant_layers(teacher) == {}
    assert not any(p.requires_grad for p in teacher.parameters())
    held = {id(m) for m in model.modules()}
    assert not any(id(m) in held for m in teacher.modules())
    values = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in values for p in teacher.parameters())


def test_preparing_twice_is_an_error(quantize, batches):
    model, _ = quantize('residual')

    with pytest.raises(RuntimeError, match='quantized already'):
        model.prepare(batches[0])


@pytest.mark.parametrize('share', [0, 1, -0.5, 2.0])
def test_the_held_out_share_lies_between(share, toy):
    with pytest.raises(ValueError, match=f'held_out={share}.*`held_out`'):
        BRECQ(toy('residual'), held_out=share)


def test_reports_tell_the_widths_of_every_layer(quantize, batches):
    model, teacher = quantize(
        'residual',
        (4, 3),
        quantization=dict(bit_overrides={'blocks.0.conv2': 6}),
    )
    reports = finish(model, teacher, batches)

    assert [report.bits for report in reports] == [
        {'stem.0': (8, 8)},
        {'blocks.0.conv1': (4, 3), 'blocks.0.conv2': (6, 6)},
        {
            'blocks.1.conv1': (4, 3),
            'blocks.1.conv2': (4, 3),
            'blocks.1.shortcut.0': (4, 3),
        },
        {'head': (8, 8)},
    ]


def test_a_unit_is_frozen_once_it_is_reported(quantize, batches):
    model, teacher = quantize('residual')
    units = {unit.name: unit for unit in model.units}
    frozen = []
    for report in model.reconstruct(teacher, batches, reconstructor=learner()):
        frozen.append(report.name)
        for name, unit in units.items():
            for layer in quant_layers(unit.module).values():
                assert layer.frozen == (name in frozen)


def test_until_a_unit_is_quantized_both_networks_are_one(
    each_toy, quantize, batches
):
    class Notes(NearestRounding):
        def learn(self, unit, data, generator, report):
            one.append(data.inputs is data.float_inputs)
            return super().learn(unit, data, generator, report)

    one: list[bool] = []
    model, teacher = quantize(each_toy, (2, 2))
    for _ in model.reconstruct(teacher, batches, 0, Notes()):
        pass

    assert one == [True] + [False] * (len(model.units) - 1)


@pytest.mark.parametrize('partition', ['Layer', 'Block', 'Stage', 'Network'])
def test_units_of_every_size(partition, quantize, batches):
    model, teacher = quantize(
        'residual', (8, 8), partition=dict(type=f'{partition}Partition')
    )
    reports = finish(model, teacher, batches, learner(3))

    assert (
        len(reports) == dict(Layer=7, Block=4, Stage=3, Network=1)[partition]
    )
    expected = outputs(teacher, batches)
    error = outputs(model, batches) - expected
    assert error.norm() / expected.norm() < 0.03


def test_a_run_that_is_given_up_leaves_a_whole_model(quantize, batches):
    model, teacher = quantize('residual')
    names = [name for name, _ in model.named_modules()]
    run = model.reconstruct(teacher, batches, reconstructor=learner())
    next(run)
    next(run)
    run.close()

    assert [name for name, _ in model.named_modules()] == names
    assert model.units[1].module is model.architecture.blocks[0]
    assert outputs(teacher, batches).isfinite().all()


def test_units_that_the_images_never_reach_are_an_error(quantize, batches):
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.rare = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.first(x)
            return self.rare(x) if len(x) < 3 else x

    model, teacher = quantize(Skips())
    with pytest.raises(RuntimeError, match="never reached.*'rare'"):
        finish(model, teacher, batches)


def fresh(toy, name, bits=(4, 4), **kwargs):
    """Built from its config, with float weights of another training."""
    weight, activation = bits
    quantization = dict(
        weight=dict(bits=weight), activation=dict(bits=activation)
    )
    return BRECQ(toy(name, seed=7), quantization, **kwargs)


@pytest.mark.parametrize(
    'name',
    [
        'residual',
        'inverted',
        'grouped',
        'shared',
        'nested',
        'transformer',
        'uncalled',
        'transposed',
    ],
)
@pytest.mark.parametrize('into', ['float', 'prepared'])
def test_a_quantized_state_loads_into_a_model_as_it_was_built(
    name, into, toy, quantize, batches
):
    """And gives the same outputs to the last bit."""
    model, teacher = quantize(name)
    finish(model, teacher, batches, learner())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    other = fresh(toy, name)
    if into == 'prepared':
        other.prepare(batches[0])
    other.load_state_dict(state)

    assert other.prepared
    assert torch.equal(outputs(other, batches), outputs(model, batches))
    assert other.bits == model.bits
    again = other.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_a_state_holds_integers_and_no_teacher(quantize, batches):
    model, teacher = quantize('residual', (3, 3))
    finish(model, teacher, batches, learner())
    state = model.state_dict()

    weights = [k for k in state if k.endswith('.weight')]
    assert len(weights) == 7
    for key in weights:
        assert state[key].dtype == torch.int8
    for key in weights[1:-1]:
        assert state[key].min() >= -4 and state[key].max() <= 3
    assert not any(
        'teacher' in k or 'alpha' in k or 'log_scale' in k for k in state
    )
    assert state['input_shape'].tolist() == [3, 8, 8]
    assert all(k.startswith(('architecture.', 'input_shape')) for k in state)


def test_the_keys_of_the_float_network_stay(each_toy, quantize):
    norms = [
        name
        for name, module in each_toy.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    before = {
        key
        for key in each_toy.state_dict()
        if key.rpartition('.')[0] not in norms
    }
    model, _ = quantize(each_toy)

    after = set(model.architecture.state_dict())
    assert before <= after


@pytest.mark.parametrize('prefix', ['', 'architecture.'])
def test_a_float_state_loads_before_it_is_prepared(prefix, toy, batches):
    source, model = toy('residual'), BRECQ(toy('residual', seed=7))
    state = {prefix + k: v for k, v in source.state_dict().items()}
    model.load_state_dict(state)

    torch.testing.assert_close(
        outputs(model, batches), outputs(source, batches)
    )
    assert not model.prepared


def test_a_model_that_is_part_of_another_loads_as_well(toy, quantize, batches):
    model, teacher = quantize('residual')
    finish(model, teacher, batches)
    other = nn.ModuleDict(dict(a=fresh(toy, 'residual'), b=nn.Linear(2, 2)))
    whole = nn.ModuleDict(dict(a=model, b=nn.Linear(2, 2)))
    other.load_state_dict(whole.state_dict())

    assert torch.equal(outputs(other['a'], batches), outputs(model, batches))
    assert torch.equal(other['b'].weight, whole['b'].weight)


@pytest.mark.parametrize(
    ('bits', 'message'),
    [((3, 4), 'weight_quantizer'), ((4, 3), 'door|input_quantizer')],
)
def test_a_state_of_other_widths_is_refused_by_name(
    bits, message, toy, quantize, batches
):
    model, teacher = quantize('residual', (4, 4))
    finish(model, teacher, batches)
    other = fresh(toy, 'residual', bits)

    with pytest.raises(ValueError, match=f'({message}).*4 bits.*3'):
        other.load_state_dict(model.state_dict())


@pytest.mark.parametrize('state', ['float', 'prepared', 'frozen'])
def test_a_copy_is_independent(state, toy, quantize, batches):
    if state == 'float':
        model, teacher = BRECQ(toy('nested')), None
    else:
        model, teacher = quantize('nested')
    if state == 'frozen':
        finish(model, teacher, batches)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    other = copy.deepcopy(model)

    mine = {id(m) for m in model.modules()}
    assert not any(id(m) in mine for m in other.modules())
    for unit, twin in zip(model.units, other.units):
        assert twin.name == unit.name
        assert twin.module is other.architecture.get_submodule(unit.name)
    if state == 'float':
        teacher = other.prepare(batches[0])
        assert not model.prepared
    if state != 'frozen':
        finish(other, teacher, batches)
    with torch.no_grad():
        for value in other.state_dict().values():
            value.zero_()
    assert model.state_dict().keys() == before.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) or value.isnan().all()


def test_a_copy_loads_into_itself(toy, quantize, batches):
    """Its hooks are its own, not those of the model it was copied from."""
    model, teacher = quantize('residual')
    finish(model, teacher, batches)
    blank = fresh(toy, 'residual')
    other = copy.deepcopy(blank)
    other.load_state_dict(model.state_dict())

    assert other.prepared and not blank.prepared
    assert torch.equal(outputs(other, batches), outputs(model, batches))


def test_a_weight_that_is_not_finite_is_an_error_with_a_name(toy, batches):
    for value in float('nan'), float('inf'):
        network = toy('residual')
        network.blocks[1].conv2.weight.data[3, 2] = value
        with pytest.raises(ValueError, match="'blocks.1.conv2'.*checkpoint"):
            BRECQ(network).prepare(batches[0])
        assert quant_layers(network) == {}


def test_a_network_without_layers_is_an_error(batches):
    network = nn.Sequential(nn.ReLU(), nn.Flatten())

    with pytest.raises(ValueError, match='Sequential.*nothing to quantize'):
        BRECQ(network).prepare(batches[0])


def test_channels_of_zeros_are_told_and_harmless(
    toy, quantize, batches, warnings_log
):
    network = toy('residual')
    network.blocks[0].conv2.weight.data[:2] = 0
    model, teacher = quantize(network, (8, 8))

    (message,) = warnings_log
    assert "2 channels of 'blocks.0.conv2'" in message
    finish(model, teacher, batches, learner())
    layer = model.architecture.blocks[0].conv2
    with torch.no_grad():
        weight = layer.weight
    assert (weight[:2] == 0).all()
    expected = outputs(teacher, batches)
    error = outputs(model, batches) - expected
    assert error.norm() / expected.norm() < 0.03


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('uncalled', 'auxiliary is not called'),
        ('transposed', 'up is a transposed convolution'),
    ],
)
def test_what_is_left_in_float_is_told(name, expected, quantize, warnings_log):
    model, _ = quantize(name)

    (message,) = warnings_log
    assert expected in message and 'left in float' in message
    left = model.architecture.get_submodule(expected.split()[0])
    assert left.weight.is_floating_point()


@pytest.mark.parametrize('dims', [1, 2, 3])
def test_signals_images_and_volumes(dims, quantize):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    network = nn.Sequential(conv(3, 4, 3), nn.ReLU(), conv(4, 5, 1)).eval()
    model = BRECQ(network)
    x = torch.randn(8, 3, *[5] * dims)
    teacher = model.prepare(x[:1])
    finish(model, teacher, [x])

    expected = outputs(teacher, [x])
    error = outputs(model, [x]) - expected
    assert 0 < error.norm() / expected.norm() < 0.03


def test_a_network_may_flatten_its_features_by_a_view(quantize, batches):
    """Which works for one memory order only."""

    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(144, 5)

        def forward(self, x):
            return self.head(self.conv(x).view(len(x), -1))

    model, teacher = quantize(Views().eval(), (8, 8))
    finish(model, teacher, batches, learner(2))
    expected = outputs(teacher, batches)
    error = outputs(model, batches) - expected
    assert error.norm() / expected.norm() < 0.03


def test_an_ordinary_network_warns_of_nothing(quantize, warnings_log):
    quantize('residual')

    assert warnings_log == []


def test_a_model_of_openmmlab_keeps_its_ways(toy, quantize, batches):
    network = Head(toy('residual'))
    model, teacher = quantize(network, (8, 8))
    finish(model, teacher, batches, learner(3))

    assert model.data_preprocessor is network.data_preprocessor
    assert [unit.name for unit in model.units] == [
        'backbone.stem.0',
        'backbone.blocks.0',
        'backbone.blocks.1',
        'backbone.head',
    ]
    with torch.no_grad():
        mode, out, samples = model(batches[0], [1], mode='predict')
        assert (mode, samples) == ('predict', [1])
        assert torch.equal(out, model(batches[0], mode='tensor'))
        assert torch.equal(out, model(batches[0]))


@pytest.mark.parametrize('partition', ['Block', 'Network'])
def test_a_model_of_openmmlab_may_be_one_unit(
    partition, toy, quantize, batches
):
    model, teacher = quantize(
        Head(toy('residual')),
        (8, 8),
        partition=dict(type=f'{partition}Partition'),
    )
    finish(model, teacher, batches, learner(2))
    expected = outputs(teacher, batches)
    error = outputs(model, batches) - expected

    assert error.norm() / expected.norm() < 0.03


def test_it_is_built_from_a_config(toy, batches):
    @MMENGINE_MODELS.register_module()
    class ToyForTheTest(Head):
        def __init__(self, name, data_preprocessor=None):
            super().__init__(toy(name), data_preprocessor)

    try:
        model = MODELS.build(
            dict(
                type='BRECQ',
                architecture=dict(type='ToyForTheTest', name='residual'),
                data_preprocessor=dict(
                    type='mmengine.ImgDataPreprocessor',
                    mean=[2.0],
                    std=[4.0],
                ),
                quantization=dict(weight=dict(bits=3)),
                partition=dict(type='StagePartition'),
                reconstructor=dict(type='NearestRounding', batch_size=5),
            )
        )
    finally:
        MMENGINE_MODELS.module_dict.pop('ToyForTheTest')

    assert model.scheme.weight['bits'] == 3
    assert model.reconstructor.batch_size == 5
    data = model.data_preprocessor(dict(inputs=[torch.full((3, 8, 8), 6)]))
    assert (data['inputs'][0] == 1).all()
    reports = list(model.reconstruct(model.prepare(batches[0]), batches))
    assert [r.name for r in reports] == [
        'backbone.stem.0',
        'backbone.blocks',
        'backbone.head',
    ]


def test_learned_weights_beat_the_nearest_ones(quantize, batches):
    """The point of it all, at two bits."""
    errors = []
    for reconstructor in NearestRounding(), learner(60):
        model, teacher = quantize('inverted', (2, 8))
        finish(model, teacher, batches, reconstructor)
        x = [torch.randn(32, 3, 8, 8, generator=torch.Generator())]
        expected = outputs(teacher, x)
        errors.append((outputs(model, x) - expected).norm())

    assert errors[1] < 0.8 * errors[0]


def test_the_original_output_is_kept_where_nothing_is_quantized(
    quantize, batches
):
    """Activations in float and weights of eight bits: nearly the same."""
    model, teacher = quantize('transformer', (8, None))
    finish(model, teacher, batches)

    assert activation_quantizers(model) == []
    assert relative_difference(teacher, model, batches[0]) < 0.05


def test_the_relative_difference_is_that_of_the_largest_values():
    x = torch.tensor([[1.0, -4.0]])
    double = nn.Sequential(nn.Linear(2, 2, bias=False))
    double[0].weight.data = torch.eye(2) * 1.5

    assert relative_difference(nn.Identity(), double, x) == 0.5
    assert relative_difference(double, double, x) == 0


def test_outputs_that_are_no_tensors_are_not_compared():
    class Many(nn.Module):
        def forward(self, x):
            return None, dict(a=x, b=[x * 2, 'c'])

    assert relative_difference(Many(), Many(), torch.ones(2)) == 0


def test_an_example_of_any_batch_size_shows_the_same(toy, batches):
    found = []
    for example in batches[0][:1], batches[0], torch.zeros(1, 3, 8, 8):
        model = BRECQ(toy('nested'))
        model.prepare(example)
        recording = record(model.architecture, batches[0])
        found.append(
            ([u.layers for u in model.units], list(model.state_dict()))
        )
        assert len(recording.calls) > 5

    assert found[0] == found[1] == found[2]
