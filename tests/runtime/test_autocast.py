from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.functional import tensors
from mmrazor_brecq.graph import run_float
from mmrazor_brecq.runtime import autocast
from mmrazor_brecq.runtime.autocast import Autocast


def measure(fastest, network, batches):
    fastest.measure(
        lambda x: tensors(run_float(network, x)),
        network.parameters(),
        torch.cat(batches),
    )


@pytest.fixture
def set_seconds(monkeypatch):
    """Set the seconds of an image in float32 and in bfloat16."""

    def set_(exact, low_precision):
        sizes = []

        def seconds(run, parameters, inputs, dtype):
            sizes.append(len(inputs))
            time = low_precision if dtype else exact
            return time * len(inputs)

        monkeypatch.setattr(autocast, '_seconds', seconds)
        return sizes

    return set_


@pytest.mark.parametrize(
    'low_precision, chosen', [(0.5, 'bfloat16'), (0.95, None), (2.0, None)]
)
def test_bfloat16_is_chosen_if_it_is_clearly_faster(
    low_precision, chosen, set_seconds, toy, batches
):
    set_seconds(1.0, low_precision)
    fastest = Autocast('fastest')
    assert fastest.undecided
    measure(fastest, toy('residual'), batches)
    assert fastest.chosen == chosen and not fastest.undecided


@pytest.mark.parametrize('name', [None, 'bfloat16', 'float16'])
def test_a_named_dtype_is_not_measured(name, set_seconds, toy, batches):
    sizes = set_seconds(1.0, 0.1)
    named = Autocast(name)
    measure(named, toy('residual'), batches)
    assert named.chosen == name and not sizes


def test_the_dtype_is_measured_once(set_seconds, toy, batches):
    sizes = set_seconds(1.0, 0.1)
    fastest = Autocast('fastest')
    for _ in range(2):
        measure(fastest, toy('residual'), batches)
    assert len(sizes) == 10


def test_two_images_suffice_if_bfloat16_is_much_slower(
    set_seconds, toy, batches
):
    sizes = set_seconds(1.0, 8.0)
    measure(Autocast('fastest'), toy('residual'), batches)
    assert sizes == [2] * 4


def test_measuring_leaves_the_network_as_it_was(each_toy, batches):
    network = each_toy.eval().requires_grad_(False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    fastest = Autocast('fastest')
    measure(fastest, network, batches)
    assert fastest.chosen in (None, 'bfloat16')
    after = network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    for parameter in network.parameters():
        assert parameter.grad is None and not parameter.requires_grad
    assert not run_float(network, batches[0]).requires_grad


class Exact(torch.nn.Module):
    def forward(self, x):
        if x.dtype == torch.bfloat16:
            raise RuntimeError('not implemented for BFloat16')
        return x


def test_a_dtype_that_an_operator_lacks_is_not_chosen(batches):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), Exact())
    fastest = Autocast('fastest')
    measure(fastest, network, batches)
    assert fastest.chosen is None and not fastest.undecided


@pytest.mark.parametrize('name', ['bfloat16', None])
def test_layers_compute_in_the_chosen_dtype(name):
    named, layer = Autocast(name), torch.nn.Linear(3, 2)
    with named(torch.device('cpu')):
        assert layer(torch.ones(1, 3)).dtype == (
            torch.bfloat16 if name else torch.float32
        )


def test_only_a_chosen_dtype_is_of_low_precision():
    assert Autocast('bfloat16').low_precision and not Autocast().low_precision
    assert not Autocast('fastest').low_precision


@pytest.mark.parametrize('before', ['bfloat16', None])
def test_a_resumed_run_keeps_its_dtype(before):
    fastest = Autocast('fastest')
    fastest.resume([])
    assert fastest.undecided
    fastest.resume([None, before])
    assert fastest.chosen == before
    assert not fastest.undecided


def test_a_named_dtype_has_priority_over_that_of_an_earlier_run():
    named = Autocast('float16')
    named.resume(['bfloat16'])
    assert named.chosen == 'float16'


def test_an_unknown_dtype_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match='int3.*bfloat16'):
        Autocast('int3')
