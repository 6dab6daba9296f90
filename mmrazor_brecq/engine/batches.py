"""Calibration images from a tensor, a data loader, or any batches."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional, Union

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..functional import tensors
from ..graph import (
    Arguments,
    check_arguments,
    check_batch,
    check_images,
    map_images,
)
from ..validation import KeyPath

#: What calibrates a network: images, or all that it takes.
Given = Union[Tensor, Arguments]
#: Names of what is compared with outputs.
LABELS = re.compile(r'(^|_)(labels?|targets?|gt)(_|$)|^gt_')
#: Types of integers that name entries of a table, such as tokens.
INDICES = torch.int64, torch.int32


def gather_images(
    network: nn.Module, source: Union[Tensor, Iterable], most: int
) -> Given:
    """Return calibration images, on the CPU if they come in batches.

    A batch is a tensor, or any tuple, list or dict with one: the first
    floating-point tensor of two or more dimensions has the images. Where the
    network's ``forward`` needs several arguments, the first of a tuple are
    taken, and of a dict those that ``forward`` names. A network with an
    embedding takes integers. Labels and all else are ignored.

    Args:
        network (nn.Module): The network.
        source (Tensor | iterable): All images, or batches of them.
        most (int): Images to take from batches, at most. No batch beyond is
            asked for.

    Returns:
        Tensor | Arguments: N x ...

    Raises:
        ValueError: If a batch has no images, or those of two batches differ
            in size.
    """
    if isinstance(source, Tensor):
        if _takes_integers(network, source):
            return Arguments((source,))
        try:
            check_images(source)
        except ValueError as error:
            raise KeyPath('images', 'quantize').refusal(
                source, str(error)
            ) from error
        check_batch(network, source)
        return source
    found = list(_parts(network, source, most))
    if not found:
        raise ValueError(
            '`images` gives no batch: an iterator that was read before is '
            'empty, so give the data loader itself'
        )
    columns = iter([torch.cat(same) for same in zip(*map(tensors, found))])
    given: Any = map_images(lambda _: next(columns), found[0])
    return given


def _parts(network: nn.Module, source: Iterable, most: int) -> Iterator[Given]:
    """Yield the images of each batch until there are enough."""
    shapes = None
    for number, batch in enumerate(source):
        part = _inputs_of(network, batch, number)
        found = tensors(part)
        before, shapes = shapes, [x.shape[1:] for x in found]
        if before is not None and shapes != before:
            now, then = (
                ', '.join(str(tuple(shape)) for shape in some)
                for some in (shapes, before)
            )
            raise ValueError(
                f'Batch {number} of `images` has images of {now}, those '
                f'before are of {then}: resize them to one size'
            )
        part = _first(part, most)
        yield part
        most -= len(part)
        if not most:
            break


def _first(part: Given, most: int) -> Given:
    """Return the first images, on the CPU."""
    if isinstance(part, Arguments):
        return part.map(lambda x: x.detach()[:most].cpu())
    return part.detach()[:most].cpu()


def _inputs_of(network: nn.Module, batch: Any, number: int) -> Given:
    """Return what of a batch the network takes."""
    several = _several(network, batch)
    if several is not None:
        check_arguments(
            dict(enumerate(several.args), **several.kwargs), number
        )
        return several
    found = tensors(batch)
    images = next(
        (x for x in found if x.is_floating_point() and x.dim() > 1), None
    )
    if images is not None:
        check_batch(network, check_images(images))
        return images
    tokens = next((x for x in found if _takes_integers(network, x)), None)
    if tokens is not None:
        return Arguments((tokens,))
    raise ValueError(
        f'Batch {number} of `images` is a {type(batch).__name__} '
        'without a floating-point tensor, expected preprocessed '
        'images, N x C x H x W, alone or first in a tuple, list or '
        'dict'
    )


def _several(network: nn.Module, batch: Any) -> Optional[Arguments]:
    """Return the arguments that a network takes, None if it takes one."""
    names, needed = _parameters(network)
    if isinstance(batch, Mapping):
        named = {
            name: value
            for name, value in batch.items()
            if isinstance(value, Tensor)
            and name in names
            and (name in needed or not LABELS.search(name))
        }
        lacking = [name for name in needed if name not in named]
        if lacking and len(needed) > 1:
            raise ValueError(
                f'A batch of `images` has the keys {list(batch)}, and '
                f'{type(network).__name__}.forward needs {needed}: name its '
                f'arguments, {lacking[0]!r} is missing'
            )
        return Arguments((), named) if len(named) > 1 else None
    if len(needed) < 2:
        return None
    if isinstance(batch, (tuple, list)):
        if batch and isinstance(batch[0], (tuple, list, Mapping)):
            return _several(network, batch[0])
        found = [x for x in batch if isinstance(x, Tensor)]
        if len(found) >= len(needed):
            return Arguments(tuple(found[: len(needed)]))
    raise ValueError(
        f'{type(network).__name__}.forward needs {needed}, and a batch of '
        '`images` does not give as many tensors: give tuples or dicts of them'
    )


def _parameters(network: nn.Module) -> tuple[list[str], list[str]]:
    """Return names of the arguments of a network, and of those it needs.

    Of a network of OpenMMLab, whose further arguments are no inputs, there
    are none.
    """
    if isinstance(network, BaseModel):
        return [], []
    try:
        found = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):  # It is not written in Python.
        return [], []
    fixed = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    named = [x for x in found if x.kind not in fixed]
    needed = [x.name for x in named if x.default is inspect.Parameter.empty]
    return [x.name for x in named], needed


def _takes_integers(network: nn.Module, x: Tensor) -> bool:
    """Return whether integers can be what a network takes: it has a table."""
    return x.dtype in INDICES and any(
        isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for module in network.modules()
    )
