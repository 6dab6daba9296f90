"""Flipped bits: in what a run of chaos.py keeps, and in its result."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from chaos_runs import KINDS
from chaos_trial import Trial, Wrong, ended, forget_kept
from mmengine.registry import MODELS
from safetensors.torch import load_file, save_file

import mmrazor_brecq
from mmrazor_brecq.checkpoint import (
    load_tensors,
    read_checkpoint,
    save_tensors,
)

#: Bits that are flipped in copies of one unfinished run.
FLIPS = 3
#: Those that are flipped in a quantized checkpoint.
CHECKPOINT_FLIPS = 10


def flip_run(trial: Trial) -> Iterator[str]:
    """Flip single bits of what a run keeps, and let it go on with that."""
    before = trial.folder.with_name('before')
    if trial.chance.random() < 0.25:
        shutil.copytree(trial.alone.folder, before)
    else:
        while not kept(trial.folder):
            shutil.rmtree(trial.folder, ignore_errors=True)
            trial.killed()
        trial.folder.rename(before)
    for _ in range(FLIPS):
        shutil.rmtree(trial.folder, ignore_errors=True)
        shutil.copytree(before, trial.folder)
        path = trial.chance.choice(kept(trial.folder))
        where = flip(path, trial.chance)
        run = trial.start(resume=True)
        status, named = ended(run), path.name in run.said
        forget_kept(trial.folder)
        if status and not named:
            raise Wrong(f'{where}, refused otherwise: {run.said[-1500:]}')
        if status:
            path.unlink()
            trial.goes_on()
            yield 'refused'
        elif re.search(f"{path}'? is (damaged|no whole)", run.said):
            yield 'silent' if trial.others() else 'told'
        else:
            yield 'no effect' if unharmed(trial, path) else 'silent'


def unharmed(trial: Trial, path: Path) -> bool:
    """Return whether all is as it would be, but for bits that mean nothing."""
    name = str(path.relative_to(trial.folder))
    others = trial.others()
    if others == [name] and path.suffix != '.json':
        expected = loaded(trial, trial.alone.folder / name)
        return equal(loaded(trial, path), expected)
    return not others


def kept(folder: Path) -> list[Path]:
    """Return the files with which a run would go on."""
    return [
        path
        for path in sorted(folder.rglob('*'))
        if path.suffix in ('.pth', '.safetensors', '.json')
        and not path.relative_to(folder).parts[0][0].isdigit()
        and path.name != 'search.json'
    ]


def flip(path: Path, chance: random.Random) -> str:
    """Flip a bit of a file; return which."""
    data = bytearray(path.read_bytes())
    place, bit = chance.randrange(len(data)), chance.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f'{path}, byte {place} of {len(data)}, bit {bit}'


def flip_checkpoint(trial: Trial) -> Iterator[str]:
    """Flip single bits of a quantized checkpoint, and load it."""
    trial.folder.mkdir(parents=True)
    source = trial.alone.folder / KINDS[trial.kind].result
    expected = loaded(trial, source)
    for ending in ('.pth', '.safetensors'):
        path = trial.folder / f'quantized{ending}'
        convert(source, path)
        whole = path.read_bytes()
        for _ in range(CHECKPOINT_FLIPS // 2):
            where = flip(path, trial.chance)
            try:
                found = loaded(trial, path)
            except ValueError as error:
                if path.name not in str(error):
                    raise Wrong(f'{where}: {error}') from error
                yield 'refused'
            else:
                yield 'no effect' if equal(found, expected) else 'silent'
            path.write_bytes(whole)


def convert(source: Path, path: Path) -> None:
    """Copy a checkpoint to a container of another kind, or of the same."""
    read = load_file if source.suffix == '.safetensors' else load_tensors
    write = save_file if path.suffix == '.safetensors' else save_tensors
    write(read(str(source)), str(path))


def loaded(trial: Trial, path: Path) -> tuple[dict, dict]:
    """Return the state of a network that a file is loaded into, and meta."""
    network = MODELS.build(trial.runs.architecture)
    state = mmrazor_brecq.load(network, str(path)).state_dict()
    return state, read_checkpoint(str(path))['meta']


def equal(one: tuple[dict, dict], two: tuple[dict, dict]) -> bool:
    """Return whether two files hold the same values."""
    (state, meta), (other, other_meta) = one, two
    return (
        meta == other_meta
        and state.keys() == other.keys()
        and all(torch.equal(state[name], other[name]) for name in state)
    )
