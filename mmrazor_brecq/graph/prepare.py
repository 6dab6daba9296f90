"""Swap the layers and place the activation quantizers, by one rule.

A unit quantizes its input once, at its door, so that the residual sees the
quantized tensor too; inside it every layer quantizes its own input, unless
that tensor came through the door untouched. The door is quantized only
where its tensor itself reaches a layer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, Optional, Union

from torch import Tensor, nn

from ..functional import flatten
from ..layers import is_quantizable, quantize_layer
from ..quantizers import ActivationQuantizer, WeightQuantizer
from ..registry import MODELS
from ..validation import Bits as Width
from ..validation import Config, nearest, validated
from .partition import Unit
from .record import Call, Recording

Bits = tuple[int, int]


class Door(nn.Module):
    """Quantizes a unit's inputs, once, where they enter.

    It is a child of the unit's module, under the name ``door``, and works
    through a hook before the module's forward pass.

    Args:
        quantizers (dict[int, nn.Module]): Quantizer of each input tensor
            that is quantized, by its place among the unit's tensors.
        readers (dict[int, tuple[str]]): Layers that take each of them.
    """

    def __init__(
        self,
        quantizers: dict[int, nn.Module],
        readers: dict[int, tuple[str, ...]],
    ) -> None:
        super().__init__()
        self.readers = readers
        self.inputs = nn.ModuleDict(
            {str(place): q for place, q in quantizers.items()}
        )

    def quantize(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of the unit with their tensors quantized."""
        leaves, rebuild = flatten((args, kwargs))
        places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        for place, quantizer in self.inputs.items():
            i = places[int(place)]
            leaves[i] = quantizer(leaves[i])
        return rebuild(leaves)

    def forward(self, x: Any) -> Any:
        """Pass: a Sequential calls all its children, its door too."""
        return x


