"""Observers: they choose scale and zero point from values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Optional

import torch
from torch import Tensor

from ..functional import integer_range, rounding_error
from ..registry import TASK_UTILS
from ..validation import ActivationBits, Config, Count, Positive, validated


@validated
@dataclass(frozen=True)
class Grid:
    """Integers of a quantizer, for which an observer chooses a scale.

    Args:
        bits (int): Bit width, 2 to 8, or 16 of activations.
        symmetric (bool): Whether the zero point is 0.
        signed (bool): Whether the integers are centered at zero.
        zero_point (int, optional): The zero point that all ranges share; by
            default each has its own, or 0 if symmetric.

    Raises:
        ValueError: If the bit width is out of its range.
    """

    bits: ActivationBits
    symmetric: bool
    signed: bool
    zero_point: Optional[int] = None

    @property
    def range(self) -> tuple[int, int]:
        """Return the smallest and the largest integer."""
        return integer_range(self.bits, self.signed)

    def at(self, zero_point: int) -> Grid:
        """Return the same integers, with one zero point for all ranges."""
        return replace(self, zero_point=zero_point)

    def check_bits(
        self, state_dict: Mapping[str, Tensor], prefix: str
    ) -> None:
        """Refuse the state of a quantizer of another bit width.

        Args:
            state_dict (dict): A state.
            prefix (str): Prefix of the quantizer's keys in it.

        Raises:
            ValueError: If the bit widths differ.
        """
        bits = state_dict.get(prefix + 'bits')
        if bits is not None and int(bits) != self.bits:
            raise ValueError(
                f'{prefix[:-1]} in the checkpoint has {int(bits)} bits, the '
                f'config asks for {self.bits}: use the config that the '
                'checkpoint was made with'
            )

    def check_values(
        self, state_dict: Mapping[str, Tensor], prefix: str
    ) -> None:
        """Refuse a state whose scale or zero point is impossible.

        Scales that are all NaN are allowed: the quantizer was not fitted.

        Args:
            state_dict (dict): A state.
            prefix (str): Prefix of the quantizer's keys in it.

        Raises:
            ValueError: If a scale is not a normal number above zero, or a
                zero point is not an integer of the grid.
        """
        scale = state_dict.get(prefix + 'scale')
        if scale is not None and not scale.isnan().all():
            scale = scale.float()
            smallest = torch.finfo(scale.dtype).tiny
            wrong = ~(scale.isfinite() & (scale >= smallest))
            _refuse(
                prefix + 'scale',
                scale[wrong],
                f'finite numbers from {smallest:.4g}',
            )
        zero_point = state_dict.get(prefix + 'zero_point')
        if zero_point is not None:
            low, high = (0, 0) if self.symmetric else self.range
            whole = zero_point == zero_point.round()
            wrong = ~(whole & (zero_point >= low) & (zero_point <= high))
            _refuse(
                prefix + 'zero_point',
                zero_point[wrong],
                f'integers from {low} to {high}',
            )

    def check_integers(self, integers: Tensor, name: str) -> None:
        """Refuse frozen weights that are not integers of the grid.

        Args:
            integers (Tensor): The weights, of any shape.
            name (str): Their key in the state.

        Raises:
            ValueError: If they are not ``int8``, or out of the range.
        """
        if integers.dtype != torch.int8:
            raise ValueError(
                f'{name} in the checkpoint is of {integers.dtype}, expected '
                'torch.int8: get the file anew'
            )
        low, high = self.range
        wrong = (integers < low) | (integers > high)
        _refuse(name, integers[wrong], f'integers from {low} to {high}')

    def fit(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scales and zero points that cover ``[low, high]`` and 0.

        Args:
            low (Tensor): Lower ends of ranges, of any shape.
            high (Tensor): Upper ends, of the same shape.

        Returns:
            tuple[Tensor, Tensor]: Positive scales (1 where the range is
            empty) and whole zero points, both in the shape of ``low``.
        """
        qmin, qmax = self.range
        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.symmetric:
            scale = torch.maximum(high, -low) / min(qmax, -qmin or qmax)
            zero_point = torch.zeros_like(scale)
        elif self.zero_point is not None:
            zero_point = torch.full_like(high, self.zero_point)
            above, below = qmax - self.zero_point, self.zero_point - qmin
            # A side without integers has no part in the scale.
            scale = torch.maximum(
                high / above if above else torch.zeros_like(high),
                -low / below if below else torch.zeros_like(low),
            )
        else:
            scale = (high - low) / (qmax - qmin)
            zero_point = qmin - low / torch.where(scale > 0, scale, 1)
        # The reciprocal of a smaller scale would overflow.
        scale = torch.where(scale > 1e-30, scale, 1)
        return scale, zero_point.round().clamp(qmin, qmax)


