from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrazor_brecq.objectives import (
    Bernoulli,
    Categorical,
    CategoricalSketch,
    FisherDiag,
    FromOutput,
    Gaussian,
)
from mmrazor_brecq.objectives.gradients import real_outputs
from mmrazor_brecq.registry import TASK_UTILS

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Head(nn.Module):
    """A convolution and a last layer, with an output of any form."""

    def __init__(self, layer, form):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.layer, self.form = layer, form

    def forward(self, x):
        return self.form(self.layer, self.conv(x))


def pooled(layer, x):
    return layer(x.mean((2, 3)))


def tokens(x):
    return x.flatten(2).transpose(1, 2)


#: By name: the last layer, the output, and the likelihood expected.
HEADS = dict(
    logits=(nn.Linear(6, 5), pooled, 'Categorical'),
    one_logit=(nn.Linear(6, 1), pooled, 'Bernoulli'),
    squeezed=(
        nn.Linear(6, 1),
        lambda layer, x: pooled(layer, x)[:, 0],
        'Bernoulli',
    ),
    maps=(nn.Conv2d(6, 5, 1), lambda layer, x: layer(x), 'axis 1'),
    upsampled=(
        nn.Conv2d(6, 5, 1),
        lambda layer, x: nn.functional.interpolate(layer(x), scale_factor=2),
        'axis 1',
    ),
    as_wide_as_classes=(
        nn.Conv2d(6, 8, 1),
        lambda layer, x: layer(x),
        'axis 1',
    ),
    mask=(nn.Conv2d(6, 1, 1), lambda layer, x: layer(x), 'Bernoulli'),
    sequence=(
        nn.Linear(6, 5),
        lambda layer, x: layer(tokens(x)),
        'Categorical',
    ),
    turned_sequence=(
        nn.Linear(6, 5),
        lambda layer, x: layer(tokens(x)).transpose(1, 2),
        'axis 1',
    ),
    as_long_as_classes=(
        nn.Linear(6, 64),
        lambda layer, x: layer(tokens(x)),
        'Categorical',
    ),
    convolved_sequence=(
        nn.Conv1d(6, 5, 1),
        lambda layer, x: layer(x.flatten(2)),
        'axis 1',
    ),
    convolved_as_long=(
        nn.Conv1d(6, 64, 1),
        lambda layer, x: layer(x.flatten(2)),
        'axis 1',
    ),
    linear_maps=(
        nn.Linear(6, 5),
        lambda layer, x: layer(x.permute(0, 2, 3, 1)),
        'Categorical',
    ),
    softmax=(
        nn.Linear(6, 5),
        lambda layer, x: pooled(layer, x).softmax(1),
        'Categorical of probabilities',
    ),
    log_softmax=(
        nn.Linear(6, 5),
        lambda layer, x: pooled(layer, x).log_softmax(1),
        'Categorical',
    ),
    sigmoid=(
        nn.Linear(6, 1),
        lambda layer, x: pooled(layer, x).sigmoid(),
        'Bernoulli of probabilities',
    ),
    labels=(
        nn.Linear(6, 5),
        lambda layer, x: pooled(layer, x).sigmoid(),
        'Bernoulli of probabilities',
    ),
    restored=(
        nn.Conv2d(6, 3, 1),
        lambda layer, x: IMAGES[: len(x)] + 0.01 * layer(x),
        'Gaussian',
    ),
    prices=(
        nn.Linear(6, 1),
        lambda layer, x: 300 + pooled(layer, x),
        'Gaussian',
    ),
    coordinates=(
        nn.Linear(6, 4),
        lambda layer, x: pooled(layer, x) + torch.tensor([0.0, 90, 250, 400]),
        'Gaussian',
    ),
    number=(nn.Linear(6, 1), lambda layer, x: layer(tokens(x)).mean(), 'Gau'),
    several=(
        nn.Linear(6, 5),
        lambda layer, x: dict(label=pooled(layer, x), box=[x.mean((1, 2, 3))]),
        'Categorical and Bernoulli',
    ),
)


def head(name):
    layer, form, expected = HEADS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Head(layer, form)
        for parameter in network.parameters():
            nn.init.normal_(parameter, 0, 0.5)
    return network.eval().requires_grad_(False), expected


def outputs_of(network):
    return real_outputs(network(IMAGES))


@pytest.mark.parametrize('name', HEADS)
def test_the_likelihood_follows_from_the_form_of_an_output(name):
    network, expected = head(name)
    likelihood = FromOutput()
    likelihood.see(network, IMAGES, outputs_of(network))
    name = str(likelihood)
    assert name.endswith(expected) or name.startswith(expected)
    assert ('axis' in name) == ('axis' in expected)


