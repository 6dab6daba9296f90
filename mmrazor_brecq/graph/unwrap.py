"""Networks that come in a wrapper, and those that cannot be taken apart."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

#: Wrappers that hold a network as their ``module``.
WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
#: What ``torch.compile`` calls the network inside; its class is in a part
#: of torch that takes long to import.
COMPILED = '_orig_mod'


def unwrap(model: Any) -> Any:
    """A network without what makes it run faster, or on more devices.

    Args:
        model (nn.Module): As it came; it is left as it is.

    Returns:
        nn.Module: What is inside, said in a line of the log; the same
        where there is no wrapper.

    Raises:
        ValueError: If it is scripted or traced: then its layers are no
            modules of Python any more.
    """
    while (inside := _wrapped(model)) is not None:
        print_log(
            f'{type(model).__name__}: takes the {type(inside).__name__} '
            'inside',
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
        model (nn.Module): Changed in place, where a part was wrapped.

    Returns:
        nn.Module: Without any.
    """
    model = unwrap(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _wrapped(child) is not None:
                parent._modules[name] = unwrap(child)
    return model


def _wrapped(model: Any) -> Any:
    """What is inside a wrapper, None if it is none."""
    if not isinstance(model, nn.Module):
        return None
    if isinstance(model, WRAPPERS):
        return model.module
    return dict(model.named_children()).get(COMPILED)
