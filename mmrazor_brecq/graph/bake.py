"""Turn weights that are computed from others into plain parameters."""

from __future__ import annotations

import copy
import logging
from typing import TypeVar, cast

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
from .samples import Inputs
from .unwrap import unwrap

_NOT_CONSTANT = (
    'The network computes {} anew in each call, and its output changes '
    'where that is a constant: remove the parametrization before '
    'quantization'
)

Network = TypeVar('Network', bound=nn.Module)


def copy_network(network: Network) -> Network:
    """Return a copy of a network, without a wrapper around it.

    Unlike :func:`copy.deepcopy` it copies networks in which hooks left
    tensors that carry gradients.

    Args:
        network (nn.Module): The network; it stays as it is.
    """
    network = unwrap(network)
    memo = {
        id(x): x.detach().clone()
        for module in network.modules()
        for x in tree_leaves(vars(module))
        if isinstance(x, Tensor) and not x.is_leaf
    }
    return copy.deepcopy(network, memo)


def make_plain(network: nn.Module, inputs: Inputs) -> None:
    """Give each layer a weight of its own: the one that it computes with.

    Weight norms, spectral norms, pruning masks and other parametrizations
    are evaluated, and weights that several layers share are copied.

    Args:
        network (nn.Module): The network in evaluation mode; it is changed in
            place.
        inputs (Tensor | Samples): Preprocessed images, N x C x H x W.

    Raises:
        ValueError: If the network's output is another one afterwards.
    """
    if not any(map(_is_computed, network.modules())):
        _copy_shared_weights(network)
        return
    reference = Reference(network, inputs)
    _copy_shared_weights(network)
    names = []
    # A parametrization comes after the modules that it is computed from.
    for name, module in reversed(list(network.named_modules())):
        if _is_computed(module):
            _bake_parametrizations(name, module)
            _bake_hooks(module)
            names.append(name)
    if not reference.matches():
        raise ValueError(_NOT_CONSTANT.format(', '.join(reversed(names))))


def _copy_shared_weights(network: nn.Module) -> None:
    """Copy the weights of layers whose memory another module uses, too."""
    seen: set[int] = set()
    for name, module in network.named_modules():
        needs_copy = (
            is_quantizable(module)
            or _is_computed(module)
            or isinstance(module, parametrize.ParametrizationList)
        )
        for key, value in module._parameters.items():
            if value is None:
                continue
            address = value.untyped_storage().data_ptr()
            if needs_copy and address and address in seen:
                module._parameters[key] = nn.Parameter(
                    value.detach().clone(), value.requires_grad
                )
                print_log(
                    f'{name}.{key} is shared with another module: it gets a '
                    'copy of its own',
                    'current',
                    logging.INFO,
                )
            seen.add(address)


def _is_computed(module: nn.Module) -> bool:
    """Return whether a module computes its weights from other tensors."""
    return parametrize.is_parametrized(module) or any(
        isinstance(hook, (WeightNorm, SpectralNorm, prune.BasePruningMethod))
        for hook in module._forward_pre_hooks.values()
    )


@torch.no_grad()
def _bake_parametrizations(name: str, module: nn.Module) -> None:
    """Replace parametrized tensors of a module by their values."""
    if not parametrize.is_parametrized(module):
        return
    values = {}
    parametrizations = cast(nn.ModuleDict, module.parametrizations)
    for key, parametrization in parametrizations.items():
        value, again = getattr(module, key), getattr(module, key)
        if not torch.equal(value, again):
            raise ValueError(_NOT_CONSTANT.format(f'{name}.{key}'))
        sources = list(parametrization.parameters(recurse=False))
        learned = any(source.requires_grad for source in sources)
        value = value.detach().clone()
        values[key] = nn.Parameter(value, learned) if sources else value
    # Not by `remove_parametrizations`: it changes the class, which copies
    # share, and would break the caller's network.
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for key, value in values.items():
        if isinstance(value, nn.Parameter):
            module.register_parameter(key, value)
        else:
            module.register_buffer(key, value)


def _bake_hooks(module: nn.Module) -> None:
    """Replace weights that hooks compute by their values."""
    # In reverse order, since a hook may use the result of an earlier one.
    for hook in reversed(list(module._forward_pre_hooks.values())):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            # torch fails to remove this hook, since it wraps it.
            for key, wrapped in list(
                module._load_state_dict_pre_hooks.items()
            ):
                inner = getattr(wrapped, 'hook', wrapped)
                if isinstance(inner, SpectralNormLoadStateDictPreHook):
                    del module._load_state_dict_pre_hooks[key]
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