@pytest.mark.parametrize('name', HEADS)
def test_the_divergence_is_zero_only_without_error(name, generator):
    network, _ = head(name)
    goals = outputs_of(network)
    likelihood = FromOutput()
    likelihood.see(network, IMAGES, goals)
    outputs = [
        goal + 0.01 * torch.randn(goal.shape, generator=generator)
        if goal.dim()
        else goal + 1
        for goal in goals
    ]
    outputs = [out.detach().requires_grad_() for out in outputs]
    error = likelihood.divergence(outputs, goals)
    assert float(likelihood.divergence(goals, goals)) == pytest.approx(
        0, abs=1e-5
    )
    assert float(error.detach()) > 1e-7
    error.backward()
    likelihood(outputs, generator).backward()
    for out in outputs:
        assert out.grad.isfinite().all() and out.grad.any()


@pytest.mark.parametrize('kind', ['Categorical', 'CategoricalSketch'])
def test_logits_give_the_numbers_of_their_likelihood_bit_by_bit(kind):
    """No result of a classifier changes."""
    cfg = dict(type=kind, temperature=4.0)
    grads, errors = [], []
    for likelihood in FromOutput(cfg), TASK_UTILS.build(cfg):
        logits = torch.randn(
            9, 5, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        draws = torch.Generator().manual_seed(2)
        likelihood([logits], draws).backward()
        grads.append(logits.grad)
        errors.append(likelihood.divergence([logits], [logits * 2]))
    assert torch.equal(*grads) and torch.equal(*errors)


@pytest.mark.parametrize('kind', [Categorical, CategoricalSketch])
def test_maps_are_pixels_with_classes_on_axis_1(kind, generator):
    maps = torch.randn(2, 5, 3, 4, generator=generator).requires_grad_()
    pixels = maps.detach().permute(0, 2, 3, 1).reshape(-1, 5)
    pixels.requires_grad_()
    goal = torch.randn(2, 5, 3, 4, generator=generator)
    kind()([maps], torch.Generator().manual_seed(0)).backward()
    kind()([pixels], torch.Generator().manual_seed(0)).backward()
    turned = pixels.grad.reshape(2, 3, 4, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps.grad, turned)

    error = kind().divergence([maps], [goal])
    rows = goal.permute(0, 2, 3, 1).reshape(-1, 5)
    torch.testing.assert_close(error, 12 * kind().divergence([pixels], [rows]))


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_a_bernoulli_logit_has_its_fisher_information(temperature, generator):
    likelihood = Bernoulli(temperature)
    row = torch.tensor([-3.0, -0.5, 0.0, 2.0])
    logits = row.repeat(40000, 1).requires_grad_()
    likelihood([logits], generator).backward()
    probs = (row / temperature).sigmoid()
    expected = probs * (1 - probs) / temperature**2
    torch.testing.assert_close(
        logits.grad.square().mean(0), expected, rtol=0.05, atol=0
    )


def test_the_divergence_of_one_logit_is_that_of_two_classes(generator):
    out = torch.randn(6, 1, generator=generator)
    goal = torch.randn(6, 1, generator=generator)
    pairs = [torch.cat([x, torch.zeros_like(x)], 1) for x in (out, goal)]
    torch.testing.assert_close(
        Bernoulli(2.0).divergence([out], [goal]),
        Categorical(2.0).divergence([pairs[0]], [pairs[1]]),
    )


@pytest.mark.parametrize('shape', [(4, 1), (4,), (4, 1, 2, 2)])
def test_fewer_than_two_classes_are_refused(shape, generator):
    with pytest.raises(ValueError, match=r"fewer than two.*'Bernoulli'"):
        Categorical()([torch.zeros(shape)], generator)


def test_outputs_whose_size_differs_do_not_count(generator):
    likelihood = FromOutput()
    boxes = torch.randn(3, 5, generator=generator)
    fewer, logits = boxes[:2], torch.randn(4, 5, generator=generator)
    alone = likelihood.divergence([2 * logits], [logits])
    both = likelihood.divergence([2 * logits, fewer], [logits, boxes])
    assert torch.equal(alone, both)
    assert float(likelihood.divergence([fewer], [boxes])) == 0


def test_the_likelihood_comes_from_the_config():
    assert isinstance(
        FisherDiag(likelihood=dict(type='Gaussian')).likelihood, Gaussian
    )
    assert isinstance(FisherDiag().likelihood, FromOutput)
    with pytest.raises(ValueError, match='temperature=0'):
        FromOutput(dict(type='Categorical', temperature=0))
