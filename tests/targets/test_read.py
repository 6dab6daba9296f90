"""Descriptions of devices: packaged ones, a user's file, and bad ones."""

from __future__ import annotations

import os

import pytest

from mmrazor_brecq.export import build_target
from mmrazor_brecq.targets import known_targets

NPU = """
runtime: My NPU
operators:
  conv:
    weight: {bits: [4, 8], symmetric: true}
    activation: {bits: [8]}
  depthwise_conv: float
  linear: {weight: {bits: [8]}}
"""


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path."""

    def build(text, name='mine.yaml'):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return build


def test_every_packaged_target_is_valid():
    known = known_targets()
    assert {'onnxruntime', 'openvino', 'tensorrt', 'example-npu'} <= {*known}
    for name in known:
        target = build_target(name)
        assert target.name == name and target.runtime
        assert target.limits('conv', 'weight')
    assert build_target('tensorrt').limits('product', 'activation').symmetric
    assert 16 in build_target('openvino').limits('conv', 'activation').bits


def test_a_file_of_ones_own_says_what_each_kind_takes(write):
    target = build_target(write(NPU))
    assert (target.name, target.title) == ('mine', 'My NPU')
    assert [*target.limits('conv', 'weight').bits] == [4, 8]
    # Groups are as convolutions, unless they are named.
    assert target.limits('grouped_conv', 'weight').symmetric is True
    assert target.limits('depthwise_conv', 'weight') is None
    assert target.limits('product', 'activation') is None
    assert 2 in target.limits('linear', 'activation').bits


def test_a_misspelled_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match="mean 'tensorrt'") as info:
        build_target('tensor-rt')
    assert '--target' in str(info.value) and 'example-npu' in str(info.value)
    with pytest.raises(FileNotFoundError, match='nowhere.yaml.*no such file'):
        build_target('nowhere.yaml')


@pytest.mark.parametrize(
    'old, new, message',
    [
        ('[4, 8]', '[4, 99]', r'conv\.weight\.bits=\[4, 99\], expected .* 8'),
        ('[4, 8]', '[16]', r'weight\.bits=\[16\]'),
        ('[4, 8]', '[]', r'bits=\[\], expected a list of one or more'),
        ('[4, 8]', '[true]', r'bits=\[True\]'),
        ('[4, 8]', '4', r'bits=4, expected a list'),
        ('symmetric', 'symetric', "mean 'symmetric'"),
        ('  linear:', '  lineal:', "mean 'linear'"),
        ('runtime', 'runtim', "mean 'runtime'"),
        ('float', 'int8', "depthwise_conv='int8'"),
        (NPU, 'operators: {}', 'operators names no kind'),
        (NPU, 'operators: {product: {weight: {bits: [8]}}}', 'weight is an'),
        (NPU, 'fuses: [Rellu]', 'fuses'),
        (NPU, 'packed: [3]', 'packed'),
        (NPU, '- a list', 'no keys with values'),
        (NPU, '{{ runtime }}', 'describes no target'),
        (NPU, 'runtime: !!python/object/apply:os.abort []', 'nothing in it'),
        (NPU, 'a: &a [x, x]\n' * 2 + 'b: [*nothing]', 'nothing'),
        (
            NPU,
            'a0: &a0 [x, x, x, x, x, x, x, x, x]\n'
            + ''.join(
                f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]\n'
                for i in range(1, 9)
            ),
            'aliases expanded',
        ),
    ],
)
def test_a_bad_file_is_refused_by_name(write, old, new, message):
    assert old in NPU
    path = write(NPU.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as info:
        build_target(path)
    assert 'mine.yaml' in str(info.value)


def test_what_is_no_file_is_not_opened(tmp_path, write):
    pipe = str(tmp_path / 'pipe.yaml')
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match='no regular file'):
        build_target(pipe)
    with pytest.raises(ValueError, match='another ending'):
        build_target(write(NPU, 'mine.txt'))
