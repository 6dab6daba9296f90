"""Objectives: how far a unit's output is from the float network's.

All of them are mean squared errors under some weighting that asks what the
network's task loss makes of an error (BRECQ, Sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..functional import weighted_squared_error
from ..graph import Unit, run_float
from ..registry import TASK_UTILS
from .rows import Rows, tensors


@TASK_UTILS.register_module()
class Categorical:
    """Labels drawn from the network's own softmax: no true labels needed.

    The expected squared gradient is then the true Fisher information.
    """

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Negative log-likelihood of drawn labels, summed over images.

        Args:
            outputs (list[Tensor]): Logits, N x C each.
            generator (torch.Generator): Source of the labels, on the CPU.
        """
        loss = outputs[0].new_zeros(())
        for logits in outputs:
            chances = logits.detach().softmax(-1).flatten(0, -2).cpu()
            labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
            loss = loss + F.cross_entropy(
                logits.flatten(0, -2),
                labels.to(logits.device),
                reduction='sum',
            )
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


def teacher_gradients(
    teacher: nn.Module,
    units: Sequence[Unit],
    batches: Sequence[Tensor],
    likelihood: Callable[[list[Tensor], torch.Generator], Tensor],
    generator: torch.Generator,
    collect: Callable[[str, int, Tensor], None],
) -> None:
    """One forward and backward pass an image, for all units together.

    Args:
        teacher (nn.Module): The float network.
        units (list[Unit]): Units; those of the teacher are found by name.
        batches (list[Tensor]): Preprocessed inputs.
        likelihood (callable): From outputs and generator to a loss.
        generator (torch.Generator): Source of what the likelihood draws.
        collect (callable): Takes a unit's name, the place of an output
            tensor in the unit, and the loss's gradient there. Of a unit
            that is called several times only the first call counts, which
            is the one that is reconstructed.
    """
    seen: set[str] = set()

    def watch(name: str) -> Callable:

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if name in seen:
                return
            seen.add(name)
            for i, out in enumerate(tensors(output)):
                if out.requires_grad:
                    out.register_hook(
                        lambda g, i=i: collect(name, i, g.detach())
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
            for batch in batches:
                for part in batch.split(32):
                    seen.clear()
                    # What is in front of the first unit needs no gradient,
                    # but its output has to ask for one.
                    images = part.detach().requires_grad_().clone()
                    out = run_float(teacher, images)
                    likelihood(tensors(out), generator).backward()
    finally:
        for hook in hooks:
            hook.remove()


@TASK_UTILS.register_module()
class MSE:
    """Every element of the output counts the same."""

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        batches: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        """See the float network before the first unit is reconstructed.

        Args:
            teacher (nn.Module): The float network.
            units (list[Unit]): The units to come.
            batches (list[Tensor]): Preprocessed inputs.
            generator (torch.Generator): Source of randomness.
        """

    def begin(self, unit: Unit, outputs: Iterable[Any]) -> None:
        """See a unit's outputs under nearest rounding before it learns.

        Args:
            unit (Unit): The unit.
            outputs (iterable): Its outputs, batch by batch, each computed
                as it is asked for.
        """

    def loss(
        self, unit: Unit, output: Any, target: Any, index: Tensor
    ) -> Tensor:
        """The error to make small.

        Args:
            unit (Unit): The unit.
            output (Any): Its output on some images.
            target (Any): The float network's, of the same form.
            index (Tensor): Which calibration images they are.

        Returns:
            Tensor: A scalar.
        """
        pairs = zip(tensors(output), tensors(target))
        return sum(
            (
                self.error(unit, i, out, goal, index)
                for i, (out, goal) in enumerate(pairs)
            ),
            start=torch.zeros((), device=index.device),
        )

    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """The error of the unit's ``i``-th output tensor."""
        return weighted_squared_error(output, target)


class _Fisher(MSE):
    """Shared by the objectives that weigh by the teacher's gradient."""

    def __init__(self, likelihood: Optional[dict] = None) -> None:
        self.likelihood = TASK_UTILS.build(
            likelihood or dict(type='Categorical')
        )
        #: By name of the unit and place of the output tensor; those on
        #: which the loss does not depend are missing, and count evenly.
        self.weights: dict[tuple[str, int], Rows] = {}


@TASK_UTILS.register_module()
class FisherDiag(_Fisher):
    """Squared error weighted by the diagonal of the Fisher information.

    The weight is the squared gradient of the teacher's loss at the unit's
    output (BRECQ, eq. 10), normalised to mean 1.

    Args:
        per_sample (bool): Weigh each image by its own gradient, which
            holds one gradient an image; by default all by their mean.
        temper (float): Exponent of the weights before they are
            normalised: 1 is the Fisher itself, 0 plain MSE.
        likelihood (dict): The teacher's loss.
    """

    def __init__(
        self,
        per_sample: bool = False,
        temper: float = 0.5,
        likelihood: Optional[dict] = None,
    ) -> None:
        super().__init__(likelihood)
        self.per_sample = per_sample
        self.temper = temper

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        batches: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        """Gather the squared gradients of all units in one pass."""
        found: dict[tuple, Any] = {}

        def collect(name: str, i: int, grad: Tensor) -> None:
            if self.per_sample:
                found.setdefault((name, i), []).append(grad.square())
            else:
                mean = grad.square().sum(0, keepdim=True)
                found[name, i] = found.get((name, i), 0) + mean

        teacher_gradients(
            teacher, units, batches, self.likelihood, generator, collect
        )
        images = sum(map(len, batches))
        self.weights = {}
        for place, weight in found.items():
            if self.per_sample:
                weight = torch.cat(weight)
            weight = weight.pow(self.temper)
            mean = weight.mean()
            if mean > 0:
                self.weights[place] = Rows([weight / mean], [images])

    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """See :func:`mmrazor_brecq.functional.weighted_squared_error`."""
        weights = self.weights.get((unit.name, i))
        weight = None if weights is None else weights.take(index)
        return weighted_squared_error(output, target, weight)


@TASK_UTILS.register_module()
class FisherFull(_Fisher):
    """The squared change of the teacher's loss to first order.

    ``(g . (z - z*))^2`` for each image's own gradient ``g``: the Fisher
    matrix with all its off-diagonal entries, one sample an image. The
    scale is that of :class:`FisherDiag`.

    Args:
        likelihood (dict): The teacher's loss.
    """

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        batches: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        """Gather each image's gradient at all units in one pass."""
        found: dict[tuple, list[Tensor]] = {}
        teacher_gradients(
            teacher,
            units,
            batches,
            self.likelihood,
            generator,
            lambda name, i, grad: found.setdefault((name, i), []).append(grad),
        )
        images = sum(map(len, batches))
        self.weights = {}
        for place, grads in found.items():
            grad = torch.cat(grads).reshape(images, -1)
            norm = grad.square().sum(1).mean().sqrt()
            if norm > 0:
                self.weights[place] = Rows([grad / norm], [images])

    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Mean over images of the squared inner product."""
        grads = self.weights.get((unit.name, i))
        if grads is None:
            return weighted_squared_error(output, target)
        grad = grads.take(index)
        change = (output - target).reshape(len(index), -1)
        return (grad * change).sum(1).square().mean()


@TASK_UTILS.register_module()
class OfficialFisher(MSE):
    """The weighting of the authors' published code, for comparison.

    Its weight is ``(|g| + 1)^2``, each image's gradient of the divergence
    between the float network's logits and those with the network quantized
    up to and with this unit. That divergence is nearly flat, so this is
    close to plain MSE. It runs the rest of the float network once a unit:
    its cost grows with the square of the depth.
    """

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        batches: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        """Keep the float network and the images."""
        self.teacher = teacher
        self.batches = batches

    def begin(self, unit: Unit, outputs: Iterable[Any]) -> None:
        """Find this unit's weights."""
        module = self.teacher.get_submodule(unit.name)
        weights: list[list[Tensor]] = []
        for batch, output in zip(self.batches, outputs):
            flat, spec = tree_flatten(output)
            leaves = [
                x.detach().requires_grad_(x.is_floating_point())
                if isinstance(x, Tensor)
                else x
                for x in flat
            ]
            with torch.no_grad():
                goal = tensors(run_float(self.teacher, batch))[0].softmax(-1)
            hook = module.register_forward_hook(
                partial(_replace, leaves, spec)
            )
            try:
                with torch.enable_grad():
                    logits = tensors(run_float(self.teacher, batch))[0]
                    F.kl_div(
                        logits.log_softmax(-1), goal, reduction='batchmean'
                    ).backward()
            finally:
                hook.remove()
            weights.append(
                [
                    torch.ones_like(x)
                    if x.grad is None
                    else (x.grad.abs() + 1).square()
                    for x in tensors(leaves)
                ]
            )
        self.weights = Rows(weights, [len(batch) for batch in self.batches])

    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Squared error under the weights of this unit."""
        return weighted_squared_error(
            output, target, self.weights.take(index)[i]
        )


def _replace(
    leaves: list[Any], spec: Any, module: nn.Module, args: Any, old: Any
) -> Any:
    # Copies, since what follows may write to them.
    return tree_unflatten(
        [x.clone() if isinstance(x, Tensor) else x for x in leaves], spec
    )
