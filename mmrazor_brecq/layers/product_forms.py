"""Functions of torch that are made of matrix products, written as such.

A form gets the arguments of its function and calls ``take.product`` for each
product and ``take.linear`` for each linear function. It returns the result
of the function, or ``NotImplemented`` before the first call, where the
arguments are none that it knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any, Optional, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Taker(Protocol):
    """What takes the products of a form."""

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left @ right``; both have two or more dimensions."""

    def linear(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor]
    ) -> Tensor:
        """Return ``F.linear(x, weight, bias)``."""


def _matmul(take: Taker, *args: Any, **kwargs: Any) -> Any:
    operands = (*args, *kwargs.values())
    if len(operands) != 2 or not _are_matrices(*operands):
        return NotImplemented
    return take.product(*operands)


def _added(
    take: Taker,
    input: Any,
    left: Any = None,
    right: Any = None,
    *,
    beta: float = 1,
    alpha: float = 1,
    **kwargs: Any,
) -> Any:
    """Write ``beta input + alpha left @ right``, as of ``baddbmm``."""
    names = [key for key in kwargs if key != 'out']
    if 'out' in kwargs or not set(names) <= _OPERANDS:
        return NotImplemented
    operands = [x for x in (left, right) if x is not None]
    operands += [kwargs[key] for key in sorted(names)]
    if len(operands) != 2 or not _are_matrices(*operands):
        return NotImplemented
    out = take.product(*operands)
    if alpha != 1:
        out = alpha * out
    if beta == 0:  # Then even NaN in the input counts for nothing.
        return out
    return out + (input if beta == 1 else beta * input)


#: Names of the operands of ``baddbmm`` and ``addmm``.
_OPERANDS = {'batch1', 'batch2', 'mat1', 'mat2'}


def _linear(
    take: Taker, input: Any, weight: Any, bias: Optional[Tensor] = None
) -> Any:
    if weight.dim() != 2 or not input.is_floating_point():
        return NotImplemented
    return take.linear(input, weight, bias)


def _attention(
    take: Taker,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
) -> Any:
    """Write ``F.scaled_dot_product_attention``."""
    if not _are_matrices(query, key, value) or query.is_nested:
        return NotImplemented
    if enable_gqa:
        key, value = (
            x.repeat_interleave(query.shape[-3] // x.shape[-3], -3)
            for x in (key, value)
        )
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    scores = take.product(query, key.transpose(-2, -1)) * scale
    if is_causal:
        attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        else:
            scores = scores + attn_mask
        # A row without any key is zero, as in torch's own kernels.
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        weights = scores.softmax(-1).masked_fill(empty, 0)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    return take.product(weights.to(value.dtype), value)


def _einsum(take: Taker, equation: Any, *operands: Any) -> Any:
    """Write an einsum of two operands as one product of matrices."""
    if len(operands) == 1 and not isinstance(operands[0], Tensor):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return NotImplemented
    left, right = operands
    parsed = _parse(equation, left.dim(), right.dim())
    if parsed is None:
        return NotImplemented
    a, b, out = parsed
    batch = [x for x in out if x in a and x in b]
    rows = [x for x in out if x in a and x not in b]
    columns = [x for x in out if x in b and x not in a]
    summed = [x for x in a if x in b and x not in out]
    lost = {*a, *b} - {*out, *summed}
    if not summed or lost:
        return NotImplemented
    size = {**dict(zip(a, left.shape)), **dict(zip(b, right.shape))}

    def ordered(x: Tensor, labels: list[str], *groups: list[str]) -> Tensor:
        order = [*batch, *(label for group in groups for label in group)]
        x = x.permute([labels.index(label) for label in order])
        if all(len(group) == 1 for group in groups):
            return x
        shape = [math.prod(size[label] for label in g) for g in groups]
        return x.reshape(*x.shape[: len(batch)], *shape)

    product = take.product(
        ordered(left, a, rows, summed), ordered(right, b, summed, columns)
    )
    found = [*batch, *rows, *columns]
    if len(rows) != 1 or len(columns) != 1:
        product = product.reshape([size[label] for label in found])
    return product.permute([found.index(label) for label in out])


def _parse(
    equation: str, *dims: int
) -> Optional[tuple[list[str], list[str], list[str]]]:
    """Return the labels of both operands and of the result of an einsum.

    Dimensions of an ellipsis get digits. It is None where a label is twice
    in one operand, and where an ellipsis stands for different dimensions.
    """
    inputs, arrow, output = equation.replace(' ', '').partition('->')
    terms = inputs.split(',')
    if len(terms) != len(dims):
        return None
    found, extra = [], 0
    for term, dim in zip(terms, dims):
        if '...' in term:
            extra = dim - len(term) + 3
            if any('...' in t for t in terms) and not all(
                '...' in t and d - len(t) + 3 == extra
                for t, d in zip(terms, dims)
            ):
                return None
        found.append(_labels(term, extra))
    if not arrow:
        counts = ''.join(terms).replace('.', '')
        output = ('...' if extra else '') + ''.join(
            sorted(x for x in {*counts} if counts.count(x) == 1)
        )
    found.append(_labels(output, extra))
    if any(len(labels) != len({*labels}) for labels in found):
        return None
    return found[0], found[1], found[2]


def _labels(term: str, extra: int) -> list[str]:
    """Return the labels of a term, those of an ellipsis as digits."""
    before, dots, after = term.partition('...')
    return [*before, *map(str, range(extra if dots else 0)), *after]


def _are_matrices(*operands: Any) -> bool:
    return all(
        isinstance(x, Tensor) and x.dim() > 1 and x.is_floating_point()
        for x in operands
    )


#: Forms by the functions that torch shows to a function mode.
FORMS: dict[Callable, Callable] = {
    **dict.fromkeys(
        [
            *(torch.matmul, torch.bmm, torch.mm, torch.linalg.matmul),
            *(Tensor.matmul, Tensor.bmm, Tensor.mm, Tensor.__matmul__),
        ],
        _matmul,
    ),
    **dict.fromkeys(
        [torch.baddbmm, torch.addmm, Tensor.baddbmm, Tensor.addmm], _added
    ),
    torch.einsum: _einsum,
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
}


def _opened(function: Any) -> Callable:
    """Return a function of torch that never asks for a function mode.

    It would hand itself over to the mode as a whole, and then compute
    without it.
    """

    def never(*args: Any) -> bool:
        return False

    found = FunctionType(
        function.__code__,
        {**function.__globals__, 'has_torch_function': never},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    found.__kwdefaults__ = function.__kwdefaults__
    return found


#: Functions in Python that products are inside of, opened.
OPENED: dict[Callable, Callable] = {
    F.multi_head_attention_forward: _opened(F.multi_head_attention_forward)
}
