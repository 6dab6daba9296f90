"""Find float weights in files, in any form and under any usual name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Callable

from torch import Tensor, nn

from ..functional import is_extra

#: A state_dict. The values are tensors, except for extra states.
State = Mapping[str, Any]

#: Keys under which frameworks save the weights of a model, and then those of
#: their averages over training (EMA). The first that fits is taken.
KEYS = (
    'state_dict',
    'model',
    'model_state_dict',
    'network',
    'net',
    'params',
    'module',
    'ema_state_dict',
    'state_dict_ema',
    'model_ema',
    'ema_model',
    'params_ema',
    'ema',
)

#: Prefixes that wrappers and training code put before names.
PREFIXES = ('module', 'model', 'network', 'net', 'architecture', 'backbone')
#: The prefix of ``torch.compile``, which occurs at any depth.
COMPILED = '_orig_mod.'


def find_states(content: object) -> dict[str, State]:
    """Return all states in the content of a file, by their keys.

    Args:
        content (object): What the file contains, such as a mapping or a
            whole module.

    Returns:
        dict[str, dict]: States in the order of :data:`KEYS`. If the content
        itself is a state, its key is ``''``. Empty if there is none.
    """
    if isinstance(content, nn.Module):
        return {'': dict(content.state_dict())}
    if not isinstance(content, Mapping):
        return {}
    found: dict[str, State] = {}
    for key in KEYS:
        value = content.get(key)
        if isinstance(value, nn.Module):
            found[key] = dict(value.state_dict())
        elif isinstance(value, Mapping) and value:
            for inner, state in find_states(value).items():
                found[f'{key}.{inner}' if inner else key] = state
    if not found and _is_state(content):
        found[''] = dict(content)
    return found


def _is_state(content: Mapping) -> bool:
    """Return whether a mapping has names and tensors, and nothing else."""
    return bool(content) and all(
        isinstance(key, str) and (isinstance(value, Tensor) or is_extra(key))
        for key, value in content.items()
    )


def renamings(state: State, expected: State) -> Iterator[tuple[str, State]]:
    """Yield a state under its own names, then under other usual ones.

    Args:
        state (dict): The state in a file.
        expected (dict): The state of the network.

    Yields:
        tuple[str, dict]: How the names were changed, ``''`` if they were
        not, and the state with these names.
    """
    yield '', dict(state)
    if any(COMPILED in key for key in state):
        state = {key.replace(COMPILED, ''): v for key, v in state.items()}
        yield f'without {COMPILED!r}', dict(state)
    removed: list[str] = []
    for _ in range(3):  # Such as 'module.model.backbone.'
        prefix = next(
            (
                f'{name}.'
                for name in PREFIXES
                if any(key.startswith(f'{name}.') for key in state)
                and not all(key in expected for key in state)
            ),
            None,
        )
        if prefix is None:
            break
        removed.append(prefix)
        state = {k.removeprefix(prefix): v for k, v in state.items()}
        yield f'without {"".join(removed)!r}', state
    first = {key.partition('.')[0] for key in expected}
    for name in sorted(first & set(PREFIXES)):
        longer = {f'{name}.{key}': value for key, value in state.items()}
        yield f'with {name + "."!r} before them', longer


def fit_state(
    states: Mapping[str, State],
    expected: State,
    fits: Callable[[State], bool],
) -> tuple[str, str, State]:
    """Return the first state that fits a network, under any usual names.

    Args:
        states (dict): At least one, from :func:`find_states`.
        expected (dict): The state of the network.
        fits (callable): Returns whether a state has all that the network
            needs.

    Returns:
        tuple[str, str, dict]: The key of the state, how its names were
        changed, and the state. If none fits, the first one, unchanged.
    """
    for key, state in states.items():
        for renamed, candidate in renamings(state, expected):
            if fits(candidate):
                return key, renamed, candidate
    key, state = next(iter(states.items()))
    return key, '', dict(state)
