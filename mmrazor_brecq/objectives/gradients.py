"""Gradients of the float network's loss at the outputs of its units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from ..activations import MAX_ELEMENTS_BACKWARD, CachedBatches, images_per_pass
from ..functional import Nested, from_rows, map_tensors, tensors, to_rows
from ..graph import Inputs, Unit, map_images, run_float
from .likelihood import Likelihood

#: Name of a unit, and position of a tensor among its outputs.
OutputKey = tuple[str, int]


def real_outputs(output: Nested) -> list[Tensor]:
    """Return the tensors that can have a likelihood or an error.

    Args:
        output (Any): Tensors in any structure.

    Returns:
        list[Tensor]: The floating-point tensors that are not empty, in
        order.
    """
    return [x for x in tensors(output) if x.is_floating_point() and x.numel()]


def teacher_gradients(
    teacher: nn.Module,
    units: Sequence[Unit],
    images: CachedBatches,
    likelihood: Callable[[list[Tensor], torch.Generator], Tensor],
    generator: torch.Generator,
    collect: Callable[[OutputKey, slice, Tensor], None],
    count: Optional[int] = None,
) -> set[str]:
    """Collect gradients of all units in one forward and backward pass.

    Only the first call of a unit in a forward pass counts, because that is
    the call that is reconstructed.

    Args:
        teacher (nn.Module): The float network.
        units (list[Unit]): Units, found in the teacher by their names.
        images (CachedBatches): Preprocessed images.
        likelihood (callable): Computes a loss from the network's outputs
            and the generator.
        generator (torch.Generator): Source of what the likelihood draws.
        collect (callable): Is called with an :data:`OutputKey`, the slice of
            images, and the gradient of the loss with respect to that output
            tensor, in the tensor's order of memory.
        count (int, optional): Number of images, 1 or more; by default all.

    Returns:
        set[str]: Names of the units that a gradient reached. It is empty if
        the network runs under ``torch.no_grad`` or returns no tensor of real
        numbers.
    """
    reached: set[str] = set()
    count = len(images) if count is None else min(count, len(images))
    current = slice(0, 0)

    def take(key: OutputKey, gradient: Tensor) -> None:
        reached.add(key[0])
        collect(key, current, gradient)

    hooks = [_UnitHook(unit.name, take) for unit in units]
    with ExitStack() as stack, torch.enable_grad():
        for hook in hooks:
            module = teacher.get_submodule(hook.name)
            handle = module.register_forward_hook(hook)
            stack.callback(handle.remove)
        for part in _parts(images, count):
            for hook in hooks:
                hook.called = False
            current = slice(current.stop, current.stop + len(part))
            # The first unit's output requires a gradient only if its input
            # does. The copy may be written to, a leaf may not.
            inputs = map_images(lambda x: _with_gradient(x.detach()), part)
            outputs = real_outputs(run_float(teacher, inputs))
            if not current.start and isinstance(likelihood, Likelihood):
                likelihood.see(teacher, inputs, outputs)
            if any(out.requires_grad for out in outputs):
                likelihood(outputs, generator).backward()
    return reached


def _parts(images: CachedBatches, count: int) -> Iterator[Inputs]:
    """Yield the first ``count`` images, as many at a time as memory allows."""
    size = images_per_pass(
        images.elements, max_images=32, max_elements=MAX_ELEMENTS_BACKWARD
    )
    left = count
    for batch in images.split():
        for part in batch.split(size):
            if not left:
                return
            part = part[:left]
            left -= len(part)
            yield part


class _UnitHook:
    """Forward hook that takes the gradients at one unit's outputs.

    Args:
        name (str): The unit.
        take (callable): Is called with a key and the gradient there.
    """

    def __init__(
        self, name: str, take: Callable[[OutputKey, Tensor], None]
    ) -> None:
        self.name = name
        self.take = take
        self.called = False

    def __call__(self, module: nn.Module, args: Any, output: Nested) -> Nested:
        """Return the output, its tensors watched if this is the first call."""
        if self.called:
            return None
        self.called = True
        output = map_tensors(_with_gradient, output)
        for i, out in enumerate(tensors(output)):
            if out.requires_grad and out.dim():
                self._watch((self.name, i), out)
        return output

    def _watch(self, key: OutputKey, out: Tensor) -> None:
        # A hook that kept the tensor itself would keep it in memory. A copy
        # without data has the same order of memory.
        form = torch.empty_like(out, device='meta')

        def take(gradient: Optional[Tensor]) -> None:
            # Some operations pass on none, where none has reached them.
            if gradient is not None:
                self.take(key, from_rows(to_rows(gradient, form), form))

        out.register_hook(take)


def _with_gradient(out: Tensor) -> Tensor:
    """Return a tensor that requires a gradient, if it can have one.

    Integers can have none. After ``detach``, or in a block under
    ``no_grad``, an output does not require one by itself.
    """
    if (
        out.requires_grad
        or not out.is_floating_point()
        or not torch.is_grad_enabled()
    ):
        return out
    return out.detach().requires_grad_().clone()
