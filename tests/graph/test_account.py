from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.graph import record, show_products
from mmrazor_brecq.graph.account import take_account


class Around(nn.Module):
    """Network with a layer before and after the tested part, on tokens."""

    def __init__(self, run, **parts):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.head = nn.Linear(8, 5)
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.head(self.run(self, self.embed(x)))


class Table(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.register_buffer('table', torch.ones(shape))


def weight(*shape):
    return nn.Parameter(torch.ones(shape))


def layer_with_extra():
    class LoRA(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.a, self.b = weight(2, 8), weight(8, 2)

        def forward(self, x):
            return super().forward(x) + x @ self.a.t() @ self.b.t()

    return LoRA()


#: Parts of a network, and what is left in float: the pattern of its reason,
#: and whether there is a warning.
CASES = dict(
    linear=(lambda s, x: F.linear(x, s.w), dict(w=lambda: weight(8, 8)), {}),
    product=(lambda s, x: x @ s.w, dict(w=lambda: weight(8, 8)), {}),
    einsum=(
        lambda s, x: torch.einsum('bnc,ck->bnk', x, s.w),
        dict(w=lambda: weight(8, 8)),
        {},
    ),
    product_from_the_left=(
        lambda s, x: s.w @ x.mT,
        dict(w=lambda: weight(8, 8)),
        {'w': ('a parameter.*mm in the network itself', True)},
    ),
    conv=(
        lambda s, x: F.conv1d(x.mT, s.w, padding=1).mT,
        dict(w=lambda: weight(8, 8, 3)),
        {'w': ('a parameter.*convolution', True)},
    ),
    transposed_function=(
        lambda s, x: F.conv_transpose1d(x.mT, s.w).mT,
        dict(w=lambda: weight(8, 8, 1)),
        {'w': ('a parameter.*convolution', True)},
    ),
    computed=(
        lambda s, x: F.linear(x, s.w * s.g.tanh()),
        dict(w=lambda: weight(8, 8), g=lambda: weight(8, 1)),
        {'w': ('a parameter.*mm', True), 'g': ('a parameter.*mm', True)},
    ),
    masked=(
        lambda s, x: F.linear(x, s.w * s.mask.table),
        dict(w=lambda: weight(8, 8), mask=lambda: Table(8, 8)),
        {'w': ('a parameter.*mm', True)},
    ),
    in_a_list=(
        lambda s, x: x @ s.ws[0] @ s.ws[1],
        dict(ws=lambda: nn.ParameterList([weight(8, 8), weight(8, 8)])),
        {},
    ),
    buffer=(
        lambda s, x: F.conv1d(x.mT, s.blur.table, groups=8, padding=1).mT,
        dict(blur=lambda: Table(8, 1, 3)),
        {'blur.table': ('a buffer.*convolution', True)},
    ),
    lstm=(
        lambda s, x: s.rnn(x)[0],
        dict(
            rnn=lambda: nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True)
        ),
        {'rnn': ('of type LSTM', True)},
    ),
    gru=(
        lambda s, x: s.rnn(x)[0],
        dict(rnn=lambda: nn.GRU(8, 8, batch_first=True)),
        {'rnn': ('of type GRU', True)},
    ),
    rnn=(
        lambda s, x: s.rnn(x)[0],
        dict(rnn=lambda: nn.RNN(8, 8, batch_first=True)),
        {'rnn': ('of type RNN', True)},
    ),
    cell=(
        lambda s, x: s.cell(x[:, 0])[0],
        dict(cell=lambda: nn.LSTMCell(8, 8)),
        {'cell': ('of type LSTMCell', True)},
    ),
    attention=(
        lambda s, x: s.mha(x, x, x)[0],
        dict(mha=lambda: nn.MultiheadAttention(8, 2)),
        {},
    ),
    unknown=(
        lambda s, x: torch.ops.aten.bmm(x, x.mT),
        {},
        {'bmm': ('a product of activations by bmm', True)},
    ),
    bilinear=(
        lambda s, x: s.both(x, x),
        dict(both=lambda: nn.Bilinear(8, 8, 8)),
        {'both': ('of type Bilinear', True)},
    ),
    transposed=(
        lambda s, x: s.up(x.mT).mT,
        dict(up=lambda: nn.ConvTranspose1d(8, 8, 2)),
        {'up': ('a transposed convolution', True)},
    ),
    embedding=(
        lambda s, x: x + s.words(torch.arange(x.shape[1])),
        dict(words=lambda: nn.Embedding(9, 8)),
        {'words': ('of type Embedding', True)},
    ),
    extra=(
        lambda s, x: s.lora(x),
        dict(lora=layer_with_extra),
        {
            'lora.a': ('a parameter.*mm in lora', True),
            'lora.b': ('a parameter.*mm in lora', True),
        },
    ),
    position=(
        lambda s, x: x + s.embedding[:, : x.shape[1]],
        dict(embedding=lambda: weight(1, 9, 8)),
        {'embedding': ('a parameter.*add', False)},
    ),
    gain=(
        lambda s, x: x * s.gain,
        dict(gain=lambda: weight(1, 1, 8)),
        {'gain': ('a parameter.*mul', False)},
    ),
    unused=(
        lambda s, x: x,
        dict(spare=lambda: weight(8, 8)),
        {'spare': ('does not use', False)},
    ),
    uncalled=(
        lambda s, x: x,
        dict(spare=lambda: nn.Linear(8, 8)),
        {'spare': ('not called in the forward pass', True)},
    ),
    by_function=(
        lambda s, x: F.linear(x, s.spare.weight),
        dict(spare=lambda: nn.Linear(8, 8)),
        {},
    ),
    by_convolution=(
        lambda s, x: F.conv1d(x.mT, s.spare.weight[..., None]).mT,
        dict(spare=lambda: nn.Linear(8, 8)),
        {'spare': ('not called.*its weight is: by.*convolution', True)},
    ),
    vectors=(
        lambda s, x: s.act(s.norm(x)) * s.gain,
        dict(
            norm=lambda: nn.LayerNorm(8),
            act=lambda: nn.PReLU(8),
            gain=lambda: weight(8),
        ),
        {},
    ),
    mask=(
        lambda s, x: x * s.mask.table + s.mask.table,
        dict(mask=lambda: Table(1, 8)),
        {},
    ),
)


@pytest.mark.parametrize('name', CASES)
def test_weights_that_stay_in_float_are_named_with_the_reason(
    name, generator, warnings_log
):
    run, parts, left = CASES[name]
    network = Around(run, **{k: v() for k, v in parts.items()}).eval()
    x = torch.randn(2, 8, 3, generator=generator)
    if 'norm' in parts:
        x = x.transpose(1, 2)[:, :, :3].contiguous()
    if name == 'vectors':
        network.act = nn.PReLU()
    model = BRECQ(network)
    model.prepare(x)
    account = model.account

    assert set(account.left_float) == set(left)
    for key, (reason, warned) in left.items():
        assert re.search(reason, account.left_float[key])
        lines = [line for line in warnings_log if line.startswith(f'{key} is')]
        assert len(lines) == warned
    assert len(warnings_log) == sum(warned for _, warned in left.values())
    assert {'embed', 'head'} <= set(account.quantized)
    assert str(account).startswith(
        f'{len(account.quantized)} of {account.layers} layers'
    )
    assert all(f'{key} (' in str(account) for key in left)


def test_an_ordinary_network_leaves_nothing_in_float(each_toy, batches):
    recording = record(each_toy, batches[0])
    if show_products(each_toy, recording):
        recording = record(each_toy, batches[0])
    account = take_account(each_toy, recording)
    expected = dict(uncalled=['auxiliary'], transposed=['up'])
    name = type(each_toy).__name__.lower()

    assert list(account.left_float) == expected.get(name, [])
    assert account.layers == len(account.quantized) + (name == 'uncalled')


def test_the_summary_lists_ten_names_at_most():
    network = nn.ModuleDict({f'l{i}': nn.Linear(2, 2) for i in range(30)})
    network.forward = network['l0'].forward
    model = nn.Sequential(nn.Linear(2, 2), nn.Module())
    model[1].__class__ = nn.Identity
    model[1].add_module('spare', network)
    account = take_account(model.eval(), record(model, torch.ones(1, 2)))

    assert str(account).startswith('1 of 31 layers quantized; 30 left in')
    assert str(account).endswith('and 20 more')
    assert len(account.to_dict()['left_float']) == 30


def test_the_error_says_why_nothing_is_quantized():
    model = nn.Sequential(nn.LSTM(3, 3)).eval()

    with pytest.raises(ValueError, match='nothing to quantize; 0 is of type'):
        BRECQ(model).prepare(torch.ones(1, 2, 3))
