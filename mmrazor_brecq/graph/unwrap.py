"""Take networks out of wrappers, and refuse scripted and traced ones."""

from __future__ import annotations

from typing import Any, Optional, cast

import torch
from mmengine.logging import print_log
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

#: Wrappers whose network is their attribute ``module``.
WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
#: Name that ``torch.compile`` gives to the network inside. Its class is not
#: used here, since importing it takes long.
COMPILED = '_orig_mod'


def unwrap(model: Any) -> Any:
    """Return a network without the wrappers around it.

    Wrappers are, for instance, those of ``torch.compile`` and
    ``DistributedDataParallel``. Each one is named in a line of the log.

    Args:
        model (nn.Module): The network; it stays as it is.

    Returns:
        nn.Module: The network inside, or ``model`` if it has no wrapper.

    Raises:
        ValueError: If the network is scripted or traced: its layers are no
            Python modules that could be replaced.
    """
    while (inside := _wrapped(model)) is not None:
        print_log(
            f'{type(model).__name__}: the {type(inside).__name__} inside is '
            'used',
            'current',
        )
        model = inside
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise ValueError(
            f'The model is a {type(model).__name__}, scripted or traced: its '
            'layers cannot be replaced any more. Give the nn.Module that it '
            'was made from, with the weights of '
            'torch.jit.load(path).state_dict()'
        )
    return model


def unwrap_parts(model: nn.Module) -> nn.Module:
    """Take the wrappers off a network and off the modules inside it.

    Args:
        model (nn.Module): The network. Wrapped modules inside it are
            replaced in place.

    Returns:
        nn.Module: The network without wrappers.
    """
    model = unwrap(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _wrapped(child) is not None:
                parent._modules[name] = unwrap(child)
    return model


def _wrapped(model: object) -> Optional[nn.Module]:
    """Return the network inside a wrapper, None if there is no wrapper."""
    if not isinstance(model, nn.Module):
        return None
    if isinstance(model, WRAPPERS):
        return cast(nn.Module, model.module)
    return dict(model.named_children()).get(COMPILED)
