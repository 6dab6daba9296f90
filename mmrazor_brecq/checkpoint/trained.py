"""Float checkpoints, with words about what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from ..algorithms import BRECQ
from ..functional import is_extra
from .io import read_checkpoint
from .values import MARK
from .weights import fit_state


def load_float(model: BRECQ, path: str, trust: bool = False) -> None:
    """Load trained float weights into the architecture.

    Args:
        model (BRECQ): Not yet prepared.
        path (str): A checkpoint of the bare architecture.
        trust (bool): See :func:`read_checkpoint`.

    Raises:
        ValueError: If it lacks a weight of the architecture, has one of
            another shape, or is quantized already.
    """
    content = read_checkpoint(path, trust)
    if MARK in content['state_dict']:
        raise ValueError(
            f'{path!r} is quantized already: evaluate it with tools/test.py, '
            'or give the float checkpoint that it was made from'
        )
    own = model.architecture.state_dict()
    states = content.get('states') or {'': content['state_dict']}
    taken, renamed, state = fit_state(
        states, own, lambda x: not (_missing(own, x) or _misshapen(own, x))
    )
    _tell_what_was_taken(path, taken, renamed, list(states))
    missing, wrong = _missing(own, state), _misshapen(own, state)
    unexpected = [k for k in state if k not in own]
    matched = sum(k in state for k in own) - len(wrong)
    story = (
        f'{path!r}: {matched} of {len(own)} tensors of '
        f'{type(model.architecture).__name__} match'
    )
    if missing or wrong:
        raise ValueError(
            '; '.join(
                [
                    f'{story}, so it is no checkpoint of this architecture',
                    *_first('missing', missing),
                    *_first('of another shape', wrong),
                    *_first('unexpected', unexpected),
                    'give the checkpoint that belongs to the config',
                ]
            )
        )
    if unexpected:
        print_log(
            '; '.join([story, *_first('not used', unexpected)]), 'current', 30
        )
    model.architecture.load_state_dict(
        {k: v for k, v in state.items() if k in own}, strict=False
    )


def _tell_what_was_taken(
    path: str, taken: str, renamed: str, found: list[str]
) -> None:
    """Say which weights a file's are, where there is more than one answer."""
    others = ', '.join(repr(key) for key in found if key != taken)
    if not (others or renamed):
        return
    said = f'{path!r}: took {taken!r}' if taken else f'{path!r}: took it'
    if renamed:
        said += f', its names {renamed}'
    if others:
        said += f'; {others} is there, too, and was not taken'
        said += ': save what you mean by itself to have another one'
    print_log(said, 'current')


def _missing(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Names that a network cannot do without."""
    return [
        key
        for key in own
        if key not in state and not (_is_counter(key) or is_extra(key))
    ]


def _misshapen(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Names whose tensors are of another shape, with both shapes."""
    return [
        f'{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}'
        for key in own
        if not is_extra(key)
        and key in state
        and state[key].shape != own[key].shape
    ]


def _is_counter(key: str) -> bool:
    return key.endswith('num_batches_tracked')


def _first(what: str, keys: list[str], count: int = 3) -> list[str]:
    more = ', ...' if len(keys) > count else ''
    return (
        [f'{len(keys)} {what} ({", ".join(keys[:count])}{more})']
        if keys
        else []
    )
