"""The first scales of a unit's quantizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.layers import products, quant_layers
from mmrazor_brecq.quantizers import LpChoice, LpObserver

NEAREST = dict(type='NearestRounding', batch_size=8)


class Tokens(nn.Module):
    """An MLP whose middle has a few large values; its end ignores them."""

    def __init__(self, ignored=True):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 1)
        self.mlp = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.mlp[0].weight[0] *= 30
            self.mlp[2].weight[:, 0] *= 0.0 if ignored else 1.0

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        x = x + (x @ x.mT).softmax(-1) @ x
        return self.head((x + self.mlp(x)).mean(1))


@pytest.fixture
def images():
    return torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def reconstructed(network, images, observer=None, **more):
    """A model with nearest rounding, and its float network."""
    activation = dict(bits=4)
    if observer:
        activation['observer'] = observer
    model = BRECQ(
        network.eval(),
        dict(weight=dict(bits=8), activation=activation, **more),
        reconstructor=NEAREST,
        equalize_norms=False,
    ).eval()
    cached = CachedBatches(list(images.split(8)), [8, 8])
    teacher = model.prepare(images[:1])
    list(model.reconstruct(teacher, cached))
    return model, teacher


def test_tokens_and_products_choose_an_exponent(images):
    model, _ = reconstructed(Tokens(), images)
    layers = quant_layers(model.architecture)
    (first, second) = products(model.architecture).values()
    for quantizer in (
        layers['mlp.0'].input_quantizer,
        layers['mlp.2'].input_quantizer,
        *(first.left_quantizer, first.right_quantizer),
        *(second.left_quantizer, second.right_quantizer),
    ):
        assert isinstance(quantizer.observer, LpChoice)
    for name in ('stem', 'head'):
        assert isinstance(layers[name].input_quantizer.observer, LpObserver)
    own = dict(type='LpObserver', p=2.0)
    model, _ = reconstructed(Tokens(), images, own)
    for layer in quant_layers(model.architecture).values():
        observer = layer.input_quantizer.observer
        assert isinstance(observer, LpObserver) and observer.p == 2.0


@pytest.mark.parametrize('ignored', [True, False])
def test_the_exponent_suits_the_output_of_the_unit(images, ignored):
    scales, errors = {}, {}
    for exponents in ((1.0,), (4.0,), (4.0, 1.0), (1.0, 4.0)):
        model, teacher = reconstructed(
            Tokens(ignored),
            images,
            dict(type='LpChoice', exponents=exponents),
            # One quantizer alone.
            bit_overrides={
                name: None for name in ('stem', 'mlp.0', 'head', 'product_*')
            },
        )
        tokens = teacher.stem(images).detach().flatten(2).mT
        with torch.no_grad():
            outputs = [n.mlp(tokens) for n in (teacher, model.architecture)]
        scales[exponents] = float(
            model.architecture.mlp[2].input_quantizer.scale
        )
        errors[exponents] = float((outputs[0] - outputs[1]).square().mean())
    # What the output ignores has no say in the scale.
    best = (1.0,) if ignored else (4.0,)
    assert errors[best] == min(errors.values())
    assert scales[1.0, 4.0] == scales[4.0, 1.0] == scales[best]
    assert scales[1.0,] < 0.6 * scales[4.0,]
