"""Float weights, in whatever form and under whatever name they were saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Callable

from torch import Tensor, nn

from ..functional import is_extra

#: What frameworks call the weights of a model in a checkpoint, and their
#: averages over training (EMA). The first one that fits is taken.
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

#: What wrappers and training code put before the names of a model.
PREFIXES = ('module', 'model', 'network', 'net', 'architecture', 'backbone')
#: What ``torch.compile`` puts before them, at any depth.
COMPILED = '_orig_mod.'


def find_states(content: Any) -> dict[str, dict[str, Any]]:
    """All states in the content of a file, by the key that they are under.

    Args:
        content (object): A mapping, or a whole module.

    Returns:
        dict[str, dict]: In the order of :data:`KEYS`; a mapping that is
        itself a state is under ``''``.
    """
    if isinstance(content, nn.Module):
        return {'': dict(content.state_dict())}
    if not isinstance(content, Mapping):
        return {}
    found: dict[str, dict[str, Any]] = {}
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
    """Whether a mapping has names and tensors, and nothing else."""
    return bool(content) and all(
        isinstance(key, str) and (isinstance(value, Tensor) or is_extra(key))
        for key, value in content.items()
    )


def renamings(
    state: Mapping[str, Any], own: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The forms in which a state may be meant, the plain one first.

    Args:
        state (dict): From a file.
        own (dict): That of the network.

    Yields:
        tuple[str, dict]: What was done to the names, '' for nothing, and
        the state.
    """
    yield '', dict(state)
    if any(COMPILED in key for key in state):
        state = {key.replace(COMPILED, ''): v for key, v in state.items()}
        yield f'without {COMPILED!r}', dict(state)
    done: list[str] = []
    for _ in range(3):  # such as 'module.model.backbone.'
        prefix = next(
            (
                f'{name}.'
                for name in PREFIXES
                if any(key.startswith(f'{name}.') for key in state)
                and not all(key in own for key in state)
            ),
            None,
        )
        if prefix is None:
            break
        done.append(prefix)
        bare = {k.removeprefix(prefix): v for k, v in state.items()}
        yield f'without {"".join(done)!r}', bare
        state = bare
    first = {key.partition('.')[0] for key in own}
    for name in sorted(first & set(PREFIXES)):
        longer = {f'{name}.{key}': value for key, value in state.items()}
        yield f'with {name + "."!r} before them', longer


def fit_state(
    states: Mapping[str, Mapping[str, Any]],
    own: Mapping[str, Any],
    fits: Callable[[Mapping[str, Any]], bool],
) -> tuple[str, str, dict[str, Any]]:
    """The first state, in the first form, that belongs to a network.

    Args:
        states (dict): From :func:`find_states`, one at least.
        own (dict): The network's state.
        fits (callable): Whether a state has all that it needs.

    Returns:
        tuple[str, str, dict]: Its key, what was done to its names, and
        itself; the first one as it is, if none belongs to the network.
    """
    for key, state in states.items():
        for said, renamed in renamings(state, own):
            if fits(renamed):
                return key, said, renamed
    key, state = next(iter(states.items()))
    return key, '', dict(state)