def _enter(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return module.door.quantize(args, kwargs)


@dataclass
class BitWidths:
    """Bit widths of a layer, of its weight or its input or both."""

    weight: Optional[Width] = None
    activation: Optional[Width] = None


WeightConfig = Annotated[
    dict,
    Config(
        WeightQuantizer,
        MODELS,
        default='WeightQuantizer',
        number='bits',
        settled=('out_channels',),
    ),
]
ActivationConfig = Annotated[
    dict,
    Config(
        ActivationQuantizer,
        MODELS,
        default='ActivationQuantizer',
        number='bits',
    ),
]
Override = Union[Width, Annotated[dict, Config(BitWidths)]]


@validated
@dataclass
class QuantizationScheme:
    """What is quantized, and how.

    Args:
        weight (dict): Config of the weight quantizers, with ``bits``.
        activation (dict, optional): Config of the activation quantizers,
            with ``bits``; None leaves activations in float.
        first_last_bits (int, optional): Width of the first and of the last
            layer, weight and input; None treats them as all others.
        bit_overrides (dict): Width by layer name or pattern of
            :mod:`fnmatch`: a number for weight and input, or
            ``dict(weight=..., activation=...)`` with either key. Later
            entries win.
    """

    weight: WeightConfig = field(default_factory=lambda: dict(bits=8))
    activation: Optional[ActivationConfig] = field(
        default_factory=lambda: dict(bits=8)
    )
    first_last_bits: Optional[Width] = 8
    bit_overrides: dict[str, Override] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Its fields as plain Python."""
        # Through JSON, since a config's dictionaries are of a kind of their
        # own, which no safe load accepts.
        return json.loads(json.dumps(asdict(self)))

    def bits(self, layers: list[str], ends: list[str]) -> dict[str, Bits]:
        """Width of weight and input for every layer.

        Args:
            layers (list[str]): Names of all layers.
            ends (list[str]): Names of the first and the last ones.

        Raises:
            ValueError: If a pattern matches no layer.
        """
        default = self._widths()
        chosen = {name: dict(default) for name in layers}
        if self.first_last_bits is not None:
            for name in ends:
                chosen[name] = dict.fromkeys(default, self.first_last_bits)
        for pattern, value in self.bit_overrides.items():
            if not isinstance(value, dict):
                value = dict.fromkeys(default, value)
            for name in matching(pattern, layers):
                chosen[name].update(value)
        return {n: (w['weight'], w['activation']) for n, w in chosen.items()}

    def _widths(self) -> dict[str, int]:
        """The widths of a layer that nothing else is said of."""
        return dict(
            weight=self.weight.get('bits', 8),
            activation=(self.activation or {}).get('bits', 8),
        )

    def weight_quantizer(self, layer: Any, bits: int) -> Any:
        """A quantizer for the weight of ``layer``."""
        cfg = dict(dict(type='WeightQuantizer'), **self.weight)
        return MODELS.build(
            dict(cfg, bits=bits, out_channels=layer.weight.shape[0])
        )

    def activation_quantizer(self, bits: int) -> Any:
        """A quantizer for an activation, if they are quantized at all."""
        if self.activation is None:
            return None
        cfg = dict(dict(type='ActivationQuantizer'), **self.activation)
        return MODELS.build(dict(cfg, bits=bits))


#: How a parameter says that it takes the fields of a scheme.
QuantizationConfig = Annotated[dict, Config(QuantizationScheme)]


def check_overrides(scheme: QuantizationScheme, network: nn.Module) -> None:
    """See that all overrides mean a layer, before any pass.

    Args:
        scheme (QuantizationScheme): With ``bit_overrides``.
        network (nn.Module): The network.

    Raises:
        ValueError: If one means none.
    """
    layers = [n for n, m in network.named_modules() if is_quantizable(m)]
    for pattern in scheme.bit_overrides:
        matching(pattern, layers)


def matching(pattern: str, layers: Sequence[str]) -> list[str]:
    """The layers that a pattern of ``bit_overrides`` means.

    Raises:
        ValueError: If there are none.
    """
    found = [name for name in layers if fnmatchcase(name, pattern)]
    if not found:
        raise ValueError(
            f'{pattern!r} in `bit_overrides` matches no layer of the network'
            f'{nearest(pattern, layers)}; its layers are {", ".join(layers)}'
        )
    return found


def end_layers(recording: Recording) -> list[str]:
    """The first layer, and those that the network's output comes from."""
    calls = [
        call for call in recording.calls if recording.is_layer(call.module)
    ]
    network = recording.calls[0]
    last = [
        call
        for call in calls
        if any(
            out.views(end) for out in call.outputs for end in network.outputs
        )
    ]
    return [calls[0].name] + [call.name for call in last or calls[-1:]]


def _door_places(
    unit: Unit, calls: dict[nn.Module, list[Call]], names: dict[str, nn.Module]
) -> dict[str, int]:
    """Layers of the unit that take a tensor of its door, and which one."""
    door = [value for call in calls[unit.module] for value in call.inputs]
    width = len(calls[unit.module][0].inputs)
    places = {}
    for name in unit.layers:
        taken = {
            next(
                (
                    i % width
                    for i, value in enumerate(door)
                    if call.inputs[0].views(value)
                ),
                None,
            )
            for call in calls[names[name]]
        }
        place = taken.pop()
        if place is not None and not taken:
            places[name] = place
    return places


def prepare(
    model: nn.Module,
    recording: Recording,
    units: list[Unit],
    scheme: QuantizationScheme,
) -> dict[str, Bits]:
    """Turn a float network into one whose quantizers wait to be fitted.

    Args:
        model (nn.Module): The folded network, changed in place.
        recording (Recording): A recorded pass of it.
        units (list[Unit]): Its units.
        scheme (QuantizationScheme): What to quantize, and how.

    Returns:
        dict[str, tuple]: Bits of weight and input of every layer.
    """
    calls = recording.by_module()
    names = {uses[0].name: module for module, uses in calls.items()}
    parts = [part for unit in units for part in unit.parts]
    layers = [name for part in parts for name in part.layers]
    bits = scheme.bits(layers, end_layers(recording))
    for unit in parts:
        alone = names[unit.layers[0]] is unit.module
        places = {} if alone else _door_places(unit, calls, names)
        for name in unit.layers:
            layer = names[name]
            own = (
                None
                if name in places
                else scheme.activation_quantizer(bits[name][1])
            )
            quantize_layer(
                layer, scheme.weight_quantizer(layer, bits[name][0]), own
            )
        doors: dict[int, Any] = {}
        readers: dict[int, tuple[str, ...]] = {}
        for place in sorted(set(places.values())):
            readers[place] = tuple(n for n, p in places.items() if p == place)
            width = max(bits[name][1] for name in readers[place])
            doors[place] = scheme.activation_quantizer(width)
        if doors and scheme.activation is not None:
            device = next(unit.module.parameters()).device
            unit.module.add_module('door', Door(doors, readers).to(device))
            unit.module.register_forward_pre_hook(_enter, with_kwargs=True)
    return bits
