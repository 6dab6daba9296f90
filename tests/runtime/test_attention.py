from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrazor_brecq.runtime.attention import no_fast_path, run_through_layers


@pytest.mark.parametrize('before', [True, False])
def test_the_fast_path_is_as_it_was_afterwards(before):
    after = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(before)
        with pytest.raises(KeyError), no_fast_path():
            assert not torch.backends.mha.get_fastpath_enabled()
            raise KeyError
        assert torch.backends.mha.get_fastpath_enabled() == before
    finally:
        torch.backends.mha.set_fastpath_enabled(after)


@torch.no_grad()
def test_an_encoder_calls_its_layers(generator):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.TransformerEncoder(layer, 1).eval()
    x = torch.randn(2, 5, 8, generator=generator)
    before = network(x)
    calls = []
    forward = nn.Linear.forward

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(self)
            return forward(self, x)

    inner = network.layers[0]
    for linear in inner.linear1, inner.linear2:
        linear.__class__ = Counted
    network(x)
    assert not calls
    run_through_layers(network)
    after = network(x)

    assert calls == [inner.linear1, inner.linear2]
    torch.testing.assert_close(before, after)
