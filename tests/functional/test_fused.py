from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from mmrazor_brecq.functional import (
    dequantize_rows,
    fake_quantize,
    flat,
    from_rows,
    fused,
    like,
    relaxed_rows,
    rows,
    weighted_squared_error,
)

LAYOUTS = dict(
    contiguous=lambda x: x,
    channels_last=lambda x: x.to(memory_format=torch.channels_last),
    transposed=lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    matrix=lambda x: x.flatten(1).t(),
    sliced=lambda x: x[..., 1:-1],
    expanded=lambda x: x[:, :1].expand_as(x),
    scalar=lambda x: x[0, 0, 0, 0],
    empty=lambda x: x[:0],
)
each_layout = pytest.mark.parametrize('layout', LAYOUTS)


@pytest.fixture
def x(generator):
    return torch.randn(2, 3, 4, 5, generator=generator)


@each_layout
def test_flat_tensors_hold_all_elements_and_go_back(layout, x):
    x = LAYOUTS[layout](x)
    values = flat(x)

    assert values.shape == (x.numel(),)
    assert torch.equal(values.sort().values, x.reshape(-1).sort().values)
    assert torch.equal(like(values, x), x)


@pytest.mark.parametrize(
    'layout',
    [layout for layout in LAYOUTS if layout not in ('scalar', 'empty')],
)
def test_rows_are_those_of_the_first_dimension_and_go_back(layout, x):
    x = LAYOUTS[layout](x)
    values = rows(x)

    assert len(values) == len(x)
    for row, original in zip(values, x):
        assert torch.equal(row.sort().values, original.flatten().sort().values)
    assert torch.equal(from_rows(values, x), x)
    assert torch.equal(rows(x + 1, x), values + 1)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'matrix'])
def test_memory_without_gaps_is_not_copied(layout, x):
    x = LAYOUTS[layout](x)
    values = flat(x)

    assert values.data_ptr() == x.data_ptr()
    assert like(values, x).stride() == x.stride()


@each_layout
def test_two_tensors_meet_element_by_element(layout, x):
    """Whatever the memory order of the second is."""
    x = LAYOUTS[layout](x)
    for y in x + 100, (x + 100).clone(memory_format=torch.contiguous_format):
        assert torch.equal(flat(y, x), flat(x) + 100)


def test_without_a_compiler_the_plain_function_runs(monkeypatch, x):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch, 'compile', None)
    function = fused(lambda x: x + 1)

    with pytest.warns(UserWarning, match='There is no g.*uncompiled'):
        assert torch.equal(function(x), x + 1)


def test_a_compiler_that_fails_is_told_once_and_done_without(monkeypatch, x):
    def broken(*args):
        raise OSError('no space left')

    monkeypatch.setattr(torch, 'compile', lambda *args, **kwargs: broken)
    monkeypatch.setattr(shutil, 'which', lambda name: name)

    @fused
    def plus_one(x):
        return x + 1

    with pytest.warns(UserWarning, match='plus_one.*no space left') as told:
        for _ in range(3):
            assert torch.equal(plus_one(x), x + 1)
    assert len(told) == 1


def test_an_error_of_the_function_itself_is_raised(x):
    function = fused(lambda x, y: x + y)

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(2):
            with pytest.raises(RuntimeError, match='size'):
                function(x, torch.ones(7))


def results(x, keep):
    """What all fused functions give, gradients included."""
    a = x.detach().requires_grad_()
    s = torch.tensor(0.2, requires_grad=True)
    out = fake_quantize(a, s, torch.tensor(0.3), torch.tensor(7), 0, 15, keep)
    (out * x).sum().backward()
    alpha = flat(x).view(2, -1).clone().requires_grad_()
    step = torch.tensor([[0.1], [0.2]], requires_grad=True)
    base = alpha.detach().floor()
    grid = step, torch.tensor([[3.0], [0.0]]), -2, 1
    pressure = torch.tensor([2.0, 3.0])
    relaxed = relaxed_rows(alpha, base, *grid)
    pressed = relaxed_rows(alpha, base, *grid, lambda: pressure)
    moved = dequantize_rows(base + alpha, *grid)
    b = x.detach().requires_grad_()
    error = weighted_squared_error(b, 0.5 * x, x[:1].abs())
    outputs = relaxed, pressed, moved
    sum([error, *(output.square().sum() for output in outputs)]).backward()
    return [
        t.detach()
        for t in (
            *(out, a.grad, s.grad, *outputs, error, b.grad),
            *(alpha.grad, step.grad),
        )
    ]


@pytest.mark.slow
@pytest.mark.parametrize('dropped', [False, True])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced'])
def test_compiled_and_plain_functions_agree(
    layout, dropped, generator, recwarn
):
    x = torch.randn(2, 8, 6, 6, generator=generator)
    x = LAYOUTS[layout](x)
    keep = (torch.rand(x.numel(), generator=generator) < 0.5).float()
    keep = keep if dropped else None
    compiled = results(x, keep)
    with torch.compiler.set_stance('force_eager'):
        plain = results(x, keep)

    assert not any('uncompiled' in str(w.message) for w in recwarn)
    for a, b in zip(compiled, plain):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
