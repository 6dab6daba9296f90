"""The gradients of the float network's own loss at its units' outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from ..activations import MAX_ELEMENTS_BACKWARD, CachedBatches, images_per_pass
from ..functional import from_rows, map_tensors, tensors, to_rows
from ..graph import Unit, run_float
from .likelihood import Likelihood

#: A unit's name, and which of its output tensors.
OutputKey = tuple[str, int]


def real_outputs(nested: Any) -> list[Tensor]:
    """Return the real tensors of a structure that are not empty: what a
    likelihood or an error can be of.
    """
    return [x for x in tensors(nested) if x.is_floating_point() and x.numel()]


def teacher_gradients(
    teacher: nn.Module,
    units: Sequence[Unit],
    images: CachedBatches,
    likelihood: Callable[[list[Tensor], torch.Generator], Tensor],
    generator: torch.Generator,
    collect: Callable[[OutputKey, slice, Tensor], None],
    count: Optional[int] = None,
) -> set[str]:
    """One forward and backward pass an image, for all units together.

    Args:
        teacher (nn.Module): The float network.
        units (list[Unit]): Units; those of the teacher are found by name.
        images (CachedBatches): Preprocessed inputs.
        likelihood (callable): From outputs and generator to a loss.
        generator (torch.Generator): Source of what the likelihood draws.
        collect (callable): Takes a unit's name and the place of an output
            tensor in it, which images are at hand, and the loss's gradient
            there, in the output's order of memory. Of a unit that is called
            several times only the first call counts, which is the one that
            is reconstructed.
        count (int, optional): How many of the images; by default all.

    Returns:
        set[str]: Names of the units that a gradient reached: none where the
        network runs under ``no_grad`` or gives no real numbers.
    """
    reached: set[str] = set()
    count = len(images) if count is None else min(count, len(images))
    together = images_per_pass(
        images.elements, max_images=32, max_elements=MAX_ELEMENTS_BACKWARD
    )
    seen: set[str] = set()
    now = slice(0, 0)

    def watch(name: str) -> Callable:

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if name in seen:
                return None
            seen.add(name)
            output = map_tensors(_asking, output)
            for i, out in enumerate(tensors(output)):
                if out.requires_grad and out.dim():
                    # Only its order of memory: a hook must not hold it.
                    form = torch.empty_like(out, device='meta')
                    out.register_hook(
                        lambda g, i=i, form=form: take(
                            (name, i), from_rows(to_rows(g, form), form)
                        )
                    )
            return output

        return hook

    def take(place: OutputKey, gradient: Tensor) -> None:
        reached.add(place[0])
        collect(place, now, gradient)

    hooks = [
        teacher.get_submodule(unit.name).register_forward_hook(
            watch(unit.name)
        )
        for unit in units
    ]
    try:
        with torch.enable_grad():
            for batch in images.split():
                for part in batch.split(together):
                    part = part[: count - now.stop]
                    if not len(part):
                        return reached
                    seen.clear()
                    now = slice(now.stop, now.stop + len(part))
                    # What is in front of the first unit needs no gradient,
                    # but its output has to ask for one.
                    inputs = part.detach().requires_grad_().clone()
                    outputs = real_outputs(run_float(teacher, inputs))
                    if not now.start and isinstance(likelihood, Likelihood):
                        likelihood.see(teacher, inputs, outputs)
                    if any(out.requires_grad for out in outputs):
                        likelihood(outputs, generator).backward()
    finally:
        for hook in hooks:
            hook.remove()
    return reached


def _asking(out: Tensor) -> Tensor:
    """An output that asks for a gradient, where it may.

    Behind ``detach`` or a block under ``no_grad`` nothing else would.
    """
    if (
        out.requires_grad
        or not out.is_floating_point()
        or not torch.is_grad_enabled()
    ):
        return out
    return out.detach().requires_grad_().clone()
