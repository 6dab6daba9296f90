"""Cached tensors are the same in memory and in files."""

from __future__ import annotations

import errno
import gc
import os

import pytest
import torch
from torch import nn

from mmrazor_brecq.activations import (
    CachedBatches,
    FreeableTensor,
    Store,
    Stream,
)
from mmrazor_brecq.activations import store as store_module
from mmrazor_brecq.graph import BlockPartition, record

LAYOUTS = dict(
    plain=lambda x: x,
    channels_last=lambda x: x.to(memory_format=torch.channels_last),
    turned=lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 2, 3, 1),
    sparse=lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
)


@pytest.fixture(params=['memory', 'file'])
def store(request, tmp_path):
    return Store(None if request.param == 'memory' else 0, str(tmp_path))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.int64])
def test_cached_rows_are_returned_as_they_were_written(
    store, layout, dtype, generator
):
    x = torch.randint(99, (9, 4, 5, 3), generator=generator).to(dtype)
    x = LAYOUTS[layout](x)
    cached = store.allocate(9, x)
    for start in 0, 4:
        cached.write(start, x[start : start + 5])
    index = torch.tensor([7, 0, 7])

    for found, expected in (
        (cached.take(index), x[index]),
        (cached.read(2, 6), x[2:6]),
    ):
        assert torch.equal(found, expected)
        if layout == 'channels_last':
            assert found.is_contiguous(memory_format=torch.channels_last)


def test_rows_of_one_image_are_cached_together(store, generator):
    x = torch.randn(12, 5, generator=generator)
    cached = store.allocate(4, x, rows_per_image=3)
    cached.write(0, x)

    expected = x.view(4, 3, 5)[[2, 0]].flatten(0, 1)
    assert torch.equal(cached.take(torch.tensor([2, 0])), expected)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('rows', [1, 3])
