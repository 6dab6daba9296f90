"""The form of a target's description, checked by declared types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Optional, Union

from pydantic import Field

from ..validation import (
    ActivationBitsOrFloat,
    BitsOrFloat,
    Config,
    validated,
)

#: Number of bits that stands for float, in place of None.
FLOAT = 32
#: Bit widths of weights and of activations where a description names none.
ANY_BITS = (2, 3, 4, 5, 6, 7, 8, FLOAT)
#: Kinds whose limits are those of another kind where none are given.
SAME_AS = dict(depthwise_conv='grouped_conv', grouped_conv='conv')


@validated
@dataclass(frozen=True)
class ActivationLimits:
    """What a device allows of the activations that an operator takes.

    Args:
        bits (list[int]): Bit widths, 2 to 8, 16, or 32 for float.
        symmetric (bool, optional): True if zero points have to be 0, False
            if integers have to be unsigned; by default both will do.
    """

    bits: Annotated[
        Sequence[ActivationBitsOrFloat],
        Field(
            min_length=1,
            description='a list of one or more bit widths, each 2 to 8, 16, '
            'or 32 for float',
        ),
    ] = ANY_BITS
    symmetric: Optional[bool] = None


@validated
@dataclass(frozen=True)
class WeightLimits:
    """What a device allows of the weights of an operator.

    Args:
        bits (list[int]): Bit widths, 2 to 8, or 32 for float.
        symmetric (bool, optional): True if zero points have to be 0; by
            default they need not be.
        per_channel (bool, optional): True if each output channel has to have
            a scale, False if a layer has to have one; by default both will
            do.
    """

    bits: Annotated[
        Sequence[BitsOrFloat],
        Field(
            min_length=1,
            description='a list of one or more bit widths, each 2 to 8, or 32 '
            'for float',
        ),
    ] = ANY_BITS
    symmetric: Optional[bool] = None
    per_channel: Optional[bool] = None


@validated
@dataclass(frozen=True)
class LayerLimits:
    """What a device allows of layers of one kind.

    Args:
        weight (dict): Fields of :class:`WeightLimits`.
        activation (dict): Fields of :class:`ActivationLimits`.
    """

    weight: Optional[Annotated[dict, Config(WeightLimits)]] = None
    activation: Optional[Annotated[dict, Config(ActivationLimits)]] = None


@validated
@dataclass(frozen=True)
class ProductLimits:
    """What a device allows of products of two activations.

    Args:
        activation (dict): Fields of :class:`ActivationLimits`, for both
            operands.
    """

    activation: Optional[Annotated[dict, Config(ActivationLimits)]] = None


#: Limits of layers of one kind, or that they stay in float.
Layers = Union[Annotated[dict, Config(LayerLimits)], Literal['float'], None]


@validated
@dataclass(frozen=True)
class Operators:
    """What a device computes in low precision, by the kind of operator.

    A kind that is not named, or is ``float``, stays in float. Convolutions
    in groups are as those that are not, unless they are named.

    Args:
        conv (dict): Convolutions, fields of :class:`LayerLimits`.
        grouped_conv (dict): Convolutions in groups.
        depthwise_conv (dict): Those with a group for each input channel.
        linear (dict): Linear layers.
        product (dict): Products of two activations, such as those of
            attention, fields of :class:`ProductLimits`.
    """

    conv: Layers = None
    grouped_conv: Layers = None
    depthwise_conv: Layers = None
    linear: Layers = None
    product: Union[
        Annotated[dict, Config(ProductLimits)], Literal['float'], None
    ] = None

    def __post_init__(self) -> None:
        if not any(isinstance(x, dict) for x in vars(self).values()):
            raise ValueError(
                'operators names no kind with its limits, expected one or '
                f'more of {", ".join(vars(self))}'
            )


#: Kinds of operators.
Kind = Literal['conv', 'grouped_conv', 'depthwise_conv', 'linear', 'product']


@validated
@dataclass(frozen=True)
class Description:
    """Description of what a device and its runtime allow.

    Quantization, search and export keep to it.

    Args:
        name (str): Name of the target.
        runtime (str): Name of the runtime. Where it is installed, it has to
            run the file; other runtimes may refuse it.
        operators (dict, optional): Fields of :class:`Operators`; by default
            every kind may have 2 to 8 bits, or stay in float.
        zero_points (bool): Whether weights and activations may have zero
            points; if not, all of ``operators`` are symmetric.
        quantize_shortcuts (bool, optional): Whether what residual adds take
            has to be quantized (True) or in float (False); by default both
            will do. See ``quantization.quantize_shortcuts``.
        opset (int): Version of ONNX's operators; packed types may need a
            later one.
        fuses (list[str]): Operators that move behind the quantizer after
            them, so that they and what is before them run in integers.
        quantized_outputs (list[str]): Operators that run in integers only
            if their output is quantized, as before a residual add. Where the
            network leaves it in float, it gets a scale from calibration
            images when a file is made.
        integer_bias (bool): Whether biases have to be integers.
        packed (list[int]): Bit widths that weights can be packed to.
        packed_in_float (bool): Whether packed weights make the runtime
            compute in float.
        slow_zero_points (list[str]): Kinds of operators that are slow if
            their weights of 8 bits have zero points.

    Example:
        >>> npu = Description('npu', operators=dict(
        ...     conv=dict(weight=dict(bits=[4, 8], symmetric=True))
        ... ))
        >>> npu.limits('conv', 'weight').bits
        [4, 8]
    """

    name: str = ''
    runtime: str = ''
    operators: Optional[Annotated[dict, Config(Operators)]] = None
    zero_points: bool = True
    quantize_shortcuts: Optional[bool] = None
    opset: Annotated[int, Field(ge=21, le=25)] = 21
    fuses: Sequence[Literal['Relu', 'Clip', 'MaxPool']] = ()
    quantized_outputs: Sequence[Literal['Conv', 'Gemm', 'MatMul']] = ()
    integer_bias: bool = False
    packed: Sequence[Literal[2, 4]] = ()
    packed_in_float: bool = False
    slow_zero_points: Sequence[Kind] = ()

    def __post_init__(self) -> None:
        if self.operators is not None:
            Operators(**self.operators)

    @property
    def title(self) -> str:
        """Return the runtime's name for messages, or else the target's."""
        return self.runtime or self.name or type(self).__name__

    def limits(
        self, kind: str, side: str
    ) -> Optional[Union[WeightLimits, ActivationLimits]]:
        """Return what weights or activations of an operator may be.

        Args:
            kind (str): Kind of the operator, a field of :class:`Operators`.
            side (str): ``weight`` or ``activation``.

        Returns:
            WeightLimits | ActivationLimits: The limits; None if such
            operators stay in float.
        """
        given: Any = {}
        if self.operators is not None:
            given = self.operators.get(kind)
            if given is None and kind in SAME_AS:
                return self.limits(SAME_AS[kind], side)
            if not isinstance(given, dict):
                return None
        weight = WeightLimits(**(given.get('weight') or {}))
        if set(weight.bits) == {FLOAT}:
            return None
        found = (
            weight
            if side == 'weight'
            else ActivationLimits(**(given.get('activation') or {}))
        )
        return found if self.zero_points else replace(found, symmetric=True)
