from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.mixed_precision import (
    BitOperations,
    Choice,
    SearchSpace,
    find_choices,
    model_shape,
)
from mmrazor_brecq.mixed_precision.sensitivity import quantized_choices

LAYERS = ('a.conv1', 'a.conv2', 'b.conv1', 'b.conv2')
WEIGHTS = [Choice('weight', name[0], (name,)) for name in LAYERS]
BOTH = WEIGHTS + [
    Choice('activation', 'a', ('a.conv1', 'a.conv2'), 0),
    Choice('activation', 'b', ('b.conv1',), 0),
    Choice('activation', 'b', ('b.conv2',)),
]


@pytest.fixture
def choices_of(uniform_models):
    def find(name, kinds=('weight',), **quantization):
        models, _ = uniform_models(name, (2, 4), kinds, **quantization)
        return find_choices(models, kinds)

    return find


def test_layers_that_the_config_decides_are_no_choice(choices_of):
    names = [choice.layers[0] for choice in choices_of('residual')]
    assert 'blocks.0.conv1' in names
    assert 'stem.0' not in names and 'head' not in names
    names = [
        choice.layers[0]
        for choice in choices_of(
            'residual',
            first_last_bits=None,
            bit_overrides={'blocks.0.*': 4, 'head': dict(activation=8)},
        )
    ]
    assert 'stem.0' in names and 'head' in names
    assert not any(name.startswith('blocks.0') for name in names)


def test_layers_behind_one_door_are_one_choice(choices_of):
    choices = choices_of('residual', ('weight', 'activation'))
    by_name = {choice.name: choice for choice in choices}
    door = by_name['blocks.1.conv1.activation']
    assert set(door.layers) == {'blocks.1.conv1', 'blocks.1.shortcut.0'}
    assert door.position == 0 and door.unit == 'blocks.1'
    assert by_name['blocks.1.conv2.activation'].position is None
    assert len(by_name) == len(choices)


def test_two_inputs_are_two_choices(choices_of):
    choices = choices_of('nested', ('activation',))
    assert {(c.unit, c.position) for c in choices} >= {
        ('fuse.0', 0),
        ('fuse.0', 1),
    }


def test_a_model_without_freedom_is_refused(choices_of):
    with pytest.raises(ValueError, match='No layer is free.*Remove entries'):
        choices_of('residual', bit_overrides={'*': 4})


def test_activations_in_float_cannot_be_searched(choices_of):
    with pytest.raises(ValueError, match=r'quantization\.activation'):
        choices_of('residual', ('activation',), activation=None)


def test_allowed_bits_of_all_patterns_hold():
    space = SearchSpace(
        kinds=('weight', 'activation'),
        allowed={
            '*': [4, 8],
            'a.*': dict(activation=8),
            'b.conv2': dict(weight=[2, 3, 4]),
        },
    )
    bits = space.bit_widths(BOTH)
    assert bits['a.conv1.weight'] == (4, 8)
    assert bits['a.conv1.activation'] == (8,)
    assert bits['b.conv2.weight'] == (4,)


def test_shared_layers_take_the_same_bits():
    space = SearchSpace(
        allowed={'b.conv2': [2, 4]},
        shared=[['*.conv2'], ['a.conv1', 'b.conv1']],
    )
    leaders, bits = space.common(WEIGHTS)
    assert leaders['b.conv2.weight'] == 'a.conv2.weight'
    assert leaders['b.conv1.weight'] == 'a.conv1.weight'
    assert set(bits) == set(leaders.values())
    assert bits['a.conv2.weight'] == (2, 4)


def test_groups_that_overlap_are_one():
    space = SearchSpace(
        shared=[['a.conv1', 'b.conv1'], ['a.conv2', 'b.conv2'], ['b.*']]
    )
    leaders, _ = space.common(WEIGHTS)
    assert len(set(leaders.values())) == 1


def test_kinds_do_not_share_with_each_other():
    space = SearchSpace(kinds=('weight', 'activation'), shared=[['b.*']])
    leaders, _ = space.common(BOTH)
    assert leaders['b.conv2.weight'] == 'b.conv1.weight'
    assert leaders['b.conv2.activation'] == 'b.conv1.activation'


@pytest.mark.parametrize(
    'space, message',
    [
        (dict(allowed={'c.*': 4}), "'c.\\*' in `mixed_precision.allowed`"),
        (dict(shared=[['nothing']]), '`mixed_precision.shared` matches no'),
        (dict(allowed={'a.*': 9}), r"allowed\['a...\]=9, expected.*2 to 8"),
        (
            dict(bits=[2, 4], allowed={'a.*': 8}),
            'leaves no bit width for a.conv1.weight',
        ),
        (dict(allowed={'a.*': dict(activation=4)}), 'mixed_precision.kinds'),
        (
            dict(
                allowed={'a.conv1': 4, 'a.conv2': 8},
                shared=[['a.*']],
            ),
            'none in common',
        ),
    ],
)
def test_constraints_that_cannot_hold_are_named(space, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**space).common(WEIGHTS)


@pytest.mark.parametrize(
    'space, message',
    [
        (dict(bits=[4]), 'two or more bit widths'),
        (dict(bits=[1, 4]), 'from 2 to 8'),
        (dict(kinds=['bias']), "kinds=..bias.., expected.*'activation'"),
    ],
)
def test_bad_spaces_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**space)


def test_both_operands_of_a_product_are_one_choice(uniform_models, batches):
    """Of its activations; a product has no weight to choose bits for."""
    models, teacher = uniform_models(
        'transformer', (4, 8), ('weight', 'activation')
    )
    choices = find_choices(models, ('weight', 'activation'))
    of_products = [c for c in choices if 'product' in c.name]
    shape = model_shape(models[4].architecture, batches[0][:1])
    by_name = {layer.name: layer for layer in shape.layers}
    bits = models[4].bits
    modules = dict(teacher.named_modules())

    assert [c.kind for c in of_products] == ['activation'] * 4
    assert by_name[of_products[0].layers[0]].parameters == 0
    assert all(by_name[c.layers[0]].calls[0].macs > 0 for c in of_products)
    costs = BitOperations().pairwise(
        shape, bits, choices, {c.name: (4, 8) for c in choices}
    )
    four, eight = (costs({c.name: b for c in choices}) for b in (4, 8))
    assert four < eight
    assert four == BitOperations().of(shape, bits)
    with torch.no_grad():
        before = teacher(batches[0])
        with quantized_choices(modules, models, {of_products[1]: 4}):
            assert not torch.equal(teacher(batches[0]), before)
        assert torch.equal(teacher(batches[0]), before)