def _refuse(name: str, wrong: Tensor, expected: str) -> None:
    if len(wrong):
        raise ValueError(
            f'{name} in the checkpoint has {float(wrong[0]):.4g}, expected '
            f'{expected}: get the file anew, or quantize again'
        )


class Observer:
    """Base class of observers."""

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Choose a scale and a zero point for each row.

        Args:
            values (Tensor): C x K, finite.
            grid (Grid): The integers.

        Returns:
            tuple[Tensor, Tensor]: Positive scales and whole zero points,
            each of shape C.
        """
        raise NotImplementedError

    @property
    def choices(self) -> Sequence[Observer]:
        """Return the observers of which the best one for a unit is used."""
        return [self]


#: Type of a parameter that takes the config of an observer.
ObserverConfig = Annotated[dict, Config(Observer, TASK_UTILS)]


@TASK_UTILS.register_module()
class MinMaxObserver(Observer):
    """Observer that covers the smallest and the largest value."""

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Choose scales and zero points that cover all values of a row."""
        return grid.fit(values.amin(1), values.amax(1))


@TASK_UTILS.register_module()
class LpObserver(Observer):
    """Observer that minimizes the mean of ``|x - quantized x|^p``.

    It first shrinks both ends of a row's range by the same factor, then
    varies each end by itself around the best factor. Rows and candidates are
    evaluated together.

    Args:
        p (float): Exponent of the error; 2.4 as in QDrop's observers.
        steps (int): Number of common factors, from 1 down to ``1 / steps``.
        max_elements (int): Maximum number of elements that are evaluated
            together, to bound the memory.

    Raises:
        ValueError: If a count is below 1, or ``p`` is not above 0.

    Example:
        >>> quantization = dict(
        ...     weight=dict(bits=4, observer=dict(type='LpObserver', p=2.0))
        ... )
    """

    def __init__(
        self,
        p: Positive = 2.4,
        steps: Count = 80,
        max_elements: Count = 2**23,
    ) -> None:
        self.p = p
        self.steps = steps
        self.max_elements = max_elements

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Choose a scale and a zero point for each row, some at a time."""
        rows = max(1, self.max_elements // (values.shape[1] * 8))
        parts = [self._search(part, grid) for part in values.split(rows)]
        scale, zero_point = zip(*parts)
        return torch.cat(scale), torch.cat(zero_point)

    def _search(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        ends = torch.stack([values.amin(1), values.amax(1)], 1)  # C x 2
        shrink = torch.linspace(1, 1 / self.steps, self.steps).to(values)
        best = self._best(values, grid, ends, shrink[:, None].expand(-1, 2))
        near = torch.arange(-3, 4).to(values) / self.steps
        around = torch.cartesian_prod(near, near)  # 49 x 2
        best = self._best(values, grid, ends, best[:, None] + around)
        return grid.fit(*(ends * best).unbind(1))

    def _best(
        self, values: Tensor, grid: Grid, ends: Tensor, factors: Tensor
    ) -> Tensor:
        """Return the best factors of both ends for each row.

        Args:
            values (Tensor): C x K.
            grid (Grid): The integers.
            ends (Tensor): Smallest and largest value of each row, C x 2.
            factors (Tensor): Candidates, F x 2, or C x F x 2.

        Returns:
            Tensor: C x 2.
        """
        factors = factors.clamp(min=1e-3).expand(len(values), -1, -1)
        size = max(1, self.max_elements // values.numel())
        errors = []
        for part in factors.split(size, 1):
            scale, zero_point = grid.fit(*(ends[:, None] * part).unbind(2))
            errors.append(
                rounding_error(values, scale, zero_point, *grid.range, self.p)
            )
        best = torch.cat(errors, 1).argmin(1)
        return factors[torch.arange(len(values)), best]


@TASK_UTILS.register_module()
class LpChoice(Observer):
    """Choice of the exponent of an :class:`LpObserver`.

    An error of a few large values does little behind a GELU, and a lot
    behind a softmax. While a unit's scales are chosen, that exponent is
    taken with which its output is the nearest to float.

    Args:
        exponents (tuple[float]): Those to choose from. The first one counts
            where no unit is at hand.

    Example:
        >>> quantization = dict(
        ...     activation=dict(bits=4, observer=dict(type='LpChoice'))
        ... )
    """

    def __init__(
        self, exponents: tuple[Positive, ...] = (2.4, 1.0, 4.0)
    ) -> None:
        if not exponents:
            raise ValueError('exponents=(), expected one or more')
        self.observers = [LpObserver(p) for p in exponents]

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Choose a scale and a zero point with the first exponent."""
        return self.observers[0](values, grid)

    @property
    def choices(self) -> Sequence[Observer]:
        """Return an observer for each exponent."""
        return self.observers
