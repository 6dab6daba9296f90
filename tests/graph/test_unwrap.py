from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.graph import unwrap, unwrap_parts

WRAPPERS = dict(
    compiled=torch.compile,
    parallel=nn.DataParallel,
    averaged=AveragedModel,
    twice=lambda x: nn.DataParallel(torch.compile(x)),
)


@pytest.fixture(params=WRAPPERS)
def wrap(request):
    return WRAPPERS[request.param]


def test_a_wrapper_gives_the_network_inside(wrap, toy):
    network = toy('residual')
    found = unwrap(wrap(network))
    assert type(found) is type(network)
    assert found.state_dict().keys() == network.state_dict().keys()


def test_a_part_may_be_wrapped(wrap, toy):
    network = toy('residual')
    keys = list(network.state_dict())
    network.blocks = wrap(network.blocks)
    network.stem[0] = wrap(network.stem[0])
    assert list(unwrap_parts(network).state_dict()) == keys
    assert unwrap_parts(nn.Identity()) is not None


def test_a_network_without_wrapper_stays_the_same(toy):
    network = toy('residual')
    assert unwrap(network) is network
    assert unwrap_parts(network) is network


@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_scripted_and_traced_networks_are_refused_with_the_cure(toy):
    network, x = toy('residual'), torch.zeros(1, 3, 8, 8)
    for scripted in (
        torch.jit.trace(network, x),
        torch.jit.script(network),
    ):
        for model in scripted, nn.DataParallel(scripted):
            with pytest.raises(ValueError, match='scripted or traced.*Give'):
                unwrap(model)
            with pytest.raises(ValueError, match='scripted or traced'):
                BRECQ(model)
