"""Likelihoods: what the outputs of a network mean."""

from __future__ import annotations

from typing import Annotated, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import weighted_squared_error
from ..graph import Inputs
from ..registry import TASK_UTILS
from ..validation import Config, Positive


class Likelihood:
    """Distribution whose parameters are the outputs of a network.

    A subclass overrides :meth:`__call__` and :meth:`divergence`.

    Example:
        >>> objective = dict(
        ...     type='FisherDiag', likelihood=dict(type='Gaussian')
        ... )
    """

    def see(
        self, teacher: nn.Module, images: Inputs, outputs: list[Tensor]
    ) -> None:
        """Examine the float network before any other method is called.

        Args:
            teacher (nn.Module): The float network.
            images (Tensor | Samples): Some preprocessed images, N x ...
            outputs (list[Tensor]): Its real outputs for them, none of them
                empty.
        """

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Return a random loss with the Fisher information.

        Its expected squared gradient with respect to an output is the Fisher
        information of the distribution.

        Args:
            outputs (list[Tensor]): Real outputs, none of them empty.
            generator (torch.Generator): Source of randomness, on the CPU.

        Returns:
            Tensor: A scalar, the sum over images.
        """
        raise NotImplementedError

    def divergence(self, outputs: list[Tensor], goals: list[Tensor]) -> Tensor:
        """Return the Kullback-Leibler divergence from goals to outputs.

        Args:
            outputs (list[Tensor]): Real outputs, none of them empty.
            goals (list[Tensor]): The outputs that are wanted, of the same
                shapes.

        Returns:
            Tensor: A scalar in nats, the mean over images.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return type(self).__name__


#: Type of a parameter that takes the config of a likelihood.
LikelihoodConfig = Annotated[dict, Config(Likelihood, TASK_UTILS)]


