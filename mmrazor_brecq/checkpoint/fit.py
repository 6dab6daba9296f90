"""Tell whether a quantized checkpoint is of a network, before it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

#: Where the network is in the state of a model.
PREFIX = 'architecture.'
#: Layers that every checkpoint of their network has.
LAYERS = (_ConvNd, nn.Linear)


def misfit(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return in words why a state is of another network, '' if it may fit.

    Only convolutions and linear layers are compared, by name and by shape:
    what else a network has may be folded, copied or left out.

    Args:
        network (nn.Module): The float network.
        state (dict): State of a quantized model.
    """
    owners = {
        owner
        for key in state
        if key.startswith(PREFIX)
        for owner in _owners(key.removeprefix(PREFIX))
    }
    modules = dict(network.named_modules(remove_duplicate=False))
    weights = {
        name: weight
        for name, module in modules.items()
        if isinstance(module, LAYERS)
        # A weight that something else computes has other names.
        and (weight := module._parameters.get('weight')) is not None
    }
    lacking = [name for name in weights if name not in owners]
    unknown = [
        name
        for key, value in state.items()
        if key.startswith(PREFIX) and key.endswith('.weight')
        if value.dim() > 1
        and (name := key[len(PREFIX) : -len('.weight')]) not in modules
        and not any(owner in weights for owner in _owners(name))
        and not _may_be_taken(network, name)
    ]
    other = [
        f'{PREFIX}{name}.weight is {_shape(found)} in the file, and '
        f'{_shape(weight)} in the network'
        for name, weight in weights.items()
        if (found := state.get(f'{PREFIX}{name}.weight')) is not None
        and found.shape != weight.shape
    ]
    kind = type(network).__name__
    problems = []
    if lacking:
        problems.append(f'the file lacks {_named(lacking)} of the {kind}')
    if unknown:
        problems.append(f'the {kind} lacks {_named(unknown)} of the file')
    if other:
        problems.append(other[0])
    return '; '.join(problems)


def _may_be_taken(network: nn.Module, name: str) -> bool:
    """Return whether a layer may be made of a parameter of its parent."""
    parent, _, child = name.rpartition('.')
    try:
        owner = network.get_submodule(parent)
    except AttributeError:
        return False
    if re.fullmatch(r'linear_\d+_*', child):
        return True
    stem = re.sub(r'(_\d+)?_*$', '', child)
    return f'{stem}_weight' in owner._parameters


def _owners(key: str) -> list[str]:
    """Return the names of the modules that a key lies in."""
    parts = key.split('.')
    return ['.'.join(parts[:i]) for i in range(len(parts))]


def _named(names: Sequence[str]) -> str:
    """Return how many layers there are, and the name of the first."""
    if len(names) == 1:
        return f'the layer {names[0]!r}'
    return f'{len(names)} layers, {names[0]!r} first,'


def _shape(tensor: Tensor) -> str:
    return ' x '.join(map(str, tensor.shape))
