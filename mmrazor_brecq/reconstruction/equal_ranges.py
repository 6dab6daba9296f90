"""Give the channels behind each norm ranges that one scale resolves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..activations import CachedBatches, images_per_pass
from ..graph import (
    Equalize,
    ReadNorm,
    apply_checked,
    as_rows,
    find_read_norms,
    record,
    run_float,
)
from ..quantizers import ActivationQuantizer, WeightQuantizer
from ..runtime.distributed import copy_from_first_process

#: Images that ranges are chosen on, and rows of channels of all of them.
IMAGES, ROWS = 64, 1024
#: Exponents of the factors that are tried: with 1 all channels have the same
#: range, with 0 they keep theirs. What activations gain, weights may lose.
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


class LayerQuantizers(NamedTuple):
    """New quantizers of a layer, without scales."""

    weight: WeightQuantizer
    input: ActivationQuantizer


@torch.no_grad()
def equalize(
    network: nn.Module,
    images: CachedBatches,
    quantizers_of: Callable[[str], Optional[LayerQuantizers]],
) -> list[Equalize]:
    """Move ranges of channels from norms to the layers that read them.

    Args:
        network (nn.Module): The float network; it is changed in place.
        images (CachedBatches): Calibration images.
        quantizers_of (callable): Returns new quantizers for a layer, by its
            name, None if its input stays in float.

    Returns:
        list[Equalize]: What was done.
    """
    example = images.take(torch.arange(1))
    reads = find_read_norms(network, record(network, example))
    rows = _rows(network, reads, images)
    rewrites = []
    for read in reads:
        found = {name: quantizers_of(name) for name in read.layers}
        quantizers = {k: v for k, v in found.items() if v is not None}
        if quantizers and read.name in rows:
            ranges = _best_ranges(
                network, read, rows.pop(read.name), quantizers
            )
            copy_from_first_process(ranges)
            rewrites.append(Equalize(network, read, *ranges))
    undone = {*apply_checked(network, rewrites, example)}
    for rewrite in rewrites:
        if rewrite in undone:
            print_log(
                f'{rewrite.read.name} stays as it is, as other ranges of its '
                'channels change the output of the network: it is not '
                'proportional to its weight, or a hook or other code comes '
                f'between it and {", ".join(rewrite.read.layers)}',
                'current',
            )
    return [r for r in rewrites if r not in undone]


def _rows(
    network: nn.Module, reads: Sequence[ReadNorm], images: CachedBatches
) -> dict[str, Tensor]:
    """Return a sample of what each norm's layers are given.

    Returns:
        dict[str, Tensor]: By name of the norm, M x C, finite.
    """
    found: dict[str, list[Tensor]] = {read.name: [] for read in reads}
    size = images_per_pass(images.elements, max_images=8)
    parts = torch.arange(min(len(images), IMAGES)).split(size)

    def keep(norm: str, count: int) -> Callable[[nn.Module, tuple], None]:
        def hook(layer: nn.Module, args: tuple) -> None:
            rows = as_rows(args[0], layer)
            generator = torch.Generator().manual_seed(len(found[norm]))
            order = torch.randperm(len(rows), generator=generator)
            found[norm].append(rows[order[:count].to(rows.device)])

        return hook

    hooks = [
        network.get_submodule(name).register_forward_pre_hook(
            keep(read.name, max(1, ROWS // len(parts) // len(read.layers)))
        )
        for read in reads
        for name in read.layers
    ]
    try:
        for part in parts if hooks else ():
            run_float(network, images.take(part))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _finite(torch.cat(x)) for name, x in found.items() if x}


def _finite(rows: Tensor) -> Tensor:
    """Return the rows that are finite, one of zeros if there is none.

    All processes have to agree on which norms are looked at.
    """
    rows = rows[rows.isfinite().all(1)]
    return rows if len(rows) else rows.new_zeros(1, rows.shape[1])


def _best_ranges(
    network: nn.Module,
    read: ReadNorm,
    rows: Tensor,
    quantizers: dict[str, LayerQuantizers],
) -> tuple[Tensor, Tensor]:
    """Return the factors and offsets with which layers err the least.

    Args:
        network (nn.Module): The float network.
        read (ReadNorm): A norm in it.
        rows (Tensor): What its layers are given, M x C.
        quantizers (dict): Those of its layers, by name.

    Returns:
        tuple[Tensor, Tensor]: Each of shape C.
    """
    narrowest = min(
        (pair.input for pair in quantizers.values()), key=lambda q: q.grid.bits
    )
    factor, offset = _ranges(rows, narrowest, read.shifts)
    errors = []
    for strength in STRENGTHS:
        powers = factor**strength
        errors.append(
            sum(
                _error(
                    (rows - offset) / powers,
                    _columns(network.get_parameter(f'{name}.weight')) * powers,
                    *pair,
                )
                for name, pair in quantizers.items()
            )
        )
    return factor ** STRENGTHS[errors.index(min(errors))], offset


def _ranges(
    rows: Tensor, quantizer: ActivationQuantizer, shifts: bool
) -> tuple[Tensor, Tensor]:
    """Return factor and offset of each channel.

    Args:
        rows (Tensor): M x C.
        quantizer (ActivationQuantizer): Has the observer and the grid.
        shifts (bool): Whether channels are centered.

    Returns:
        tuple[Tensor, Tensor]: Each of shape C: how wide a channel is,
        relative to the others, and the middle of its range.
    """
    channels = rows.t().contiguous()
    mean = channels.mean(1) if shifts else torch.zeros_like(channels[:, 0])
    scale, zero_point = quantizer.observer(
        channels - mean[:, None], quantizer.grid
    )
    low, high = quantizer.grid.range
    constant = (channels == channels[:, :1]).all(1)
    middle = mean + ((low + high) / 2 - zero_point) * scale
    offset = torch.where(constant, mean, middle) if shifts else mean
    width = scale[~constant].mean() if (~constant).any() else 1.0
    return torch.where(constant, 1, scale / width), offset


def _columns(weight: Tensor) -> Tensor:
    """Return a weight with its input channels as columns, O x ... x C."""
    return weight.detach().movedim(1, -1)


def _error(
    rows: Tensor,
    weight: Tensor,
    weight_quantizer: WeightQuantizer,
    input_quantizer: ActivationQuantizer,
) -> float:
    """Return what a layer's output loses by nearest rounding.

    Args:
        rows (Tensor): Its input, M x C.
        weight (Tensor): Its weight, O x ... x C.
        weight_quantizer (WeightQuantizer): Gets new scales.
        input_quantizer (ActivationQuantizer): Likewise.
    """
    weight = weight.contiguous()
    weight_quantizer.to(weight.device).fit(weight)
    input_quantizer.to(rows.device).fit(rows)
    rounded = weight_quantizer(weight).flatten(0, -2)
    found = input_quantizer(rows) @ rounded.t()
    return float((found - rows @ weight.flatten(0, -2).t()).square().sum())
