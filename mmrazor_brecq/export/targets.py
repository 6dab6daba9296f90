"""Targets: what the runtimes that a file is made for allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmengine.registry import Registry
from torch import nn

from ..layers import activation_quantizers, quant_layers
from ..registry import SCOPE

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
        packed (tuple[int]): Widths that weights can be packed to, the
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
        for name, layer in quant_layers(model).items():
            zero_point = layer.weight_quantizer.zero_point
            if zero_point.any() and layer.weight_quantizer.grid.bits == 8:
                raise ValueError(self._asymmetric(name, 'weight'))
            for quantizer in activation_quantizers(layer):
                if not quantizer.grid.symmetric:
                    raise ValueError(self._asymmetric(name, 'activation'))
        for name, module in model.named_modules():
            for quantizer in activation_quantizers(module)[:1]:
                if not quantizer.grid.symmetric:
                    raise ValueError(self._asymmetric(name, 'activation'))

    def _asymmetric(self, layer: str, kind: str) -> str:
        return (
            f'{type(self).__name__} takes symmetric integers alone, and the '
            f'{kind} of {layer!r} is not: quantize with '
            f'`model.quantization.{kind}.symmetric=True`'
        )

    def width(self, bits: int, pack: bool) -> int:
        """Bits that a weight takes in the file.

        Args:
            bits (int): Its own.
            pack (bool): Whether packing is asked for.
        """
        fits = [width for width in self.packed if bits <= width]
        return fits[0] if pack and fits else 8


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


@TARGETS.register_module(name='openvino')
@dataclass(frozen=True)
class OpenVINO(Target):
    """OpenVINO, which fuses residual adds and biases as real numbers."""

    runtime: str = 'OpenVINO'
    packed: tuple[int, ...] = (4,)


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
            f'--target {name!r} is unknown, expected one of {known}'
        )
    return target()
