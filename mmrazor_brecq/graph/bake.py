"""Weights that are computed from others become plain parameters."""

from __future__ import annotations

import copy
import logging
from typing import Any, TypeVar

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.utils import (
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
)
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
)
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from ..layers import is_quantizable
from .compare import Reference
from .unwrap import unwrap

_NO_CONSTANT = (
    'The network computes {} anew in each call, and gives something else '
    'where that is a constant: remove the parametrization before it is '
    'quantized'
)

Network = TypeVar('Network', bound=nn.Module)


def copy_network(network: Network) -> Network:
    """A copy of a network, without a wrapper around it, also where hooks
    left tensors that carry gradients behind, which :func:`copy.deepcopy`
    refuses.
    """
    network = unwrap(network)
    memo = {
        id(x): x.detach().clone()
        for module in network.modules()
        for x in tree_leaves(vars(module))
        if isinstance(x, Tensor) and not x.is_leaf
    }
    return copy.deepcopy(network, memo)


def make_plain(network: nn.Module, inputs: Tensor) -> None:
    """Give each layer a weight of its own, which is what it computes with.

    Weight and spectral norms, pruning masks and other parametrizations are
    worked out, and weights that several layers have in common are copied.

    Args:
        network (nn.Module): In evaluation mode, changed in place.
        inputs (Tensor): N x ... preprocessed inputs.

    Raises:
        ValueError: If the network then gives something else.
    """
    if not any(map(_is_computed, network.modules())):
        _untie(network)
        return
    reference = Reference(network, inputs)
    _untie(network)
    names = []
    # Those that are computed from others come after these.
    for name, module in reversed(list(network.named_modules())):
        if _is_computed(module):
            _bake_parametrizations(name, module)
            _bake_hooks(module)
            names.append(name)
    if not reference.matches():
        raise ValueError(_NO_CONSTANT.format(', '.join(reversed(names))))


def _untie(network: nn.Module) -> None:
    """Copy weights that lie in memory that another one has, too."""
    seen: set[int] = set()
    for name, module in network.named_modules():
        own = is_quantizable(module) or _is_computed(module)
        own |= isinstance(module, parametrize.ParametrizationList)
        for key, value in module._parameters.items():
            if value is None:
                continue
            place = value.untyped_storage().data_ptr()
            if own and place and place in seen:
                module._parameters[key] = nn.Parameter(
                    value.detach().clone(), value.requires_grad
                )
                print_log(
                    f'{name}.{key} is shared with another module: it gets a '
                    'copy of its own',
                    'current',
                    logging.INFO,
                )
            seen.add(place)


def _is_computed(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or any(
        isinstance(hook, (WeightNorm, SpectralNorm, prune.BasePruningMethod))
        for hook in module._forward_pre_hooks.values()
    )


@torch.no_grad()
def _bake_parametrizations(name: str, module: Any) -> None:
    if not parametrize.is_parametrized(module):
        return
    values = {}
    for key, parametrization in module.parametrizations.items():
        value, again = getattr(module, key), getattr(module, key)
        if not torch.equal(value, again):
            raise ValueError(_NO_CONSTANT.format(f'{name}.{key}'))
        sources = list(parametrization.parameters(recurse=False))
        learned = any(source.requires_grad for source in sources)
        value = value.detach().clone()
        values[key] = nn.Parameter(value, learned) if sources else value
    # Copies have their class in common: torch's own way back would take the
    # weight from those of the caller as well.
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for key, value in values.items():
        if isinstance(value, nn.Parameter):
            module.register_parameter(key, value)
        else:
            module.register_buffer(key, value)


def _bake_hooks(module: nn.Module) -> None:
    # A hook may read what those after it make.
    for hook in reversed(list(module._forward_pre_hooks.values())):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            # Torch wraps this hook, and then does not find it.
            for key, wrapped in list(
                module._load_state_dict_pre_hooks.items()
            ):
                inner = getattr(wrapped, 'hook', wrapped)
                if isinstance(inner, SpectralNormLoadStateDictPreHook):
                    del module._load_state_dict_pre_hooks[key]
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
