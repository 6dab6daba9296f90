"""The few activations that 8 bits do not resolve get 16, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.algorithms import BRECQ

NEAREST = dict(type='NearestRounding', batch_size=8)


def conv(inner, outer):
    return nn.Conv2d(inner, outer, 3, padding=1)


class Stem(nn.Module):
    """One channel of the stem is far larger than all others, and useless."""

    def __init__(self, factor=1e4):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.next = conv(3, 8), conv(8, 8)
        self.body, self.fc = conv(8, 8), nn.Linear(8, 5)
        with torch.no_grad():
            self.stem.weight[0] *= factor
            self.next.weight[:, 0] /= factor * 100

    def forward(self, x):
        x = self.body(self.next(self.stem(x).relu()).relu()).relu()
        return self.fc(x.mean((2, 3)))


class Amplifying(nn.Module):
    """Any error is amplified, and no activation is to blame."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([conv(3, 8)])
        self.layers.extend(conv(8, 8) for _ in range(6))

    def forward(self, x):
        for layer in self.layers:
            x = torch.sin(40 * layer(x))
        return x


@pytest.fixture
def pictures():
    torch.manual_seed(1)
    return torch.randn(24, 3, 8, 8)


def widened(network, images, bits=8, **options):
    model = BRECQ(
        network.eval(),
        dict(weight=dict(bits=8), activation=dict(bits=bits)),
        **options,
    )
    model.prepare(images[:1])
    return model, model.widen(CachedBatches([images], [len(images)]))


def test_the_activation_that_spoils_the_output_gets_16_bits(pictures):
    model, found = widened(Stem(), pictures)
    assert (
        list(found) == ['next.input_quantizer'] and min(found.values()) > 0.1
    )
    assert model.bits['next'] == (8, 16) and model.bits['body'] == (8, 8)
    # It is left as it was, without a scale.
    assert not model.architecture.next.input_quantizer.active


@pytest.mark.parametrize(
    'network, bits, options',
    [
        (lambda: Stem(1), 8, {}),
        (Amplifying, 8, {}),
        (Stem, 8, dict(wide_activations=False)),
        (Stem, 4, {}),  # The user wants few bits.
    ],
    ids=['harmless', 'amplifying', 'not_wanted', 'few_bits'],
)
def test_all_others_stay(network, bits, options, pictures):
    model, found = widened(network(), pictures, bits, **options)
    assert found == {}
    assert all(pair[1] in (8, bits) for pair in model.bits.values())


def test_a_widened_network_is_nearer_and_is_saved_and_exported(
    pictures, tmp_path
):
    network, path = Stem().eval(), str(tmp_path / 'model.pth')
    expected = network(pictures).detach()
    model, _ = mmrazor_brecq.quantize(
        network, pictures, 8, 8, reconstructor=NEAREST
    )
    error = (model(pictures) - expected).square().mean() / expected.var()
    assert error < 0.01
    assert model.bits['next'] == (8, 16)
    mmrazor_brecq.save(model, path)
    loaded = mmrazor_brecq.load(network, path)
    assert torch.equal(loaded(pictures), model(pictures))
    assert loaded.bits == model.bits

    pytest.importorskip('onnx')
    ort = pytest.importorskip('onnxruntime')
    path = str(tmp_path / 'model.onnx')
    found = mmrazor_brecq.export_onnx(model, pictures, path)
    assert all(layer['within'] == 1 for layer in found['layers'])
    # What computes with 16 bits does so in float, and all else in integers.
    assert 'next' in found['float_convolutions']
    assert found['operators']['QLinearConv'] == 1
    (out,) = ort.InferenceSession(path).run(None, {'image': pictures.numpy()})
    assert (torch.from_numpy(out) - expected).std() < 0.3 * expected.std()


def test_an_override_asks_for_16_bits(pictures, tmp_path):
    network, path = Stem().eval(), str(tmp_path / 'model.onnx')
    model, _ = mmrazor_brecq.quantize(
        network,
        pictures,
        *(4, 4),
        reconstructor=NEAREST,
        bit_overrides={'next': dict(activation=16)},
    )
    assert model.bits['next'] == (4, 16)
    with pytest.raises(ValueError, match="input of 'next' has 16"):
        mmrazor_brecq.export_onnx(model, pictures, path, target='tensorrt')
    with pytest.raises(ValueError, match=r'weight.*=16, expected.*2 to 8'):
        BRECQ(network, dict(bit_overrides={'next': dict(weight=16)}))
