"""Swap the layers and place the activation quantizers, by one rule.

A unit quantizes its input once, at its door, so that the residual sees the
quantized tensor too; inside it every layer quantizes its own input, unless
that tensor came through the door untouched. The door is quantized only
where its tensor itself reaches a layer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Optional, Union, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..functional import flatten
from ..layers import (
    MatrixProduct,
    is_layer,
    quantize_layer,
    quantize_product,
)
from ..quantizers import ActivationQuantizer, WeightQuantizer
from ..registry import MODELS
from ..targets import FLOAT
from ..validation import (
    ActivationBitsOrFloat,
    Bits,
    BitsOrFloat,
    Config,
    did_you_mean,
    validated,
)
from .ends import end_layers
from .equalize import MOVES
from .partition import Unit
from .record import LEFT_FLOAT, Call, Recording, Value

#: Bit widths of a layer's weight and of its input, :data:`FLOAT` of an input
#: in float. A product of activations has None, and the bits of both operands.
BitPair = tuple[Optional[int], int]
#: Operations of ATen whose result adds up to one.
SOFTMAXES = frozenset(['_softmax', '_safe_softmax'])


class Door(nn.Module):
    """Quantizers of a unit's inputs, each applied once.

    The door is a child of the unit's module, under the name ``door``. A hook
    calls it before the module's forward pass.

    Args:
        quantizers (dict[int, nn.Module]): Quantizers of the input tensors
            that are quantized. Keys are indices of these among all input
            tensors of the unit.
        readers (dict[int, tuple[str]]): For each of these indices, the names
            of the layers that take the tensor.

    Example:
        >>> door = Door({0: ActivationQuantizer(bits=4)}, {0: ('conv1',)})
        >>> args, kwargs = door.quantize((x,), {})
    """

    def __init__(
        self,
        quantizers: dict[int, nn.Module],
        readers: dict[int, tuple[str, ...]],
    ) -> None:
        super().__init__()
        self.readers = readers
        self.inputs = nn.ModuleDict(
            {str(index): q for index, q in quantizers.items()}
        )

    def quantize(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Return the arguments of the unit with their tensors quantized."""
        leaves, rebuild = flatten((args, kwargs))
        tensors = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        for index, quantizer in self.inputs.items():
            x = leaves[tensors[int(index)]]
            quantized = quantizer(x)
            # Code may ask whether two arguments are the same tensor.
            leaves = [quantized if y is x else y for y in leaves]
        return rebuild(leaves)

    def attach(self, module: nn.Module) -> RemovableHandle:
        """Quantize the inputs of a module, until the hook is removed."""
        return module.register_forward_pre_hook(
            lambda module, args, kwargs: self.quantize(args, kwargs),
            with_kwargs=True,
        )

    def forward(self, x: Any) -> Any:
        """Return the input: a Sequential calls its door like all children."""
        return x


def _quantize_inputs(
    module: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict]:
    return cast(Door, module.door).quantize(args, kwargs)


@dataclass
class BitWidths:
    """Bit widths of a layer: of its weight, its input or both."""

    weight: Optional[BitsOrFloat] = None
    activation: Optional[ActivationBitsOrFloat] = None


WeightConfig = Annotated[
    dict,
    Config(
        WeightQuantizer,
        MODELS,
        default='WeightQuantizer',
        number_key='bits',
        excluded=('out_channels',),
    ),
]
ActivationConfig = Annotated[
    dict,
    Config(
        ActivationQuantizer,
        MODELS,
        default='ActivationQuantizer',
        number_key='bits',
        excluded=('heads',),
    ),
]
SoftmaxConfig = Annotated[
    dict,
    Config(
        ActivationQuantizer,
        MODELS,
        default='ActivationQuantizer',
        excluded=('bits', 'heads'),
    ),
]
Override = Union[BitsOrFloat, Annotated[dict, Config(BitWidths)], None]


