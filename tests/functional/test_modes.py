from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrazor_brecq.functional import (
    in_grad_mode,
    make_tensors_normal,
    to_normal_tensor,
)

GUARDS = dict(
    none=torch.enable_grad,
    no_grad=torch.no_grad,
    inference=torch.inference_mode,
)


@pytest.mark.parametrize('guard', GUARDS)
def test_a_function_learns_under_any_mode(guard):
    @in_grad_mode
    def gradient():
        x = torch.ones(2, requires_grad=True)
        (x * 3).sum().backward()
        return x.grad

    with GUARDS[guard]():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = gradient()
        after = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    assert torch.equal(found, torch.full((2,), 3.0))
    assert not found.is_inference() and before == after


@pytest.mark.parametrize('guard', GUARDS)
def test_a_generator_keeps_its_mode_and_that_of_its_caller(guard):
    @in_grad_mode
    def values():
        for _ in range(2):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            yield torch.ones(1)

    with GUARDS[guard]():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        for value in values():
            assert not value.is_inference()
            now = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            assert now == before


def test_a_tensor_is_copied_only_if_it_has_to_be():
    plain = torch.ones(2)
    with torch.inference_mode():
        made = torch.ones(2)
    assert to_normal_tensor(plain) is plain
    assert not to_normal_tensor(made).is_inference()
    assert torch.equal(to_normal_tensor(made), made)


def test_a_network_built_in_inference_mode_can_learn():
    with torch.inference_mode():
        network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
        network[0].weight.requires_grad_(False)
        state = network.state_dict()
        make_tensors_normal(network)
    network(torch.ones(1, 2)).sum().backward()

    assert network[0].bias.grad is not None
    assert not network[0].weight.requires_grad
    for name, value in network.state_dict().items():
        assert not value.is_inference()
        assert torch.equal(value, state[name])