@TASK_UTILS.register_module()
class Categorical(Likelihood):
    """Logits of classes that exclude each other.

    Labels are drawn from the softmax of the network itself, so no true
    labels are needed, and the expected squared gradient is the true Fisher
    information.

    Args:
        temperature (float): Divisor of the logits, above 0. With more than
            1, unlikely classes count more (Hinton et al., 2015).
        axis (int, optional): Axis of the classes. By default 1 in tensors
            of four dimensions or more (N x C x H x W), and the last one in
            others (N x C and N x L x C).

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
        """Return the negative log-likelihood of labels that are drawn.

        Args:
            outputs (list[Tensor]): Logits, such as N x C or N x C x H x W.
            generator (torch.Generator): Source of the labels, on the CPU.

        Returns:
            Tensor: A scalar, the sum over images.
        """
        loss = outputs[0].new_zeros(())
        for logits in self._scaled(outputs):
            probs = logits.detach().softmax(-1).flatten(0, -2).cpu()
            labels = torch.multinomial(probs, 1, generator=generator)[:, 0]
            loss = loss + F.cross_entropy(
                logits.flatten(0, -2),
                labels.to(logits.device),
                reduction='sum',
            )
        return loss

    def divergence(self, outputs: list[Tensor], goals: list[Tensor]) -> Tensor:
        """Return the divergence between two softmax distributions.

        Args:
            outputs (list[Tensor]): Logits, such as N x C or N x C x H x W.
            goals (list[Tensor]): The logits that are wanted.

        Returns:
            Tensor: A scalar in nats, the mean over images.
        """
        pairs = zip(self._scaled(outputs), self._scaled(goals))
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

    def _scaled(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return logits over the temperature, their classes last."""
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
    """Logits of classes, with less noise in the gradients.

    Where the network is sure of a class, :class:`Categorical` draws it
    nearly always, with a gradient close to zero, and rarely another, with a
    large gradient. Here the gradient at the logits is ``(diag(s) - p s^T)
    r`` with the softmax ``p``, its root ``s = sqrt(p)`` and ``r`` standard
    normal. Its second moment is the same, ``diag(p) - p p^T``, and its
    variance is far smaller.

    Args:
        temperature (float): As in :class:`Categorical`.
        axis (int, optional): As in :class:`Categorical`.
    """

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Return a function of the logits that has this gradient.

        Args:
            outputs (list[Tensor]): Logits, such as N x C or N x C x H x W.
            generator (torch.Generator): Source of ``r``, on the CPU.

        Returns:
            Tensor: A scalar, the sum over images.
        """
        loss = outputs[0].new_zeros(())
        for logits in self._scaled(outputs):
            probs = logits.detach().softmax(-1)
            noise = torch.randn(probs.shape, generator=generator)
            drawn = probs.sqrt() * noise.to(probs)
            gradient = drawn - probs * drawn.sum(-1, keepdim=True)
            loss = loss + (logits * gradient).sum()
        return loss


@TASK_UTILS.register_module()
class Bernoulli(Likelihood):
    """Logits of independent events, one for each element.

    Args:
        temperature (float): Divisor of the logits, above 0.

    Raises:
        ValueError: If the temperature is not above 0.
    """

    def __init__(self, temperature: Positive = 1.0) -> None:
        self.temperature = temperature

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Return a loss with the Fisher information and little noise.

        The gradient at a logit of probability ``p`` is ``sqrt(p (1 - p)) r``
        with ``r`` standard normal: see :class:`CategoricalSketch`.

        Args:
            outputs (list[Tensor]): Logits of any shape, N x ...
            generator (torch.Generator): Source of ``r``, on the CPU.

        Returns:
            Tensor: A scalar, the sum over images.
        """
        loss = outputs[0].new_zeros(())
        for out in outputs:
            logits = out / self.temperature
            probs = logits.detach().sigmoid()
            noise = torch.randn(probs.shape, generator=generator)
            spread = (probs * (1 - probs)).sqrt()
            loss = loss + (logits * spread * noise.to(probs)).sum()
        return loss

    def divergence(self, outputs: list[Tensor], goals: list[Tensor]) -> Tensor:
        """Return the divergence between the probabilities of two logits.

        Args:
            outputs (list[Tensor]): Logits of any shape, N x ...
            goals (list[Tensor]): The logits that are wanted.

        Returns:
            Tensor: A scalar in nats, the mean over images.
        """
        parts = []
        for out, goal in zip(outputs, goals):
            # With d = out - goal and p = sigmoid(goal), or sigmoid(-goal)
            # where d > 0, the divergence is log(1 + p * (exp(-|d|) - 1)) +
            # p * |d|. Differences of logarithms of probabilities would round
            # small errors to zero.
            change = (out - goal) / self.temperature
            size = change.abs()
            toward = -change.detach().sign() / self.temperature
            prob = (toward * goal).sigmoid()
            inner = (prob * torch.expm1(-size)).clamp(min=-1 + 1e-7)
            parts.append((torch.log1p(inner) + prob * size).sum())
        return torch.stack(parts).sum() / len(outputs[0])


@TASK_UTILS.register_module()
class Gaussian(Likelihood):
    """Real values with unit variance, for networks that regress.

    The expected squared gradient at a unit's output is the diagonal of
    ``J^T J`` with the Jacobian ``J`` of the network's outputs.
    """

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Return a loss whose gradient at the outputs is standard normal.

        The negative log-likelihood of targets that are drawn has a gradient
        of this distribution.

        Args:
            outputs (list[Tensor]): Values of any shape, N x ...
            generator (torch.Generator): Source of the targets, on the CPU.

        Returns:
            Tensor: A scalar, the sum over images.
        """
        loss = outputs[0].new_zeros(())
        for out in outputs:
            noise = torch.randn(out.shape, generator=generator)
            loss = loss + (out * noise.to(out)).sum()
        return loss

    def divergence(self, outputs: list[Tensor], goals: list[Tensor]) -> Tensor:
        """Return half the squared distance.

        Args:
            outputs (list[Tensor]): Values of any shape, N x ...
            goals (list[Tensor]): The values that are wanted.

        Returns:
            Tensor: A scalar in nats, the mean over images.
        """
        images = len(outputs[0])
        parts = [
            weighted_squared_error(out, goal) * (out.numel() / 2)
            for out, goal in zip(outputs, goals)
        ]
        return torch.stack(parts).sum() / images
