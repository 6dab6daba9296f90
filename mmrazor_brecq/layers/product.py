"""Matrix products in a module's own code, as layers.

A product of two activations, such as that of queries and keys, becomes a
call of a child module with a quantizer for each operand. A linear function
with a parameter becomes a call of a linear layer. The module's code stays as
it is: a function mode of torch hands over its products while it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..quantizers import ActivationQuantizer
from .mixed_in import MixedIn
from .product_forms import FORMS, OPENED
from .quant_layers import WEIGHT_IN_USE, QuantLayer, is_quantizable

#: Attribute of a module: what takes each of its products (:class:`Taken`), by
#: the product's place among all that its own code computes in a call.
TAKEN = 'taken_products'


class Taken(NamedTuple):
    """Which child computes a product.

    Attributes:
        child (str): Name of the child.
        linear (bool): Whether it is a layer, whose weight is the second
            operand.
    """

    child: str
    linear: bool


class MatrixProduct(nn.Module):
    """Product of two activations, each with a quantizer.

    Until it is quantized, both quantizers are identities.

    Attributes:
        left_quantizer (ActivationQuantizer | nn.Identity): Of the first
            operand.
        right_quantizer (ActivationQuantizer | nn.Identity): Of the second
            operand.

    Args:
        heads (tuple[int, int]): Number of scales that each operand takes: the
            size of its third dimension from the end, or 1.

    Example:
        >>> product = MatrixProduct()
        >>> product(torch.randn(2, 3, 4), torch.randn(2, 4, 5)).shape
        torch.Size([2, 3, 5])
    """

    left_quantizer: Union[ActivationQuantizer, nn.Identity]
    right_quantizer: Union[ActivationQuantizer, nn.Identity]

    def __init__(self, heads: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.heads = heads
        self.left_quantizer = nn.Identity()
        self.right_quantizer = nn.Identity()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the product of quantized operands.

        Args:
            left (Tensor): ... x M x K.
            right (Tensor): ... x K x N.

        Returns:
            Tensor: ... x M x N.
        """
        return torch.matmul(
            self.left_quantizer(left), self.right_quantizer(right)
        )

    def extra_repr(self) -> str:
        return f'heads={self.heads}'


def products(module: nn.Module, prefix: str = '') -> dict[str, MatrixProduct]:
    """Return all matrix products of activations in a module by name.

    Args:
        module (nn.Module): A network or a part of one.
        prefix (str): Name of the module, which the names begin with.
    """
    return {
        name: product
        for name, product in module.named_modules(prefix=prefix)
        if isinstance(product, MatrixProduct)
    }


def is_layer(module: Optional[nn.Module]) -> bool:
    """Return whether a module is a Conv, a Linear or a matrix product."""
    return isinstance(module, MatrixProduct) or is_quantizable(module)


class ProductMode(TorchFunctionMode):
    """Function mode that takes the products of modules' own code.

    Subclasses override :meth:`sees`, :meth:`product` and :meth:`linear`.
    """

    def __torch_function__(
        self,
        func: Callable,
        types: Any,
        args: tuple = (),
        kwargs: Optional[dict] = None,
    ) -> Any:
        kwargs = kwargs or {}
        known = func in FORMS or func in OPENED
        if known and self.sees(running_module()):
            if func in OPENED:
                with self:
                    return OPENED[func](*args, **kwargs)
            out = FORMS[func](self, *args, **kwargs)
            if out is not NotImplemented:
                return out
        return func(*args, **kwargs)

    def sees(self, module: Optional[nn.Module]) -> bool:
        """Return whether products of this module's own code are taken."""
        raise NotImplementedError

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Take the next product of two matrices."""
        raise NotImplementedError

    def linear(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor]
    ) -> Tensor:
        """Take the next linear function."""
        raise NotImplementedError


def running_module() -> Optional[nn.Module]:
    """Return the module whose own code runs, None outside of all modules.

    It is that of the innermost call among the frames: hooks would have to
    be on every module, and would lose count in a pass that is suspended.
    """
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        if frame.f_code is nn.Module._call_impl.__code__:
            return frame.f_locals['self']
        frame = frame.f_back
    return None


def quantize_product(
    product: MatrixProduct,
    left_quantizer: Optional[ActivationQuantizer],
    right_quantizer: Optional[ActivationQuantizer],
) -> None:
    """Give a product quantizers for its operands, in place.

    Args:
        product (MatrixProduct): The product.
        left_quantizer (ActivationQuantizer, optional): Of the first operand.
        right_quantizer (ActivationQuantizer, optional): Of the second one.
    """
    product.left_quantizer = left_quantizer or nn.Identity()
    product.right_quantizer = right_quantizer or nn.Identity()


class _Redirect(ProductMode):
    """Hands the products of one call of a module to its children."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.owner = owner
        self.count = 0

    def sees(self, module: Optional[nn.Module]) -> bool:
        """Return whether it is the module of this call."""
        return module is self.owner

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the next product, computed by the child that takes it."""
        taken = self._next()
        if taken is None:
            return torch.matmul(left, right)
        child = self.owner.get_submodule(taken.child)
        return child(left) if taken.linear else child(left, right)

    def linear(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor]
    ) -> Tensor:
        """Return the next linear function, computed by its layer."""
        taken = self._next()
        if taken is None:
            return F.linear(x, weight, bias)
        return self.owner.get_submodule(taken.child)(x)

    def _next(self) -> Optional[Taken]:
        """Return what takes the next product, if something does."""
        self.count += 1
        return vars(self.owner)[TAKEN].get(self.count - 1)


class ProductOwner(MixedIn):
    """Mixin of a module whose children compute products of its own code."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, its products handed to its children."""
        layers = [
            layer
            for taken in vars(self)[TAKEN].values()
            if isinstance(layer := self.get_submodule(taken.child), QuantLayer)
        ]
        # The code reads weights only to hand them to the layers, and to
        # quantize them once more would take time.
        for layer in layers:
            vars(layer)[WEIGHT_IN_USE] = layer.stored_weight
        try:
            with _Redirect(self):
                return super().forward(*args, **kwargs)
        finally:
            for layer in layers:
                vars(layer).pop(WEIGHT_IN_USE, None)
