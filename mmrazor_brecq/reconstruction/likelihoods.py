"""What the float network's own loss says of its units' outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import from_rows, rows, weighted_squared_error
from ..graph import Unit, run_float
from ..registry import TASK_UTILS
from .rows import AND_BACK, Rows, at_once, tensors

#: A unit's name, and which of its output tensors.
Place = tuple[str, int]


@TASK_UTILS.register_module()
class Categorical:
    """Labels drawn from the network's own softmax: no true labels needed.

    The expected squared gradient is then the true Fisher information.

    Args:
        temperature (float): What logits are divided by: above 1, classes
            that are unlikely count for more (Hinton et al., 2015).
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(
                f'temperature={temperature}, expected more than 0: change '
                '`temperature` of the likelihood'
            )
        self.temperature = temperature

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Negative log-likelihood of drawn labels, summed over images.

        Args:
            outputs (list[Tensor]): Logits, N x C each.
            generator (torch.Generator): Source of the labels, on the CPU.
        """
        loss = outputs[0].new_zeros(())
        for logits in self._softened(outputs):
            chances = logits.detach().softmax(-1).flatten(0, -2).cpu()
            labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
            loss = loss + F.cross_entropy(
                logits.flatten(0, -2),
                labels.to(logits.device),
                reduction='sum',
            )
        return loss

    def divergence(self, outputs: list[Tensor], goals: list[Tensor]) -> Tensor:
        """Kullback-Leibler divergence, in nats, the mean over images.

        Args:
            outputs (list[Tensor]): Logits, N x C each.
            goals (list[Tensor]): Those that they should be.
        """
        pairs = zip(self._softened(outputs), self._softened(goals))
        parts = [
            F.kl_div(
                out.log_softmax(-1),
                goal.log_softmax(-1),
                reduction='sum',
                log_target=True,
            )
            for out, goal in pairs
        ]
        return torch.stack(parts).sum() / len(outputs[0])

    def _softened(self, outputs: list[Tensor]) -> list[Tensor]:
        return [logits / self.temperature for logits in outputs]


@TASK_UTILS.register_module()
class CategoricalSketch(Categorical):
    """Gradients with the Fisher information of :class:`Categorical`.

    Where the network is sure of a label, nearly all labels that it draws
    have no gradient to speak of, and few have a large one. Here the
    gradient at the logits is ``(diag(s) - p s^T) r`` with the softmax ``p``,
    its root ``s = sqrt(p)``, and ``r`` standard normal: it has the same
    second moment ``diag(p) - p p^T``, and far less spread.
    """

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """A function of the logits with that gradient, summed over images.

        Args:
            outputs (list[Tensor]): Logits, N x C each.
            generator (torch.Generator): Source of ``r``, on the CPU.
        """
        loss = outputs[0].new_zeros(())
        for logits in self._softened(outputs):
            chances = logits.detach().softmax(-1)
            noise = torch.randn(chances.shape, generator=generator)
            drawn = chances.sqrt() * noise.to(chances)
            gradient = drawn - chances * drawn.sum(-1, keepdim=True)
            loss = loss + (logits * gradient).sum()
        return loss


@TASK_UTILS.register_module()
class Gaussian:
    """Unit variance around each output, for networks that regress.

    The expected squared gradient is the diagonal of ``J^T J``.
    """

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Negative log-likelihood of drawn targets, up to a constant.

        Args:
            outputs (list[Tensor]): Outputs of any shape.
            generator (torch.Generator): Source of the targets, on the CPU.
        """
        loss = outputs[0].new_zeros(())
        for out in outputs:
            noise = torch.randn(out.shape, generator=generator)
            loss = loss + (out * noise.to(out)).sum()
        return loss

    def divergence(self, outputs: list[Tensor], goals: list[Tensor]) -> Tensor:
        """Kullback-Leibler divergence, in nats, the mean over images.

        Args:
            outputs (list[Tensor]): Outputs of any shape.
            goals (list[Tensor]): Those that they should be.
        """
        images = len(outputs[0])
        parts = [
            weighted_squared_error(out, goal) * (out.numel() / 2)
            for out, goal in zip(outputs, goals)
        ]
        return torch.stack(parts).sum() / images


def teacher_gradients(
    teacher: nn.Module,
    units: Sequence[Unit],
    images: Rows,
    likelihood: Callable[[list[Tensor], torch.Generator], Tensor],
    generator: torch.Generator,
    collect: Callable[[Place, slice, Tensor], None],
    count: Optional[int] = None,
) -> None:
    """One forward and backward pass an image, for all units together.

    Args:
        teacher (nn.Module): The float network.
        units (list[Unit]): Units; those of the teacher are found by name.
        images (Rows): Preprocessed inputs.
        likelihood (callable): From outputs and generator to a loss.
        generator (torch.Generator): Source of what the likelihood draws.
        collect (callable): Takes a unit's name and the place of an output
            tensor in it, which images are at hand, and the loss's gradient
            there, in the output's order of memory. Of a unit that is called
            several times only the first call counts, which is the one that
            is reconstructed.
        count (int, optional): How many of the images; by default all.
    """
    count = len(images) if count is None else min(count, len(images))
    together = at_once(images.elements, most=32, room=AND_BACK)
    seen: set[str] = set()
    now = slice(0, 0)

    def watch(name: str) -> Callable:

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if name in seen:
                return
            seen.add(name)
            for i, out in enumerate(tensors(output)):
                if out.requires_grad and out.dim():
                    # Only its order of memory: a hook must not hold it.
                    form = torch.empty_like(out, device='meta')
                    out.register_hook(
                        lambda g, i=i, form=form: collect(
                            (name, i), now, from_rows(rows(g, form), form)
                        )
                    )

        return hook

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
                        return
                    seen.clear()
                    now = slice(now.stop, now.stop + len(part))
                    # What is in front of the first unit needs no gradient,
                    # but its output has to ask for one.
                    inputs = part.detach().requires_grad_().clone()
                    out = run_float(teacher, inputs)
                    likelihood(tensors(out), generator).backward()
    finally:
        for hook in hooks:
            hook.remove()
