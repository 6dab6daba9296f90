"""Find the values of attention: what each head multiplies and puts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from ..layers import MatrixProduct
from .equalize import as_rows, channel_dim, own, reached_from
from .origins import Origins
from .record import Recording
from .samples import Inputs, run_float


@dataclass
class ValueHeads:
    """Channels that one layer puts out, heads mix tokens of, another reads.

    Attributes:
        product (str): Name of the product of each head, softmax times values.
        writer (str): Layer that puts the values out.
        reader (str): Layer that reads the product.
        rows (Tensor): Output channels of the writer, heads x channels.
        columns (Tensor): The same among the input channels of the reader.
    """

    product: str
    writer: str
    reader: str
    rows: Tensor
    columns: Tensor


def find_value_heads(
    network: nn.Module, inputs: Inputs, between: Sequence[ProductBetween]
) -> list[ValueHeads]:
    """Find the heads whose values one layer writes and another reads.

    Args:
        network (nn.Module): The network, in evaluation mode.
        inputs (Tensor | Samples): Any inputs that it takes.
        between (list[ProductBetween]): Products that may have them.
    """
    if not between:
        return []
    numbers = _numbers_met(network, inputs, between)
    found = (_value_heads(x, *numbers[x]) for x in between if x in numbers)
    return [heads for heads in found if heads is not None]


class ProductBetween(NamedTuple):
    """Names of a product and of the layers before and behind it."""

    product: str
    writer: str
    reader: str


def products_between(recording: Recording) -> list[ProductBetween]:
    """Return the products whose second operand a layer puts out, and whose
    result another one reads, as it is or moved.

    Args:
        recording (Recording): A recorded pass.
    """
    found = []
    origins, calls = Origins(recording), recording.by_module()
    modules = {call.name: call.module for call in recording.calls}
    for product, uses in calls.items():
        if not isinstance(product, MatrixProduct) or len(uses) != 1:
            continue
        writer = origins.layer(origins.before_moves(uses[0].inputs[1]))
        reached = reached_from({*uses[0].outputs}, recording)
        if writer is None or reached is None or len(reached.layers) != 1:
            continue
        (reader,) = reached.layers
        if all(
            len(calls[layer]) == 1
            and recording.readers(x) == {layer}
            and getattr(layer, 'groups', 1) == 1
            for layer in (modules[writer], modules[reader])
            for x in own(layer).values()
        ):
            found.append(ProductBetween(uses[0].name, writer, reader))
    return found


@torch.no_grad()
def _numbers_met(
    network: nn.Module, inputs: Inputs, between: Sequence[ProductBetween]
) -> dict[ProductBetween, tuple[Tensor, Tensor]]:
    """Let each writer put out the numbers of its channels, and follow them.

    Returns:
        dict: For each candidate the numbers at the product, heads x tokens x
        channels, and at the reader, tokens x channels.
    """
    values: dict[ProductBetween, Tensor] = {}
    read: dict[ProductBetween, Tensor] = {}

    def number(layer: nn.Module, args: tuple, out: Tensor) -> Tensor:
        dim = channel_dim(layer)
        numbers = torch.arange(out.shape[dim]).to(out)
        last = torch.zeros_like(out).movedim(dim, -1) + numbers
        return last.movedim(-1, dim)

    def pass_on(
        candidate: ProductBetween, product: nn.Module, args: tuple, out: Tensor
    ) -> Tensor:
        numbers = args[1]
        values[candidate] = numbers.reshape(-1, *numbers.shape[-2:])
        return numbers[..., :1, :].expand_as(out).clone()

    def keep(candidate: ProductBetween, layer: nn.Module, args: tuple) -> None:
        read[candidate] = as_rows(args[0], layer)

    hooks = []
    for x in between:
        writer, product, reader = map(
            network.get_submodule, (x.writer, x.product, x.reader)
        )
        hooks += [
            writer.register_forward_hook(number),
            product.register_forward_hook(partial(pass_on, x)),
            reader.register_forward_pre_hook(partial(keep, x)),
        ]
    try:
        run_float(network, inputs)
    except Exception:  # Its code may refuse numbers. What is met is known.
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return {x: (values[x], read[x]) for x in between if x in read}


def _value_heads(
    names: ProductBetween, values: Tensor, read: Tensor
) -> Optional[ValueHeads]:
    """Return heads, None if channels do not stay apart on their way.

    Args:
        names (ProductBetween): The product and the layers.
        values (Tensor): Numbers of channels, heads x tokens x channels;
            images and windows count as heads of the same numbers.
        read (Tensor): The same as they are read, tokens x channels.
    """
    if not (values == values[:, :1]).all() or not (read == read[:1]).all():
        return None
    rows = values[:, 0].unique(dim=0).long()
    places = read[0].long() == rows.flatten()[:, None]
    if rows.unique().numel() < rows.numel() or (places.sum(1) != 1).any():
        return None
    columns = places.int().argmax(1).view_as(rows)
    return ValueHeads(*names, rows, columns)
