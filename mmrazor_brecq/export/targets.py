"""Targets: what the runtimes that a file is made for allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.registry import Registry
from torch import nn

from ..layers import QuantLayer, quant_layers
from ..quantizers import ActivationQuantizer
from ..registry import SCOPE
from ..validation import nearest

TARGETS = Registry('target', scope=SCOPE, locations=['mmrazor_brecq.export'])


@dataclass(frozen=True)
class Target:
    """What a runtime allows.

    Args:
        runtime (str): What runs the file. It has to, where it is installed
            here; others may refuse.
        opset (int): Version of ONNX's operators; those that a packed type
            needs are in :data:`PACKED`.
        zero_points (bool): Whether weights and activations may have some.
        packed (tuple[int]): Bit widths that weights can be packed to, the
            smaller ones first.
        step_after (tuple[str]): Operators that only run in integers if
            their output is quantized; it gets a step of its own where the
            network quantizes it at no later place.
        integer_bias (bool): Whether they want their biases as integers.
    """

    runtime: str = ''
    opset: int = 21
    zero_points: bool = True
    packed: tuple[int, ...] = ()
    step_after: tuple[str, ...] = ()
    integer_bias: bool = False

    def check(self, model: nn.Module) -> None:
        """See that a network can be brought there.

        Args:
            model (nn.Module): Quantized.

        Raises:
            ValueError: If it cannot. It names the first layer that stands
                in the way, and the line of the config that helps.
        """
        if self.zero_points:
            return
        asymmetric = list(_asymmetric(model))
        if asymmetric:
            layer, kind = asymmetric[0]
            cures = (
                f'model.quantization.{kind}.symmetric=True'
                for kind in dict.fromkeys(kind for _, kind in asymmetric)
            )
            raise ValueError(
                f'{self.runtime} takes symmetric integers alone, and the '
                f'{kind} of {layer!r} is not: quantize with '
                'mmrazor_brecq.quantize(..., symmetric=True), or with the '
                f'tools and --cfg-options {" ".join(cures)}'
            )

    def remarks(self, model: nn.Module, pack: bool) -> list[str]:
        """What a user should know who asks for this.

        Args:
            model (nn.Module): Quantized.
            pack (bool): Whether packing is asked for.
        """
        widths = {
            self.width(layer.weight_quantizer.grid.bits, pack)
            for layer in quant_layers(model).values()
        }
        found = []
        if pack and widths == {8}:
            found.append(
                f'--pack changes nothing (`pack=True`): {self.runtime} takes '
                f'packed weights of {list(self.packed)} bits, these have more'
            )
        if 2 in widths:
            found.append(
                'INT2 weights (opset 25) are for storage: of the runtimes '
                'known here only ONNX Runtime loads them, and only with '
                'session.disable_quant_qdq=1 or basic optimisation, which '
                'computes in float'
            )
        return found

    def width(self, bits: int, pack: bool) -> int:
        """Bits that a weight takes in the file.

        Args:
            bits (int): Its own.
            pack (bool): Whether packing is asked for.
        """
        fits = [width for width in self.packed if bits <= width]
        return fits[0] if pack and fits else 8


#: What makes weights of eight bits better to run.
SYMMETRIC = (
    'quantized with mmrazor_brecq.quantize(..., symmetric=True), or with '
    '--cfg-options model.quantization.weight.symmetric=True, they have none'
)


def _is_grouped(layer: Any) -> bool:
    return getattr(layer, 'groups', 1) > 1


def _asymmetric(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Layers and units with a zero point that no rewriting takes away."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            quantizer = module.weight_quantizer
            # Of fewer bits, the integers less the zero point fit as well.
            if quantizer.grid.bits == 8 and quantizer.zero_point.any():
                yield name, 'weight'
        if isinstance(module, ActivationQuantizer):
            if module.active and not module.grid.symmetric:
                yield name.removesuffix('.input_quantizer'), 'activation'


#: The first opset in which a packed type can be dequantized.
PACKED = {2: 25, 4: 21}


@TARGETS.register_module(name='onnxruntime')
@dataclass(frozen=True)
class OnnxRuntime(Target):
    """ONNX Runtime on CPUs.

    It runs an operator in integers if all its inputs come from
    DequantizeLinear and its output goes to QuantizeLinear.
    """

    runtime: str = 'ONNX Runtime'
    packed: tuple[int, ...] = (2, 4)
    step_after: tuple[str, ...] = ('Conv',)
    integer_bias: bool = True

    def remarks(self, model: nn.Module, pack: bool) -> list[str]:
        found = super().remarks(model, pack)
        layers = [n for n, kind in _asymmetric(model) if kind == 'weight']
        slow = [n for n in layers if _is_grouped(model.get_submodule(n))]
        if slow:
            found.append(
                f'{len(slow)} grouped convolutions, {slow[0]!r} first, have '
                '8-bit weights with zero points, which ONNX Runtime is slow '
                f'with; {SYMMETRIC}'
            )
        if pack:
            found.append(
                'ONNX Runtime on a CPU computes with packed weights in '
                'float; without --pack (`pack=True`) it computes in integers'
            )
        return found


@TARGETS.register_module(name='openvino')
@dataclass(frozen=True)
class OpenVINO(Target):
    """OpenVINO, which fuses residual adds and biases as real numbers."""

    runtime: str = 'OpenVINO'
    packed: tuple[int, ...] = (4,)

    def remarks(self, model: nn.Module, pack: bool) -> list[str]:
        found = super().remarks(model, pack)
        layers = [n for n, kind in _asymmetric(model) if kind == 'weight']
        if layers:
            found.append(
                f'{len(layers)} layers, {layers[0]!r} first, have 8-bit '
                'weights with zero points, which OpenVINO computes with in '
                f'float; {SYMMETRIC}'
            )
        return found


@TARGETS.register_module(name='tensorrt')
@dataclass(frozen=True)
class TensorRT(Target):
    """TensorRT, which takes no zero points at all."""

    runtime: str = 'TensorRT'
    zero_points: bool = False


def build_target(name: str) -> Target:
    """A target by its name.

    Raises:
        ValueError: If there is none of that name.
    """
    target: Any = TARGETS.get(name)
    if target is None:
        known = ', '.join(sorted(TARGETS.module_dict))
        raise ValueError(
            f'--target (`target`) {name!r} is unknown, expected one of {known}'
            f'{nearest(name, list(TARGETS.module_dict))}'
        )
    return target()