def test_pieces_have_a_few_elements_of_all_images(
    store, layout, rows, generator
):
    x = LAYOUTS[layout](torch.randn(6, 4, 5, 3, generator=generator))
    cached = store.allocate(6 // rows, x, rows)
    cached.write(0, x)

    pieces = list(cached.pieces(7))
    assert {piece.shape[1] for piece in pieces[:-1]} == {7}
    whole = torch.cat(pieces, 1)
    assert whole.shape == (6 // rows, rows * 60)
    assert torch.equal(cached.from_elements(whole), x)
    pieces[0].zero_()
    assert torch.equal(cached.read(0, 6 // rows), x)


def test_tensors_beyond_the_budget_are_cached_in_files(tmp_path):
    x = torch.zeros(8, 16)  # 512 bytes
    store = Store(1100, str(tmp_path))
    tensors = [store.allocate(8, x) for _ in range(3)]

    assert [c.file is None for c in tensors] == [True, True, False]
    assert (store.cached_bytes, store.peak_bytes, store.spilled_bytes) == (
        1024,
        1024,
        512,
    )
    del tensors[0]
    gc.collect()
    assert store.cached_bytes == 512
    assert store.allocate(8, x).file is None


@pytest.mark.parametrize(
    ('working_bytes', 'cached_bytes'), [(0, 1024), (100, 512), (10**9, 512)]
)
def test_a_part_of_the_budget_is_reserved_for_the_unit_at_work(
    tmp_path, working_bytes, cached_bytes
):
    """That part is at most half of the budget."""
    store = Store(1100, str(tmp_path), working_bytes)
    tensors = [store.allocate(64, torch.zeros(64, 2)) for _ in range(3)]

    assert store.cached_bytes == cached_bytes
    assert all(len(c.take(torch.arange(8))) == 8 for c in tensors)


def test_large_images_reserve_more_of_the_budget(tmp_path):
    """A unit works on several copies of each image."""
    store = Store(2**14, str(tmp_path), working_bytes=2**12)

    assert store.allocate(2, torch.zeros(2, 64)).file is None
    assert store.allocate(2, torch.zeros(2, 128)).file is not None
    assert store.allocate(16, torch.zeros(16, 16)).file is None


def test_without_a_budget_memory_is_ample_for_small_caches_only():
    store = Store()
    small = store.allocate(1, torch.zeros(1, 2**20))
    assert store.has_ample_memory and small.file is None
    large = store.allocate(1, torch.zeros(1, 2**26))
    assert not store.has_ample_memory and large.file is None


@pytest.mark.parametrize(
    ('budget', 'count', 'ample'),
    [(None, 9, True), (4096, 2, True), (4096, 3, False), (511, 1, False)],
)
def test_memory_is_ample_up_to_a_quarter_of_the_budget(
    budget, count, ample, tmp_path
):
    """It is not once a tensor was cached in a file."""
    store = Store(budget, str(tmp_path))
    tensors = [store.allocate(8, torch.zeros(8, 16)) for _ in range(count)]
    assert store.has_ample_memory == ample
    tensors.clear()
    assert store.has_ample_memory == (budget != 511)


@pytest.mark.parametrize('budget', [1024, 511])
def test_freed_memory_is_released_unless_memory_is_ample(
    budget, monkeypatch, tmp_path
):
    calls = []
    monkeypatch.setattr(
        store_module, 'give_back_freed_memory', lambda: calls.append(1)
    )
    store = Store(budget=budget, folder=str(tmp_path))
    tensors = [store.allocate(1, torch.zeros(1, 32)) for _ in range(2)]
    store.release_freed_memory()
    assert len(tensors) == 2
    assert bool(calls) != store.has_ample_memory
    assert store.has_ample_memory == (budget == 1024)


def test_files_have_no_name(tmp_path):
    """Nothing is left of them, however the process ends."""
    store = Store(0, str(tmp_path))
    cached = store.allocate(8, torch.zeros(8, 16))
    cached.write(0, torch.ones(8, 16))

    assert os.listdir(tmp_path) == []
    assert cached.take(torch.arange(8)).sum() == 128


def test_a_full_disk_is_an_error_with_the_cure(monkeypatch, tmp_path):
    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(store_module.os, 'posix_fallocate', full)
    with pytest.raises(
        OSError, match=r'No space for .*calibration\.memory'
    ) as error:
        Store(0, str(tmp_path)).allocate(8, torch.zeros(8, 16))
    assert error.value.errno == errno.ENOSPC


def test_a_freed_tensor_is_restored(store, generator):
    x = torch.randn(4, 3, 2, generator=generator)
    expected = x.clone()
    cached = store.allocate(4, x)
    cached.write(0, x)
    freeable = FreeableTensor(cached, 0, x)
    for _ in range(2):
        freeable.free()
        assert x.untyped_storage().nbytes() == 0
        assert freeable.restore()
        assert torch.equal(x, expected)


@pytest.mark.parametrize('case', ['written', 'a view', 'dead'])
def test_tensors_that_are_not_as_cached_are_left_alone(case, store, generator):
    base = torch.randn(8, 3, generator=generator)
    x = base[:4] if case == 'a view' else base
    cached = store.allocate(len(x), x)
    cached.write(0, x)
    freeable = FreeableTensor(cached, 0, x)
    if case == 'written':
        x.add_(1)
    expected = base.clone()
    if case == 'dead':
        del x, base
    freeable.free()

    assert freeable.restore() == (case == 'a view')
    if case != 'dead':
        assert torch.equal(base, expected)


def test_suspended_passes_keep_no_activations_in_memory(
    toy, batches, tmp_path
):
    """Neither the arguments of their units nor those of outer frames."""
    network = toy('residual')
    units = BlockPartition()(network, record(network, batches[0]))
    modules = {unit.name: unit.module for unit in units}
    images = CachedBatches(
        batches, [len(x) for x in batches], Store(0, str(tmp_path))
    )
    entered = []
    network.register_forward_pre_hook(lambda m, args: entered.extend(args))
    holder = nn.ModuleDict(dict(network=network))
    with Stream(holder, 'network', units, images) as stream:
        arrived = stream.advance()
        while arrived is not None:
            waiting = [x for args, _ in stream._waiting for x in args]
            assert len(waiting) == len(entered) == len(batches)
            for x in waiting + entered:
                assert x.untyped_storage().nbytes() == 0
            arrived = stream.advance(stream.run(modules[arrived[0]]))