@validated
@dataclass
class QuantizationScheme:
    """Settings of what is quantized, and to how many bits.

    Args:
        weight (dict): Config of the weight quantizers, with ``bits``.
        activation (dict, optional): Config of the activation quantizers,
            with ``bits``. None leaves activations in float.
        after_softmax (dict, optional): Config of the quantizers of operands
            that a softmax puts out, such as
            ``dict(type='LogActivationQuantizer')``; their bits are those of
            the product. By default it is that of ``activation``.
        first_last_bits (int, optional): Bit width of weight and input of the
            first and the last layer. None treats them as all others.
        quantize_shortcuts (bool): Whether the shortcut of a unit carries the
            quantized input too, as in BRECQ and QDrop. If false, each layer
            quantizes its own input, and shortcuts stay float: more accurate
            at 4 bits and below, but the sums need wider arithmetic.
        bit_overrides (dict): Bit widths by layer name or pattern of
            :mod:`fnmatch`: a number for weight and input, or
            ``dict(weight=..., activation=...)`` with one key or both. None,
            or 32, leaves a layer, or its input alone, in float; an input may
            have 16 bits. Later entries win. Both operands of a product of
            activations, such as ``'*.attn.product_0'``, take the bits of
            ``activation``.

    Example:
        >>> scheme = QuantizationScheme(
        ...     weight=dict(bits=4),
        ...     activation=dict(bits=8),
        ...     bit_overrides={
        ...         'backbone.layer1.*': dict(weight=6), 'bbox_head.*': None
        ...     },
        ... )
    """

    weight: WeightConfig = field(default_factory=lambda: dict(bits=8))
    activation: Optional[ActivationConfig] = field(
        default_factory=lambda: dict(bits=8)
    )
    after_softmax: Optional[SoftmaxConfig] = None
    first_last_bits: Optional[Bits] = 8
    quantize_shortcuts: bool = True
    bit_overrides: dict[str, Override] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain Python."""
        # Through JSON, since mmengine's dictionaries are of their own type,
        # which a safe load refuses.
        return json.loads(json.dumps(asdict(self)))

    def bits(
        self,
        layers: list[str],
        ends: list[str],
        products: Collection[str] = (),
    ) -> dict[str, BitPair]:
        """Return the bit widths of weight and input of every layer.

        Args:
            layers (list[str]): Names of all layers.
            ends (list[str]): Names of the first and the last layers.
            products (list[str]): Names of those that have no weight.

        Raises:
            ValueError: If a pattern matches no layer.
        """
        default = dict(
            weight=self.weight.get('bits', 8),
            activation=(self.activation or {}).get('bits', 8),
        )
        chosen: dict[str, dict[str, Any]] = {
            name: dict(default) for name in layers
        }
        if self.first_last_bits is not None:
            for name in ends:
                chosen[name] = dict.fromkeys(default, self.first_last_bits)
        for pattern, value in self.bit_overrides.items():
            if not isinstance(value, dict):
                value = dict.fromkeys(default, value)
            for name in matching(pattern, layers):
                chosen[name].update(
                    {k: FLOAT if v is None else v for k, v in value.items()}
                )
        for name, bits in chosen.items():
            if name in products:
                bits['weight'] = None
            if bits['weight'] == FLOAT != bits['activation']:
                raise ValueError(
                    f'`bit_overrides` leave the weight of {name!r} in float '
                    f'and give its input {bits["activation"]} bits, expected '
                    f'float for both: {{{name!r}: None}}'
                )
        return {
            name: (bits['weight'], bits['activation'])
            for name, bits in chosen.items()
        }

    def weight_quantizer(self, layer: nn.Module, bits: int) -> WeightQuantizer:
        """Return a new quantizer for the weight of a layer."""
        channels = layer.get_parameter('weight').shape[0]
        cfg = dict(dict(type='WeightQuantizer'), **self.weight)
        return MODELS.build(dict(cfg, bits=bits, out_channels=channels))

    def activation_quantizer(
        self,
        bits: int,
        heads: int = 1,
        tokens: bool = False,
        softmax: bool = False,
    ) -> Optional[ActivationQuantizer]:
        """Return a new quantizer for an activation.

        It is None if activations, or this one, stay in float.

        Args:
            bits (int): Bit width, or :data:`FLOAT`.
            heads (int): Number of scales.
            tokens (bool): Whether it is an operand of a product, or tokens
                that a linear layer reads. Then the exponent of the error
                that its scale minimizes is chosen, too, unless the config
                names an observer.
            softmax (bool): Whether a softmax puts it out.
        """
        if self.activation is None or bits == FLOAT:
            return None
        given = self.activation
        if softmax and self.after_softmax is not None:
            given = self.after_softmax
        cfg = dict(dict(type='ActivationQuantizer'), **given)
        if heads > 1:  # Other types of quantizers need not know of heads.
            cfg['heads'] = heads
        if tokens and cfg['type'] == 'ActivationQuantizer':
            cfg.setdefault('observer', dict(type='LpChoice'))
        return MODELS.build(dict(cfg, bits=bits))


#: Type of an argument that takes the fields of a scheme.
QuantizationConfig = Annotated[dict, Config(QuantizationScheme)]


def check_overrides(scheme: QuantizationScheme, network: nn.Module) -> None:
    """Check that each pattern of ``bit_overrides`` matches a layer.

    Args:
        scheme (QuantizationScheme): The settings.
        network (nn.Module): The network.

    Raises:
        ValueError: If a pattern matches no layer.
    """
    layers, modules = [], [name for name, _ in network.named_modules()]
    for name, module in network.named_modules():
        if is_layer(module):
            layers.append(name)
    for pattern in scheme.bit_overrides:
        # Products become layers later, when a pass has shown them.
        if not any(_could_match(pattern, name) for name in modules):
            matching(pattern, layers)


def without_unseen(
    scheme: QuantizationScheme, recording: Recording
) -> QuantizationScheme:
    """Return a scheme without patterns of products that are no layers.

    In a network that is built for a checkpoint these are no layers if they
    are in float there.

    Args:
        scheme (QuantizationScheme): The settings.
        recording (Recording): A recorded pass.
    """
    modules = [call.name for call in recording.calls]
    layers = [c.name for c in recording.calls if is_layer(c.module)]

    def unseen(pattern: str) -> bool:
        seen = any(fnmatchcase(name, pattern) for name in layers)
        return not seen and any(_could_match(pattern, x) for x in modules)

    kept = {k: v for k, v in scheme.bit_overrides.items() if not unseen(k)}
    return replace(scheme, bit_overrides=kept)


def _could_match(pattern: str, module: str) -> bool:
    """Return whether a pattern could match a product in a module."""
    names = (f'product_{i}' for i in range(10))
    return any(
        fnmatchcase(f'{module}.{name}'.lstrip('.'), pattern) for name in names
    )


def matching(pattern: str, layers: Sequence[str]) -> list[str]:
    """Return the layers that a pattern of ``bit_overrides`` matches.

    Args:
        pattern (str): Name of a layer, or pattern of :mod:`fnmatch`.
        layers (list[str]): Names of all layers.

    Raises:
        ValueError: If it matches no layer.
    """
    found = [name for name in layers if fnmatchcase(name, pattern)]
    if not found:
        raise ValueError(
            f'{pattern!r} in `bit_overrides` matches no layer of the network'
            f'{did_you_mean(pattern, layers)}; its layers are '
            f'{", ".join(layers)}'
        )
    return found


def _door_inputs(
    unit: Unit, calls: dict[nn.Module, list[Call]], names: dict[str, nn.Module]
) -> dict[str, int]:
    """Return the layers of a unit that take one of its input tensors.

    Args:
        unit (Unit): The unit.
        calls (dict): Calls of each module.
        names (dict): Modules by name.

    Returns:
        dict[str, int]: For each name of such a layer the index of the tensor
        among the unit's inputs.
    """
    inputs = [value for call in calls[unit.module] for value in call.inputs]
    count = len(calls[unit.module][0].inputs)
    found = {}
    for name in unit.layers:
        if isinstance(names[name], MatrixProduct):
            continue
        # One index for each call of the layer, None for another tensor.
        indices = {
            next(
                (
                    i % count
                    for i, value in enumerate(inputs)
                    if call.inputs[0].same_memory(value)
                ),
                None,
            )
            for call in calls[names[name]]
        }
        index = indices.pop()
        if index is not None and not indices:
            found[name] = index
    return found


def _bits(
    recording: Recording, scheme: QuantizationScheme
) -> dict[str, BitPair]:
    """Return the bit widths of all layers, those left in float as well."""
    layers = {
        uses[0].name: module
        for module, uses in recording.by_module().items()
        if recording.could_be_layer(module)
    }
    if not layers:
        return {}
    products = [n for n, m in layers.items() if isinstance(m, MatrixProduct)]
    return scheme.bits(list(layers), end_layers(recording), products)


def leave_float(recording: Recording, scheme: QuantizationScheme) -> None:
    """Note which layers the scheme leaves in float.

    Args:
        recording (Recording): A recorded pass; it is changed in place.
        scheme (QuantizationScheme): The settings.

    Raises:
        ValueError: If only the weight of a layer is to stay in float, or a
            pattern matches no layer that is called.
    """
    calls = {call.name: call for call in recording.calls}
    for name, pair in _bits(recording, scheme).items():
        if FLOAT == (pair[1] if pair[0] is None else pair[0]):
            recording.unfit[calls[name].module] = LEFT_FLOAT


def prepare(
    model: nn.Module,
    recording: Recording,
    units: list[Unit],
    scheme: QuantizationScheme,
) -> dict[str, BitPair]:
    """Turn a float network into a quantized one without scales yet.

    Args:
        model (nn.Module): The network with its norms folded; it is changed
            in place.
        recording (Recording): A recorded pass of it.
        units (list[Unit]): Its units.
        scheme (QuantizationScheme): The settings.

    Returns:
        dict[str, tuple]: Bit widths of weight and input of every layer.
    """
    calls = recording.by_module()
    names = {uses[0].name: module for module, uses in calls.items()}
    parts = [part for unit in units for part in unit.parts]
    softmax = _after_softmax(recording)
    chosen = _bits(recording, scheme)
    bits = {name: chosen[name] for part in parts for name in part.layers}
    for unit in parts:
        single = names[unit.layers[0]] is unit.module
        at_door = (
            _door_inputs(unit, calls, names)
            if scheme.quantize_shortcuts and not single
            else {}
        )
        for name in unit.layers:
            layer = names[name]
            weight_bits, input_bits = bits[name]
            if isinstance(layer, MatrixProduct):
                inputs = [call.inputs for call in calls[layer]]
                _quantize_product(
                    layer,
                    scheme,
                    input_bits,
                    [
                        all(x[side] in softmax for x in inputs)
                        for side in range(2)
                    ],
                )
                layer.to(next(model.parameters()).device)
                continue
            assert weight_bits is not None
            weight_quantizer = scheme.weight_quantizer(layer, weight_bits)
            input_quantizer = (
                None
                if name in at_door
                else scheme.activation_quantizer(
                    input_bits, tokens=_reads_tokens(layer, calls)
                )
            )
            quantize_layer(layer, weight_quantizer, input_quantizer)
        _add_door(unit, at_door, bits, scheme)
    return bits


def _reads_tokens(
    layer: nn.Module, calls: dict[nn.Module, list[Call]]
) -> bool:
    """Return whether a layer is linear, and runs over tokens of images."""
    return isinstance(layer, nn.Linear) and all(
        call.inputs[0].dims > 2 for call in calls[layer]
    )


def _after_softmax(recording: Recording) -> set[Value]:
    """Return what softmaxes put out, and views and copies of it.

    Masks may fill it, with the zeros of a row without any position.
    """
    found: set[Value] = set()
    passing = MOVES | {'masked_fill'}
    for operation in recording.operations:
        if operation.name in SOFTMAXES or (
            operation.name in passing
            and not found.isdisjoint(operation.inputs)
        ):
            found.update(operation.outputs)
    return found


def _quantize_product(
    product: MatrixProduct,
    scheme: QuantizationScheme,
    bits: int,
    softmax: Sequence[bool],
) -> None:
    """Give both operands of a product quantizers.

    Args:
        product (MatrixProduct): The product.
        scheme (QuantizationScheme): The settings.
        bits (int): Bit width.
        softmax (list[bool]): Whether a softmax puts out each operand.
    """
    left, right = (
        scheme.activation_quantizer(bits, heads, True, after)
        for heads, after in zip(product.heads, softmax)
    )
    quantize_product(product, left, right)


def _add_door(
    unit: Unit,
    at_door: dict[str, int],
    bits: dict[str, BitPair],
    scheme: QuantizationScheme,
) -> None:
    """Give a unit its door, with as many bits as the widest reader has.

    Args:
        unit (Unit): The unit, whose module is changed in place.
        at_door (dict[str, int]): Layers that take an input tensor of the
            unit, with the tensor's index.
        bits (dict): Bit widths of weight and input of every layer.
        scheme (QuantizationScheme): The settings.
    """
    quantizers: dict[int, nn.Module] = {}
    readers: dict[int, tuple[str, ...]] = {}
    for index in sorted(set(at_door.values())):
        readers[index] = tuple(n for n, i in at_door.items() if i == index)
        found = [bits[name][1] for name in readers[index]]
        quantizer = scheme.activation_quantizer(
            max((b for b in found if b != FLOAT), default=FLOAT)
        )
        if quantizer is not None:
            quantizers[index] = quantizer
    if quantizers:
        device = next(unit.module.parameters()).device
        door = Door(quantizers, readers).to(device)
        unit.module.add_module('door', door)
        unit.module.register_forward_pre_hook(
            _quantize_inputs, with_kwargs=True
        )
