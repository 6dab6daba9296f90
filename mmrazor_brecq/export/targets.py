"""Targets: what the runtimes that a file is made for allow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmengine.registry import Registry
from torch import nn

from ..layers import QuantLayer, quant_layers
from ..quantizers import ActivationQuantizer
from ..registry import SCOPE
from ..validation import did_you_mean

TARGETS = Registry('target', scope=SCOPE, locations=['mmrazor_brecq.export'])

#: The first opset in which a packed type of so many bits can be dequantized.
OPSET_OF_PACKED = {2: 25, 4: 21}


@dataclass(frozen=True)
class Target:
    """Description of what a runtime allows.

    Args:
        runtime (str): Name of the runtime. Where it is installed, it has to
            run the file; other runtimes may refuse it.
        opset (int): Version of ONNX's operators; packed types may need a
            later one (:data:`OPSET_OF_PACKED`).
        zero_points (bool): Whether weights and activations may have zero
            points.
        packed (tuple[int]): Bit widths that weights can be packed to, in
            ascending order.
        quantized_outputs (tuple[str]): Operators that run in integers only
            if their output is quantized. Where the network leaves it in
            float, it gets a scale from calibration images.
        integer_bias (bool): Whether biases have to be integers.
        wide_activations (bool): Whether activations may have 16 bits.

    Example:
        >>> @TARGETS.register_module(name='npu')
        ... @dataclass(frozen=True)
        ... class Npu(Target):
        ...     runtime: str = 'NPU'
        ...     zero_points: bool = False
        >>> build_target('npu').stored_bits(4, pack=True)
        8
    """

    runtime: str = ''
    opset: int = 21
    zero_points: bool = True
    packed: tuple[int, ...] = ()
    quantized_outputs: tuple[str, ...] = ()
    integer_bias: bool = False
    wide_activations: bool = False

    def check(self, model: nn.Module) -> None:
        """Check that a network can be exported for this target.

        Args:
            model (nn.Module): Quantized.

        Raises:
            ValueError: If it cannot. The message names the first layer that
                prevents it, and the config key that helps.
        """
        wide = _wide(model)
        if wide and not self.wide_activations:
            raise ValueError(
                f'{self.runtime} takes activations of at most 8 bits, and '
                f'the input of {wide[0]!r} has 16: quantize without '
                f'`bit_overrides` such as {{{wide[0]!r}: dict(activation=16)}}'
                ', and with `symmetric=True`, where none gets 16 by itself'
            )
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
                f'{self.runtime} takes symmetric integers only, and the '
                f'{kind} of {layer!r} is not: quantize with '
                'mmrazor_brecq.quantize(..., symmetric=True), or with the '
                f'tools and --cfg-options {" ".join(cures)}'
            )

    def remarks(self, model: nn.Module, pack: bool) -> list[str]:
        """Return what a user should know before exporting a network.

        Args:
            model (nn.Module): Quantized.
            pack (bool): Whether packing is asked for.

        Returns:
            list[str]: Sentences; none if there is nothing to say.
        """
        stored = {
            self.stored_bits(layer.weight_quantizer.grid.bits, pack)
            for layer in quant_layers(model).values()
        }
        found = []
        if pack and stored == {8}:
            found.append(
                f'--pack changes nothing (`pack=True`): {self.runtime} takes '
                f'packed weights of {list(self.packed)} bits, these have more'
            )
        if 2 in stored:
            found.append(
                'INT2 weights (opset 25) are for storage: of the runtimes '
                'known here only ONNX Runtime loads them, and only with '
                'session.disable_quant_qdq=1 or basic optimization, which '
                'computes in float'
            )
        return found

    def stored_bits(self, bits: int, pack: bool) -> int:
        """Return the bits that each element of a weight takes in the file.

        Args:
            bits (int): Bits of the weight, 2 to 8.
            pack (bool): Whether packing is asked for.
        """
        fitting = [packed for packed in self.packed if bits <= packed]
        return fitting[0] if pack and fitting else 8


#: How to get 8-bit weights that run faster.
SYMMETRIC = (
    'quantized with mmrazor_brecq.quantize(..., symmetric=True), or with '
    '--cfg-options model.quantization.weight.symmetric=True, they have none'
)


def _wide(model: nn.Module) -> list[str]:
    """Return the names of layers and units whose inputs have 16 bits."""
    return [
        re.sub(r'\.(input_quantizer|door\.inputs\.\d+)$', '', name)
        for name, module in model.named_modules()
        if isinstance(module, ActivationQuantizer) and module.grid.bits > 8
    ]


def _asymmetric(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield layers and units whose zero points stay in the file.

    Yields:
        tuple[str, str]: The name, and ``weight`` or ``activation``.
    """
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            quantizer = module.weight_quantizer
            # With fewer bits, the integers less the zero point still fit.
            if quantizer.grid.bits == 8 and quantizer.zero_point.any():
                yield name, 'weight'
        if isinstance(module, ActivationQuantizer):
            if module.active and not module.grid.symmetric:
                yield name.removesuffix('.input_quantizer'), 'activation'


def _asymmetric_weights(model: nn.Module) -> list[str]:
    """Return the names of layers whose weights keep zero points."""
    return [name for name, kind in _asymmetric(model) if kind == 'weight']


@TARGETS.register_module(name='onnxruntime')
@dataclass(frozen=True)
class OnnxRuntime(Target):
    """ONNX Runtime on CPUs.

    It runs an operator in integers if all its inputs come from
    DequantizeLinear and its output goes to QuantizeLinear.
    """

    runtime: str = 'ONNX Runtime'
    packed: tuple[int, ...] = (2, 4)
    quantized_outputs: tuple[str, ...] = ('Conv',)
    integer_bias: bool = True
    wide_activations: bool = True

    def remarks(self, model: nn.Module, pack: bool) -> list[str]:
        found = super().remarks(model, pack)
        slow = [
            name
            for name in _asymmetric_weights(model)
            if getattr(model.get_submodule(name), 'groups', 1) > 1
        ]
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
    """OpenVINO, which fuses residual adds and real biases."""

    runtime: str = 'OpenVINO'
    packed: tuple[int, ...] = (4,)
    wide_activations: bool = True

    def remarks(self, model: nn.Module, pack: bool) -> list[str]:
        found = super().remarks(model, pack)
        layers = _asymmetric_weights(model)
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
    """Return the target of a name.

    Args:
        name (str): A registered name, such as ``onnxruntime``.

    Raises:
        ValueError: If no target has this name.
    """
    target = TARGETS.get(name)
    if target is None:
        known = ', '.join(sorted(TARGETS.module_dict))
        raise ValueError(
            f'--target (`target`) {name!r} is unknown, expected one of {known}'
            f'{did_you_mean(name, list(TARGETS.module_dict))}'
        )
    return target()
