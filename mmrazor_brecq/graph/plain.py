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
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from ..layers import is_quantizable
from .compare import Reference

Network = TypeVar('Network', bound=nn.Module)


def copy_network(network: Network) -> Network:
    """A copy of a network, also where hooks left tensors that carry
    gradients behind, which :func:`copy.deepcopy` refuses.
    """
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
            _bake_parametrizations(module)
            _bake_hooks(module)
            names.append(name)
    if not reference.matches():
        raise ValueError(
            f'The weights of {", ".join(reversed(names))} are computed anew '
            'in each call, and the network gives something else once they '
            'are constants: remove their parametrizations before it is '
            'quantized'
        )


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
def _bake_parametrizations(module: Any) -> None:
    for key in list(getattr(module, 'parametrizations', ())):
        value = getattr(module, key).detach().clone()
        sources = list(module.parametrizations[key].parameters(recurse=False))
        parametrize.remove_parametrizations(module, key)
        delattr(module, key)
        if sources:
            learned = any(source.requires_grad for source in sources)
            value = nn.Parameter(value, learned)
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
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
