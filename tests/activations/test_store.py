"""Activations in memory and in files, which nobody can tell apart."""

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
def test_a_column_gives_back_what_it_was_given(
    store, layout, dtype, generator
):
    x = torch.randint(99, (9, 4, 5, 3), generator=generator).to(dtype)
    x = LAYOUTS[layout](x)
    column = store.allocate(9, x)
    for start in 0, 4:
        column.write(start, x[start : start + 5])
    index = torch.tensor([7, 0, 7])

    for found, expected in (
        (column.take(index), x[index]),
        (column.read(2, 6), x[2:6]),
    ):
        assert torch.equal(found, expected)
        if layout == 'channels_last':
            assert found.is_contiguous(memory_format=torch.channels_last)


def test_rows_of_one_image_stay_together(store, generator):
    x = torch.randn(12, 5, generator=generator)
    column = store.allocate(4, x, rows_per_image=3)
    column.write(0, x)

    expected = x.view(4, 3, 5)[[2, 0]].flatten(0, 1)
    assert torch.equal(column.take(torch.tensor([2, 0])), expected)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('fold', [1, 3])
def test_elements_of_all_images_come_piece_by_piece(
    store, layout, fold, generator
):
    x = LAYOUTS[layout](torch.randn(6, 4, 5, 3, generator=generator))
    column = store.allocate(6 // fold, x, fold)
    column.write(0, x)

    pieces = list(column.pieces(7))
    assert {piece.shape[1] for piece in pieces[:-1]} == {7}
    whole = torch.cat(pieces, 1)
    assert whole.shape == (6 // fold, fold * 60)
    assert torch.equal(column.from_elements(whole), x)
    pieces[0].zero_()
    assert torch.equal(column.read(0, 6 // fold), x)


def test_what_is_beyond_the_budget_goes_to_files(tmp_path):
    x = torch.zeros(8, 16)  # 512 bytes
    store = Store(1100, str(tmp_path))
    columns = [store.allocate(8, x) for _ in range(3)]

    assert [c.file is None for c in columns] == [True, True, False]
    assert (store.cached_bytes, store.peak_bytes, store.spilled_bytes) == (
        1024,
        1024,
        512,
    )
    del columns[0]
    gc.collect()
    assert store.cached_bytes == 512
    assert store.allocate(8, x).file is None


@pytest.mark.parametrize(
    ('at_work', 'held'), [(0, 1024), (100, 512), (10**9, 512)]
)
def test_a_part_of_the_budget_is_for_what_is_worked_on(
    tmp_path, at_work, held
):
    """Half of it at the most."""
    store = Store(1100, str(tmp_path), at_work)
    columns = [store.allocate(64, torch.zeros(64, 2)) for _ in range(3)]

    assert store.cached_bytes == held
    assert all(len(c.take(torch.arange(8))) == 8 for c in columns)


def test_large_images_leave_more_room_for_what_is_worked_on(tmp_path):
    """Of few of them a unit at work has more than of many small ones."""
    store = Store(2**14, str(tmp_path), working_bytes=2**12)

    assert store.allocate(2, torch.zeros(2, 64)).file is None
    assert store.allocate(2, torch.zeros(2, 128)).file is not None
    assert store.allocate(16, torch.zeros(16, 16)).file is None


def test_without_a_limit_little_lies_in_memory_twice():
    store = Store()
    small = store.allocate(1, torch.zeros(1, 2**20))
    assert store.has_ample_memory and small.file is None
    large = store.allocate(1, torch.zeros(1, 2**26))
    assert not store.has_ample_memory and large.file is None


@pytest.mark.parametrize(
    ('budget', 'columns', 'ample'),
    [(None, 9, True), (4096, 2, True), (4096, 3, False), (511, 1, False)],
)
def test_there_is_ample_room_up_to_a_quarter(budget, columns, ample, tmp_path):
    """And where all of it is in memory."""
    store = Store(budget, str(tmp_path))
    held = [store.allocate(8, torch.zeros(8, 16)) for _ in range(columns)]
    assert store.has_ample_memory == ample
    held.clear()
    assert store.has_ample_memory == (budget != 511)


@pytest.mark.parametrize('budget', [1024, 511])
def test_freed_memory_goes_back_where_room_is_scarce(
    budget, monkeypatch, tmp_path
):
    given = []
    monkeypatch.setattr(
        store_module, 'give_back_freed_memory', lambda: given.append(1)
    )
    store = Store(budget=budget, folder=str(tmp_path))
    held = [store.allocate(1, torch.zeros(1, 32)) for _ in range(2)]
    store.release_freed_memory()
    assert len(held) == 2
    assert bool(given) != store.has_ample_memory
    assert store.has_ample_memory == (budget == 1024)


def test_files_have_no_name(tmp_path):
    """So that nothing is left of them, whatever ends the process."""
    store = Store(0, str(tmp_path))
    column = store.allocate(8, torch.zeros(8, 16))
    column.write(0, torch.ones(8, 16))

    assert os.listdir(tmp_path) == []
    assert column.take(torch.arange(8)).sum() == 128


def test_a_full_disk_says_what_to_do(monkeypatch, tmp_path):
    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(store_module.os, 'posix_fallocate', full)
    with pytest.raises(OSError, match=r'calibration\.memory') as error:
        Store(0, str(tmp_path)).allocate(8, torch.zeros(8, 16))
    assert error.value.errno == errno.ENOSPC


def test_a_lent_tensor_gives_its_memory_and_gets_it_back(store, generator):
    x = torch.randn(4, 3, 2, generator=generator)
    expected = x.clone()
    column = store.allocate(4, x)
    column.write(0, x)
    freeable = FreeableTensor(column, 0, x)
    for _ in range(2):
        freeable.free()
        assert x.untyped_storage().nbytes() == 0
        assert freeable.restore()
        assert torch.equal(x, expected)


@pytest.mark.parametrize('case', ['written', 'a view', 'dead'])
def test_what_is_not_the_columns_is_left_alone(case, store, generator):
    base = torch.randn(8, 3, generator=generator)
    x = base[:4] if case == 'a view' else base
    column = store.allocate(len(x), x)
    column.write(0, x)
    freeable = FreeableTensor(column, 0, x)
    if case == 'written':
        x.add_(1)
    expected = base.clone()
    if case == 'dead':
        del x, base
    freeable.free()

    assert freeable.restore() == (case == 'a view')
    if case != 'dead':
        assert torch.equal(base, expected)


def test_waiting_passes_hold_no_activations(toy, batches, tmp_path):
    """Neither what waits at a door nor what frames keep of earlier ones."""
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
