"""Networks that give other things than logits, under any grad mode."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.functional import tensors
from mmrazor_brecq.layers import quant_layers

BRIEF = dict(
    type='BlockReconstructor',
    iterations=3,
    batch_size=16,
    objective=dict(type='FisherLowRank'),
    refiner=dict(type='NetworkRefiner', iterations=3, batch_size=16, draws=1),
)
LAST = 'all units together'


@dataclasses.dataclass
class Result:
    logits: Any
    hidden: Any = None


class Pair(NamedTuple):
    logits: Any
    label: Any


class ModelOutput(OrderedDict):
    def __init__(self, **values):
        super().__init__(values)
        self.__dict__.update(values)


class Network(nn.Module):
    """Two convolutions, a Linear, and any form of output."""

    def __init__(self, form, classes=5):
        super().__init__()
        self.form = form
        self.one = nn.Conv2d(3, 6, 3, padding=1)
        self.two = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, classes)

    def maps(self, x):
        return self.two(self.one(x).relu()).relu()

    def forward(self, x):
        return self.form(self, x)


def logits(net, x):
    return net.fc(net.maps(x).mean((2, 3)))


@torch.no_grad()
def under_no_grad(net, x):
    return logits(net, x)


@torch.inference_mode()
def under_inference_mode(net, x):
    return logits(net, x)


def in_a_block(net, x):
    with torch.no_grad():
        maps = net.maps(x)
    return net.fc(maps.mean((2, 3)))


def detached(net, x):
    return net.fc(net.maps(x).detach().mean((2, 3)))


def detections(net, x):
    """One dict an image, with as many boxes as score above nothing."""
    scores = logits(net, x)
    return [
        dict(
            boxes=row[row > 0][:, None].expand(-1, 4) * 10,
            labels=(row > 0).nonzero()[:, 0],
            scores=row[row > 0].sigmoid(),
        )
        for row in scores
    ]


FORMS = dict(
    tensor=logits,
    dataclass=lambda net, x: Result(logits(net, x)),
    model_output=lambda net, x: ModelOutput(logits=logits(net, x)),
    named_tuple=lambda net, x: (lambda out: Pair(out, out.argmax(1)))(
        logits(net, x)
    ),
    nested=lambda net, x: [dict(a=(logits(net, x), None)), 3, 'text'],
    sure=lambda net, x: (lambda out: dict(yes=out > 0, out=out, none=None))(
        logits(net, x)
    ),
    maps=lambda net, x: net.fc(net.maps(x).permute(0, 2, 3, 1)).permute(
        0, 3, 1, 2
    ),
    one_dimension=lambda net, x: logits(net, x)[:, 0],
    mean=lambda net, x: logits(net, x).square().mean(),
    empty=lambda net, x: (lambda out: [out[:, :0], out])(logits(net, x)),
    detections=detections,
)
#: Of these no gradient comes back from the outputs to the convolutions.
WITHOUT_GRADIENT = dict(
    under_no_grad=under_no_grad,
    under_inference_mode=under_inference_mode,
    in_a_block=in_a_block,
    detached=detached,
    argmax=lambda net, x: logits(net, x).argmax(1),
    yes_or_no=lambda net, x: logits(net, x) > 0,
    nothing=lambda net, x: [logits(net, x)[:, :0], None],
)


def build(form, classes=5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Network(form, classes).eval()


@pytest.fixture
def images(generator):
    return torch.randn(40, 3, 8, 8, generator=generator)


def quantized(network, images, **kwargs):
    model, report = mmrazor_brecq.quantize(
        network, images, 8, 8, reconstructor=BRIEF, batch_size=24, **kwargs
    )
    assert all(layer.frozen for layer in quant_layers(model).values())
    return model, {unit['name']: unit for unit in report['units']}


@pytest.mark.parametrize('form', FORMS)
def test_an_output_of_any_form(form, images):
    network = build(FORMS[form])
    model, units = quantized(network, images)
    goal, out = network(images), model(images)

    assert type(out) is type(goal)
    for unit in units.values():
        assert 'MSE' not in unit['objective']
    if form != 'detections':  # It may choose other boxes.
        assert len(tensors(out)) == len(tensors(goal))
        for x, y in zip(tensors(out), tensors(goal)):
            assert x.shape == y.shape and x.dtype == y.dtype
            if x.is_floating_point() and x.numel():
                assert (x - y).norm() < 0.05 * y.norm()


@pytest.mark.parametrize('form', WITHOUT_GRADIENT)
def test_without_a_gradient_squares_count_and_it_is_said(
    form, images, warnings_log
):
    network = build(WITHOUT_GRADIENT[form])
    model, units = quantized(network, images)

    for name in ('one', 'two'):
        assert units[name]['objective'].startswith('MSE')
        assert units[name]['before'] > 0 and not units[name]['note']
    direct = build(logits)
    with torch.no_grad():
        out = logits(model.architecture, images)
        torch.testing.assert_close(
            out, direct(images), rtol=0, atol=0.05 * float(out.std())
        )
    said = [line for line in warnings_log if 'plain MSE' in line]
    assert len(said) <= 1  # mmengine says the same thing once a process


def test_a_network_that_is_told_apart_says_so_for_its_units(
    images, warnings_log
):
    """Gradients reach the head, but nothing before what is detached."""

    def form(net, x):
        return net.two(net.one(x).detach().relu()).mean((2, 3))

    network = build(form)
    del network.fc
    _, units = quantized(network, images)
    assert units['one']['objective'].startswith('MSE')
    assert units['two']['objective'] == 'FisherLowRank, CategoricalSketch'
    (said,) = [line for line in warnings_log if 'plain MSE' in line]
    assert 'reaches one:' in said


@pytest.mark.parametrize('form', ['logits', 'masks'])
def test_the_last_pass_sees_the_error_of_one_logit(form, images):
    forms = dict(
        logits=logits,
        masks=lambda net, x: net.fc(net.maps(x).permute(0, 2, 3, 1)).permute(
            0, 3, 1, 2
        ),
    )
    _, units = quantized(build(forms[form], classes=1), images)
    assert units['fc']['objective'] == 'FisherLowRank, Bernoulli'
    assert units[LAST]['objective'] == 'Bernoulli'
    assert units[LAST]['before'] > 0


@pytest.mark.parametrize('guard', [torch.no_grad, torch.inference_mode])
def test_a_grad_mode_around_it_changes_nothing(guard, images, tmp_path):
    expected, _ = quantized(build(logits), images)
    with guard():
        network = build(logits)  # Its weights are of that mode, too.
        model, _ = quantized(network, images * 1)
        path = str(tmp_path / 'quantized.pth')
        mmrazor_brecq.save(model, path)
        loaded = mmrazor_brecq.load(network, path)
        assert torch.equal(loaded(images), expected(images))
    states = [m.state_dict() for m in (expected, model, loaded)]
    for key, value in states[0].items():
        assert all(torch.equal(value, state[key]) for state in states[1:])
    assert next(network.parameters()).is_inference() == (
        guard is torch.inference_mode
    )


@pytest.mark.parametrize('guard', [torch.no_grad, torch.inference_mode])
def test_a_network_is_prepared_and_learns_under_a_grad_mode(guard, images):
    """The steps by themselves, as a loop of one's own calls them."""
    states = []
    for mode in (torch.enable_grad, guard):
        with mode():
            model = mmrazor_brecq.algorithms.BRECQ(
                build(logits), reconstructor=BRIEF
            )
            teacher = model.prepare(images[:1])
            for report in model.reconstruct(teacher, images.split(20)):
                assert report.before and not report.note.startswith('no ')
                assert torch.is_grad_enabled() == (mode is torch.enable_grad)
            states.append(model.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])
