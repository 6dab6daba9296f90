"""Names of a network's outputs in a file."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import takewhile, zip_longest
from typing import Any, Optional

from torch import Tensor, nn

from ..functional import tensors

#: Method of a head of OpenMMLab that takes its outputs, one by one.
DECODES = 'predict_by_feat'
#: Name of the input, and of a single output of N x K scores.
INPUT, SCORES = 'image', 'logits'


def output_names(network: nn.Module, output: Any) -> list[str]:
    """Return the names of a network's output tensors.

    A head of OpenMMLab names its outputs itself, where it decodes them: the
    lists ``cls_scores`` and ``bbox_preds`` have the maps ``cls_score_0``,
    ``cls_score_1``, ``bbox_pred_0`` and so on. Keys of dicts and fields of
    named tuples and dataclasses are names, too. N x K scores alone are
    ``logits``, and all else is ``output_0``, ``output_1`` and so on.

    Args:
        network (nn.Module): The network.
        output (Any): Its output for any images, tensors in any structure.

    Returns:
        list[str]: One name for each tensor, all different, in the order of
        :func:`tensors`.
    """
    found = tensors(output)
    if len(found) == 1 and found[0].dim() == 2:
        return [SCORES]
    by_id = {id(x): name for name, x in _named(output, _of_head(network))}
    names = [by_id.get(id(x), '') for x in found]
    if '' in names or len({*names, INPUT}) <= len(names):
        return [f'output_{i}' for i in range(len(found))]
    return names


def _of_head(network: nn.Module) -> list[str]:
    """Return the names that a head has for its outputs, in order."""
    for module in network.children():
        decodes = getattr(module, DECODES, None)
        if callable(decodes):
            names = list(inspect.signature(decodes).parameters)
            return list(takewhile(lambda name: 'meta' not in name, names))
    return []


def _named(
    output: Any, of_head: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an output with their names.

    Args:
        output (Any): Of a network.
        of_head (list[str]): Names for what has none.
    """
    parts = [(None, output)] if isinstance(output, Tensor) else _items(output)
    for (key, value), other in zip_longest(parts, of_head[: len(parts)]):
        if key is None and other and not isinstance(value, Tensor):
            other = _singular(other)
        yield from _inside(value, key or other or '')


def _inside(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a value that has a name, or none."""
    if isinstance(value, Tensor):
        yield name, value
        return
    for i, (key, part) in enumerate(_items(value)):
        inner = f'{name}_{key or i}' if name else key or ''
        yield from _inside(part, inner)


def _items(value: Any) -> list[tuple[Optional[str], Any]]:
    """Return what is directly in a structure, by name where it has one."""
    if isinstance(value, Mapping):
        pairs = [(str(key), x) for key, x in value.items()]
    elif is_dataclass(value):
        pairs = [(f.name, getattr(value, f.name)) for f in fields(value)]
    elif isinstance(value, (list, tuple)):
        keys = getattr(value, '_fields', [''] * len(value))
        pairs = list(zip(keys, value))
    else:
        pairs = []
    return [(re.sub(r'\W', '_', key) or None, x) for key, x in pairs]


def _singular(name: str) -> str:
    """Return the name of one map of a list: ``bbox_pred``."""
    for plural, end in (('sses', 'ss'), ('s', '')):
        if name.endswith(plural):
            return name[: -len(plural)] + end
    return name
