"""Load float checkpoints, and explain what does not fit."""

from __future__ import annotations

import logging

from mmengine.logging import print_log

from ..algorithms import BRECQ
from ..functional import is_extra
from .io import read_checkpoint
from .values import QUANTIZED_KEY
from .weights import State, fit_state


def load_float(model: BRECQ, path: str, trust: bool = False) -> None:
    """Load trained float weights into the architecture of a model.

    Args:
        model (BRECQ): A model that is not yet prepared.
        path (str): A checkpoint of the architecture.
        trust (bool): See :func:`read_checkpoint`.

    Raises:
        ValueError: If the checkpoint lacks a weight of the architecture,
            has one of another shape, or is already quantized.
    """
    content = read_checkpoint(path, trust)
    if QUANTIZED_KEY in content['state_dict']:
        raise ValueError(
            f'{path!r} is quantized already: evaluate it with tools/test.py, '
            'or give the float checkpoint that it was made from'
        )
    expected = model.architecture.state_dict()
    states = content.get('states') or {'': content['state_dict']}
    key, renamed, state = fit_state(
        states,
        expected,
        lambda x: not (_missing(expected, x) or _misshapen(expected, x)),
    )
    _log_choice(path, key, renamed, list(states))
    missing, wrong = _missing(expected, state), _misshapen(expected, state)
    unexpected = [k for k in state if k not in expected]
    matched = sum(k in state for k in expected) - len(wrong)
    summary = (
        f'{path!r}: {matched} of {len(expected)} tensors of '
        f'{type(model.architecture).__name__} match'
    )
    if missing or wrong:
        raise ValueError(
            '; '.join(
                [
                    f'{summary}, so it is no checkpoint of this architecture',
                    *_first('missing', missing),
                    *_first('of another shape', wrong),
                    *_first('unexpected', unexpected),
                    'give the checkpoint that belongs to the config',
                ]
            )
        )
    if unexpected:
        print_log(
            '; '.join([summary, *_first('not used', unexpected)]),
            'current',
            logging.WARNING,
        )
    model.architecture.load_state_dict(
        {k: v for k, v in state.items() if k in expected}, strict=False
    )


def _log_choice(path: str, key: str, renamed: str, keys: list[str]) -> None:
    """Log which weights of a file are loaded, if there was a choice."""
    others = ', '.join(repr(other) for other in keys if other != key)
    if not (others or renamed):
        return
    message = f'{path!r}: took {key!r}' if key else f'{path!r}: took it'
    if renamed:
        message += f', its names {renamed}'
    if others:
        message += f'; {others} is there, too, and was not taken'
        message += ': save the one that you want in a file of its own'
    print_log(message, 'current')


def _missing(expected: State, state: State) -> list[str]:
    """Return the names of the tensors that a network needs and lacks."""
    return [
        key
        for key in expected
        if key not in state and not (_is_counter(key) or is_extra(key))
    ]


def _misshapen(expected: State, state: State) -> list[str]:
    """Return the names of tensors of another shape, with both shapes."""
    return [
        f'{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}'
        for key in expected
        if not is_extra(key)
        and key in state
        and state[key].shape != expected[key].shape
    ]


def _is_counter(key: str) -> bool:
    return key.endswith('num_batches_tracked')


def _first(what: str, keys: list[str], count: int = 3) -> list[str]:
    """Return a phrase with the first keys, in a list that may be empty."""
    more = ', ...' if len(keys) > count else ''
    return (
        [f'{len(keys)} {what} ({", ".join(keys[:count])}{more})']
        if keys
        else []
    )
