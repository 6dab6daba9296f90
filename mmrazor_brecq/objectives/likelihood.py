"""What a network's outputs mean: classes, chances or values."""

from __future__ import annotations

from typing import Annotated, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import weighted_squared_error
from ..registry import TASK_UTILS
from ..validation import Config, Positive


class Likelihood:
    """A distribution whose parameters are what the network puts out."""

    def see(
        self, teacher: nn.Module, images: Tensor, outputs: list[Tensor]
    ) -> None:
        """Look at the float network before anything is asked.

        Args:
            teacher (nn.Module): The float network.
            images (Tensor): Some preprocessed inputs.
            outputs (list[Tensor]): What it gives for them, as below.
        """

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Return a loss whose expected squared gradient is the Fisher
        information, summed over images.

        Args:
            outputs (list[Tensor]): Real outputs, none of them empty.
            generator (torch.Generator): Source of what is drawn, on the CPU.
        """
        raise NotImplementedError

    def divergence(self, outputs: list[Tensor], goals: list[Tensor]) -> Tensor:
        """Return the Kullback-Leibler divergence in nats, the mean over
        images.

        Args:
            outputs (list[Tensor]): Real outputs, none of them empty.
            goals (list[Tensor]): What they should be.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return type(self).__name__


#: How a parameter says that it takes a likelihood.
LikelihoodConfig = Annotated[dict, Config(Likelihood, TASK_UTILS)]


@TASK_UTILS.register_module()
class Categorical(Likelihood):
    """Labels drawn from the network's own softmax: no true labels needed.

    The expected squared gradient is then the true Fisher information.

    Args:
        temperature (float): What logits are divided by: above 1, classes
            that are unlikely count for more (Hinton et al., 2015).
        axis (int, optional): That of the classes: by default 1 in maps,
            N x C x H x W, and the last in N x C and N x L x C.

    Raises:
        ValueError: If the temperature is not above 0, or an output has
            fewer than two classes.
    """

    def __init__(
        self, temperature: Positive = 1.0, axis: Optional[int] = None
    ) -> None:
        self.axis = axis
        self.temperature = temperature

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Negative log-likelihood of drawn labels, summed over images.

        Args:
            outputs (list[Tensor]): Logits, N x C or N x C x H x W each.
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
        return [self._classes_last(x) / self.temperature for x in outputs]

    def _classes_last(self, logits: Tensor) -> Tensor:
        axis = self.axis
        if axis is None:
            axis = 1 if logits.dim() > 3 else -1
        if logits.dim() < 2 or logits.shape[axis] < 2:
            raise ValueError(
                f'An output of shape {tuple(logits.shape)} has fewer than '
                f'two classes on axis {axis}, expected logits of classes: '
                "name another `likelihood`, dict(type='Bernoulli') for one "
                "logit, dict(type='Gaussian') for values, or leave it out"
            )
        return logits.movedim(axis, -1)

    def __str__(self) -> str:
        axis = '' if self.axis in (None, -1) else f' on axis {self.axis}'
        return super().__str__() + axis


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
class Bernoulli(Likelihood):
    """Each element is the logit of one chance: yes or no.

    Args:
        temperature (float): What logits are divided by.

    Raises:
        ValueError: If the temperature is not above 0.
    """

    def __init__(self, temperature: Positive = 1.0) -> None:
        self.temperature = temperature

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """A function with the Fisher information, as
        :class:`CategoricalSketch` has it: the gradient at a logit of
        chance ``p`` is ``sqrt(p (1 - p)) r`` with standard normal ``r``.
        """
        loss = outputs[0].new_zeros(())
        for out in outputs:
            logits = out / self.temperature
            chances = logits.detach().sigmoid()
            noise = torch.randn(chances.shape, generator=generator)
            spread = (chances * (1 - chances)).sqrt()
            loss = loss + (logits * spread * noise.to(chances)).sum()
        return loss

    def divergence(self, outputs: list[Tensor], goals: list[Tensor]) -> Tensor:
        """Kullback-Leibler divergence, in nats, the mean over images."""
        parts = []
        for out, goal in zip(outputs, goals):
            change = (out - goal) / self.temperature
            away = change.abs()
            # Differences of logarithms would round small errors to nothing.
            toward = -change.detach().sign() / self.temperature
            chance = (toward * goal).sigmoid()
            inner = (chance * torch.expm1(-away)).clamp(min=-1 + 1e-7)
            parts.append((torch.log1p(inner) + chance * away).sum())
        return torch.stack(parts).sum() / len(outputs[0])


@TASK_UTILS.register_module()
class Gaussian(Likelihood):
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
