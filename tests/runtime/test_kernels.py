from __future__ import annotations

import shutil
from itertools import product

import pytest
import torch

from mmrazor_brecq.functional import (
    FusedPenalty,
    dequantize_rows,
    fake_quantize,
    relaxed_rows,
    to_flat,
    weighted_squared_error,
)
from mmrazor_brecq.runtime import kernels
from mmrazor_brecq.runtime.kernels import Kernel

LAYOUTS = dict(
    contiguous=lambda x: x,
    channels_last=lambda x: x.to(memory_format=torch.channels_last),
    sliced=lambda x: x[..., 1:-1],
)


@pytest.fixture
def x(generator):
    return torch.randn(2, 3, 4, 5, generator=generator)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where versions lie: none so far."""
    monkeypatch.setattr(kernels, '_folder', lambda *_: tmp_path / 'new')
    monkeypatch.setattr(kernels, '_warned', set())
    return tmp_path / 'new'


def on_grid(x, scale, low, high):
    return (x / scale).round().clamp(low, high) * scale


def test_without_a_compiler_the_plain_function_runs(folder, monkeypatch, x):
    monkeypatch.setattr(Kernel, 'plain', False)
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch, 'compile', None)
    plus_one, twice = Kernel(lambda x: x + 1), Kernel(lambda x: 2 * x)

    with pytest.warns(UserWarning, match='There is no g.*uncompiled') as told:
        assert torch.equal(plus_one(x), x + 1)
        assert torch.equal(plus_one(x[0]), x[0] + 1)
        assert torch.equal(twice(x), 2 * x)
    assert len(told) == 1


@pytest.fixture
def broken(folder, monkeypatch):
    """A compiler that fails."""

    def fails(*args):
        raise OSError('no space left')

    monkeypatch.setattr(Kernel, 'plain', False)
    monkeypatch.setattr(torch, 'compile', lambda *args, **kwargs: fails)
    monkeypatch.setattr(shutil, 'which', lambda name: name)


@pytest.mark.usefixtures('broken')
def test_a_compiler_that_fails_is_told_once_and_done_without(x):
    @Kernel
    def plus_one(x):
        return x + 1

    with pytest.warns(UserWarning, match='plus_one.*no space left') as told:
        for _ in range(3):
            assert torch.equal(plus_one(x), x + 1)
        assert torch.equal(plus_one(x[0]), x[0] + 1)
        assert torch.equal(Kernel(lambda x: 2 * x)(x), 2 * x)
    assert len(told) == 1


@pytest.mark.usefixtures('broken')
def test_an_error_of_the_function_itself_is_raised(x, recwarn):
    plus = Kernel(lambda x, y: x + y)

    for _ in range(2):
        with pytest.raises(RuntimeError, match='size'):
            plus(x, torch.ones(7))
    assert not recwarn
    assert not plus.plain


@pytest.mark.slow
def test_what_was_compiled_serves_all_sizes_and_later_runs(
    folder, monkeypatch, x
):
    a = Kernel(on_grid)(x, 0.25, -8, 7)
    monkeypatch.setattr(torch, 'compile', None)
    again = Kernel(on_grid)

    assert torch.equal(a, on_grid(x, 0.25, -8, 7))
    for values, *grid in (x, 0.25, -8, 7), (x[:, :2, 1:], 0.5, -128, 127):
        values = values.contiguous()
        assert torch.equal(again(values, *grid), on_grid(values, *grid))
    assert len(list(folder.iterdir())) == 1


@pytest.mark.slow
def test_what_fits_no_longer_is_not_taken(folder, x):
    """To a compiler a type is a constant, and 1 may be."""
    first = Kernel(on_grid)

    grids = (0.25, -2, 1), (0.25, -128, 127), (0.5, -8, 7)
    for values, grid in *product([x], grids), (x.double(), grids[0]):
        expected = on_grid(values, *grid)
        for run in first, Kernel(on_grid):
            torch.testing.assert_close(run(values, *grid), expected)
    assert len(list(folder.iterdir())) == 2  # One for each type.


@pytest.mark.slow
def test_what_cannot_be_kept_is_compiled_nonetheless(
    folder, monkeypatch, recwarn, x
):
    compile = torch.compile
    compiled = []

    def without_what_an_older_torch_lacks(*args, **kwargs):
        compiled.append(compile(*args, **kwargs).__call__)
        return compiled[-1]

    monkeypatch.setattr(torch, 'compile', without_what_an_older_torch_lacks)
    first = Kernel(on_grid)

    for values in x, x[:, :2].contiguous():
        expected = on_grid(values, 0.25, -8, 7)
        assert torch.equal(first(values, 0.25, -8, 7), expected)
    assert len(compiled) == 1
    assert not folder.exists() and not first.plain
    assert not any('uncompiled' in str(w.message) for w in recwarn)


@pytest.mark.slow
def test_a_damaged_file_is_compiled_anew(folder, recwarn, x):
    Kernel(on_grid)(x, 0.25, -8, 7)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])

    y = Kernel(on_grid)(x, 0.25, -8, 7)

    assert torch.equal(y, on_grid(x, 0.25, -8, 7))
    assert len(path.read_bytes()) > len(whole) // 2
    assert not any('uncompiled' in str(w.message) for w in recwarn)


@pytest.mark.slow
def test_versions_are_apart_by_the_number_of_threads():
    folders = {kernels._folder(threads, __file__) for threads in (1, 2)}

    assert len(folders) == 2


def results(x, keep):
    """What all fused functions give, gradients included."""
    a = x.detach().requires_grad_()
    s = torch.tensor(0.2, requires_grad=True)
    out = fake_quantize(a, s, torch.tensor(0.3), torch.tensor(7), 0, 15, keep)
    (out * x).sum().backward()
    alpha = to_flat(x).view(2, -1).clone().requires_grad_()
    scale = torch.tensor([[0.1], [0.2]], requires_grad=True)
    base = alpha.detach().floor()
    grid = scale, torch.tensor([[3.0], [0.0]]), -2, 1
    fused = FusedPenalty()
    relaxed = relaxed_rows(alpha, base, *grid)
    pushed = relaxed_rows(alpha, base, *grid, fused)
    moved = dequantize_rows(base + alpha, *grid)
    b = x.detach().requires_grad_()
    error = weighted_squared_error(b, 0.5 * x, x[:1].abs())
    outputs = relaxed, pushed, moved
    penalty = 2.0 * fused(alpha, 3.0)
    sum(
        [error, penalty, *(output.square().sum() for output in outputs)]
    ).backward()
    return [
        t.detach()
        for t in (
            *(out, a.grad, s.grad, *outputs, error, b.grad),
            *(alpha.grad, scale.grad),
        )
    ]


@pytest.mark.slow
@pytest.mark.parametrize('dropped', [False, True])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced'])
def test_compiled_and_plain_functions_agree(
    layout, dropped, generator, monkeypatch, recwarn
):
    x = torch.randn(2, 8, 6, 6, generator=generator)
    x = LAYOUTS[layout](x)
    keep = (torch.rand(x.numel(), generator=generator) < 0.5).float()
    keep = keep if dropped else None
    compiled = results(x, keep)
    monkeypatch.setattr(Kernel, 'plain', True)
    plain = results(x, keep)

    assert not any('uncompiled' in str(w.message) for w in recwarn)
    for a, b in zip(compiled, plain):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
