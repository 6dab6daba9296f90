"""Inputs of networks that take several tensors, or integers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
from torch import Tensor

#: Types that inputs have, by the name that a checkpoint has for them.
TYPES = {
    str(kind).removeprefix('torch.'): kind
    for kind in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8),
        torch.bool,
    )
}
#: Most elements of one input of one sample, and most inputs.
MAX_ELEMENTS, MAX_INPUTS = 2**27, 100


@dataclass(frozen=True, eq=False)
class Arguments:
    """Tensors that a network is given together, a row of each for a sample.

    It has what of a tensor of images is used: length, shape, device, some of
    the rows, and parts.

    Attributes:
        args (tuple[Tensor]): Positional arguments, each N x ...
        kwargs (dict[str, Tensor]): Keyword arguments, likewise.

    Example:
        >>> pair = Arguments((torch.zeros(4, 3, 8, 8),), {'mask': mask})
        >>> len(pair), len(pair[:2])
        (4, 2)
    """

    args: tuple[Tensor, ...] = ()
    kwargs: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """Return all tensors, in order."""
        return [*self.args, *self.kwargs.values()]

    @property
    def main(self) -> Tensor:
        """Return the first tensor of real numbers, or else the first one."""
        real = (x for x in self.tensors if x.is_floating_point())
        return next(real, self.tensors[0])

    @property
    def shape(self) -> torch.Size:
        """Return the shape of the main tensor."""
        return self.main.shape

    @property
    def device(self) -> torch.device:
        """Return the device of the tensors."""
        return self.main.device

    def __len__(self) -> int:
        return len(self.main)

    def __getitem__(self, which: Union[slice, Sequence[int]]) -> Arguments:
        return self.map(lambda x: x[which])

    def split(self, size: int) -> list[Arguments]:
        """Return parts of so many samples, the last of which is the rest."""
        return [self[i : i + size] for i in range(0, len(self), size)]

    def map(self, function: Callable[[Tensor], Tensor]) -> Arguments:
        """Return the arguments with a function applied to every tensor."""
        return Arguments(
            tuple(map(function, self.args)),
            {name: function(x) for name, x in self.kwargs.items()},
        )

    def form(self) -> Tensor:
        """Return shapes, types and names of a sample, as bytes of JSON."""
        content = dict(
            args=[_form(x) for x in self.args],
            kwargs={name: _form(x) for name, x in self.kwargs.items()},
        )
        return torch.tensor([*json.dumps(content).encode()], dtype=torch.uint8)

    @classmethod
    def example(cls, form: Tensor, device: torch.device) -> Arguments:
        """Return a sample of zeros of the form that :meth:`form` returned.

        Args:
            form (Tensor): Bytes, as a file holds them.
            device (torch.device): Device of the sample.

        Raises:
            ValueError: If these are no such bytes.
        """
        try:
            content = json.loads(bytes(form.tolist()))
            args, kwargs = content['args'], content['kwargs']
            if len(args) + len(kwargs) > MAX_INPUTS:
                raise ValueError('too many inputs')
            return cls(
                tuple(_zeros(x, device) for x in args),
                {str(name): _zeros(x, device) for name, x in kwargs.items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'input_form in the checkpoint describes no inputs ({error}): '
                'get the file anew, or quantize again'
            ) from error


def example_of(
    shape: Tensor, form: Optional[Tensor], device: torch.device
) -> Union[Tensor, Arguments]:
    """Return a sample of zeros of what a network was prepared with.

    Args:
        shape (Tensor): Shape of an image.
        form (Tensor, optional): What :meth:`Arguments.form` returned, where
            it does not take images alone.
        device (torch.device): Device of the sample.

    Raises:
        ValueError: As for :meth:`Arguments.example`.
    """
    if form is not None:
        return Arguments.example(form, device)
    return torch.zeros(1, *shape.tolist(), device=device)


def _form(x: Tensor) -> list[Any]:
    return [str(x.dtype).removeprefix('torch.'), *x.shape[1:]]


def _zeros(form: Sequence[Any], device: torch.device) -> Tensor:
    """Return zeros for one sample."""
    kind, *shape = form
    if not all(type(x) is int and 0 < x <= MAX_ELEMENTS for x in shape) or (
        math.prod(shape) > MAX_ELEMENTS
    ):
        raise ValueError(f'the shape {shape}'[:80])
    return torch.zeros(1, *shape, dtype=TYPES[kind], device=device)


def check_arguments(given: Mapping[Any, Tensor], number: int) -> None:
    """Refuse inputs of a batch that differ in their number of rows.

    Args:
        given (dict): Tensors by position or name.
        number (int): Number of the batch, for the message.
    """
    rows = {key: len(x) if x.dim() else 0 for key, x in given.items()}
    if len(set(rows.values())) > 1 or 0 in rows.values():
        raise ValueError(
            f'Batch {number} of `images` has '
            + ', '.join(f'{x} rows of input {key}' for key, x in rows.items())
            + ', expected as many of each: one for a sample'
        )
