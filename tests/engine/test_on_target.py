"""Searches and tools keep to what a device allows."""

from __future__ import annotations

import pytest

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.cli import add_target_option, config_of, tool_parser
from mmrazor_brecq.engine.sensitivity_run import MixedPrecision, find_space

from .conftest import CONFIG


@pytest.fixture
def space(toy, images):
    """Finds the choices in a toy network for a device."""

    def find(name, target='example-npu', **settings):
        model = BRECQ(toy(name), dict(weight=4, activation=4), target=target)
        return find_space(model.eval(), MixedPrecision(**settings), images[:1])

    return find


def test_a_search_has_the_bits_of_the_device(space):
    found = space('inverted', kinds=['weight', 'activation'])
    assert found.settings.bits == (4, 8)
    layers = {name for choice in found.choices for name in choice.layers}
    # Depthwise convolutions have one choice, so there is nothing to search.
    assert 'blocks.0.expand.0' in layers
    assert 'blocks.0.depthwise.0' not in layers
    allowed = found.settings.bit_widths(found.choices)
    assert {*allowed.values()} == {(4, 8)}


def test_kinds_of_operators_are_searched_among_their_own_bits(space):
    device = dict(
        operators=dict(
            conv=dict(weight=dict(bits=[2, 4, 8])),
            depthwise_conv=dict(weight=dict(bits=[4, 6, 8])),
            linear=dict(weight=dict(bits=[8])),
        )
    )
    found = space('inverted', device, allowed={'blocks.0.*': [2, 4]})
    assert found.settings.bits == (2, 4, 6, 8)
    allowed = found.settings.bit_widths(found.choices)
    assert allowed['blocks.0.expand.0.weight'] == (2, 4)
    assert allowed['blocks.0.depthwise.0.weight'] == (4,)
    assert allowed['blocks.1.depthwise.0.weight'] == (4, 6, 8)


def test_a_search_without_two_bit_widths_is_refused(space):
    with pytest.raises(ValueError, match=r'bits=\[2, 3\].*takes \[4, 8\]'):
        space('residual', bits=[2, 3])


def options(*target):
    parser = tool_parser('', config='')
    add_target_option(parser)
    return parser.parse_args([CONFIG, *target])


def test_a_tool_reads_the_file_of_a_target_at_once(tmp_path):
    """So that the config of the run needs the file no more."""
    path = tmp_path / 'mine.yaml'
    path.write_text('operators: {conv: {weight: {bits: [8]}}}')
    cfg = config_of(options('--target', str(path)))
    assert cfg.model.target.name == 'mine'
    assert cfg.model.target.operators.conv.weight.bits == [8]
    assert (
        config_of(options('--target', 'tensorrt')).model.target == 'tensorrt'
    )
    assert 'target' not in config_of(options()).model
    with pytest.raises(ValueError, match="mean 'openvino'"):
        config_of(options('--target', 'openvno'))
    with pytest.raises(FileNotFoundError, match='none.yaml'):
        config_of(options('--target', str(tmp_path / 'none.yaml')))
