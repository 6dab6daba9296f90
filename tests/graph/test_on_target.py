"""A quantization keeps to what a device allows, before it begins."""

from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.checkpoint import build_quantized, save_quantized
from mmrazor_brecq.export import build_target
from mmrazor_brecq.layers import products, quant_layers
from mmrazor_brecq.quantizers import ActivationQuantizer

#: An operator that may have any bits, and one with 8 alone.
ANY, EIGHT = dict(), dict(weight=dict(bits=[8]), activation=dict(bits=[8]))


def device(**operators):
    return dict(
        name='mine', operators=dict(dict(conv=ANY, linear=ANY), **operators)
    )


@pytest.fixture
def prepared(toy, images):
    """Prepares a toy network for a device."""

    def build(name, target, weight=4, activation=4, **scheme):
        model = BRECQ(
            toy(name),
            dict(
                dict(
                    weight=dict(bits=weight),
                    activation=activation and dict(bits=activation),
                ),
                **scheme,
            ),
            reconstructor=dict(type='NearestRounding', batch_size=8),
            target=target,
        ).eval()
        teacher = model.prepare(images[:1])
        return model, teacher

    return build


def test_the_one_choice_of_a_device_is_taken_and_said(prepared, said_log):
    model, _ = prepared('residual', 'tensorrt')
    for layer in quant_layers(model).values():
        assert layer.weight_quantizer.grid.symmetric
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            assert module.grid.symmetric
    for side in 'weight', 'activation':
        line = f'TensorRT: model.quantization.{side}.symmetric=True'
        assert any(text.startswith(line) for text in said_log)
    plain, _ = prepared('residual', 'onnxruntime')
    assert plain.scheme == prepared('residual', None)[0].scheme


def test_an_npu_has_its_bits_by_kind_and_its_file_is_exported(
    prepared, images, tmp_path
):
    """Quantized for it, saved, loaded, and checked without a word more."""
    model, teacher = prepared('inverted', 'example-npu')
    assert model.bits['blocks.0.depthwise.0'] == (8, 8)
    assert model.bits['blocks.0.expand.0'] == (4, 4)
    list(model.reconstruct(teacher, list(images.split(16))))
    path = str(tmp_path / 'quantized.pth')
    save_quantized(model, {}, path)
    target = build_target('example-npu')
    loaded = build_quantized(teacher, path)
    for network in model, loaded:
        target.check(network)
        target.check_packed(network.architecture)
    assert torch.equal(loaded(images), model(images))


def test_what_a_device_does_not_compute_stays_in_float(
    prepared, images, tmp_path, said_log
):
    model, teacher = prepared('transformer', 'example-npu')
    assert len(products(model)) == 4
    assert not [x for x in model.bits if 'product' in x]
    assert any('computes no product' in line for line in said_log)
    list(model.reconstruct(teacher, list(images.split(16))))
    save_quantized(model, {}, str(tmp_path / 'quantized.pth'))
    loaded = build_quantized(teacher, str(tmp_path / 'quantized.pth'))
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(
    'target, scheme, message',
    [
        (
            'example-npu',
            dict(weight=3),
            r'weight\.bits \(`weight_bits`\)=3.*4 or 8 bits alone',
        ),
        (
            'example-npu',
            dict(activation=None),
            r'activation_bits.*=None.* 4 or 8 bits',
        ),
        ('example-npu', dict(first_last_bits=6), 'first_last_bits=6.*4 or 8'),
        (
            'example-npu',
            dict(quantize_shortcuts=False),
            'quantize_shortcuts.*=False',
        ),
        (
            'example-npu',
            dict(bit_overrides={'blocks.1.*': 5}),
            r"bit_overrides\['blocks.1.\*'\].*=5",
        ),
        (
            'example-npu',
            dict(bit_overrides={'head': None}),
            r"bit_overrides\['head'\].*=None",
        ),
        (
            'tensorrt',
            dict(bit_overrides={'head': dict(activation=16)}),
            "'head'.*=16",
        ),
        (
            device(conv=EIGHT, linear=EIGHT),
            {},
            r'weight\.bits.*=4.* 8 bits alone',
        ),
        (
            device(
                conv=dict(weight=dict(symmetric=True)),
                linear=dict(weight=dict(symmetric=False)),
            ),
            {},
            'symmetric to be True for conv and False for linear',
        ),
    ],
)
def test_what_a_device_cannot_do_is_refused(prepared, target, scheme, message):
    options = dict(
        bit_overrides={},
        **{k: v for k, v in scheme.items() if k != 'bit_overrides'},
    )
    options.update(scheme)
    with pytest.raises(ValueError, match=message) as info:
        prepared('residual', target, **options)
    assert 'model.quantization' in str(info.value) or 'bit_overrides' in str(
        info.value
    )


def test_bits_of_a_search_and_those_of_the_device_go_together(prepared):
    """Where overrides decide all layers but those with one choice."""
    names = [
        f'blocks.{i}.{part}.0'
        for i in (0, 1)
        for part in ('expand', 'project')
    ]
    model, _ = prepared(
        'inverted', 'example-npu', bit_overrides=dict.fromkeys(names, 8)
    )
    assert set(model.bits.values()) == {(8, 8)}


def test_what_is_given_and_conflicts_is_refused(toy, images):
    model = BRECQ(
        toy('residual'),
        dict(weight=dict(bits=8, symmetric=False)),
        target='tensorrt',
    )
    with pytest.raises(
        ValueError, match=r'weight\.symmetric.*=False.*symmetric=True alone'
    ):
        model.prepare(images[:1])


def test_defaults_give_way_to_a_device_with_fewer_bits(toy, images):
    """Nobody asked for the 8 bits of the first and the last layer."""
    four = dict(
        weight=dict(bits=[4], per_channel=False), activation=dict(bits=[4])
    )
    model = BRECQ(
        toy('residual'),
        dict(weight=dict(bits=4), activation=4),
        target=device(conv=four, linear=four),
    )
    model.prepare(images[:1])
    assert set(model.bits.values()) == {(4, 4)}
    for layer in quant_layers(model).values():
        assert len(layer.weight_quantizer.scale) == 1
    floats = BRECQ(
        toy('residual'),
        dict(weight=4),
        target=device(
            conv=dict(activation=dict(bits=[32])),
            linear=dict(activation=dict(bits=[32])),
        ),
    )
    floats.prepare(images[:1])
    assert floats.scheme.activation is None


def test_readers_of_one_tensor_need_bits_in_common(toy, images):
    """The door has the most bits of its readers, which all have to take."""
    four = dict(weight=dict(bits=[4]), activation=dict(bits=[4]))
    model = BRECQ(
        toy('residual'),
        dict(
            weight=4,
            activation=4,
            bit_overrides={'blocks.1.conv1': dict(activation=8)},
        ),
        target=device(conv=dict(activation=dict(bits=[4, 8])), linear=four),
    )
    model.prepare(images[:1])
    refused = build_target(device(conv=four, linear=four))
    with pytest.raises(ValueError, match='mine takes 4 bits alone'):
        refused.check(model)
