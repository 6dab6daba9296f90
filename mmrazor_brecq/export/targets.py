"""Targets: what the runtimes that a file is made for allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union

from torch import nn

from ..algorithms import BRECQ
from ..graph import check_bits, input_quantizers
from ..layers import kind_of, quant_layers
from ..targets import TARGETS, Description, TargetConfig
from ..validation import KeyPath, validate

#: The first opset in which a packed type of so many bits can be dequantized.
OPSET_OF_PACKED = {2: 25, 4: 21}

#: How to get 8-bit weights that run faster.
SYMMETRIC = (
    'quantized with mmrazor_brecq.quantize(..., symmetric=True), or with '
    '--cfg-options model.quantization.weight.symmetric=True, they have none'
)


@dataclass(frozen=True)
class Target(Description):
    """A device's description, and what an export makes of it.

    Example:
        >>> @TARGETS.register_module(name='npu')
        ... @dataclass(frozen=True)
        ... class Npu(Target):
        ...     runtime: str = 'NPU'
        ...     zero_points: bool = False
        >>> build_target('npu').stored_bits(4, pack=True)
        8
    """

    def check(self, model: nn.Module) -> None:
        """Check that a network can be exported for this target.

        Args:
            model (nn.Module): Quantized.

        Raises:
            ValueError: If it cannot. The message names the first layer that
                prevents it, and the config key that helps.
        """
        if isinstance(model, BRECQ):
            model = model.architecture
        check_bits(model, self)
        asymmetric = list(self._asymmetric(model))
        if asymmetric:
            first, side = asymmetric[0]
            cures = (
                f'model.quantization.{side}.symmetric=True'
                for side in dict.fromkeys(side for _, side in asymmetric)
            )
            raise ValueError(
                f'{self.title} takes symmetric integers only, and the '
                f'{side} of {first!r} is not: quantize with --target '
                f'{self.name or "NAME"} (`target`), with '
                'mmrazor_brecq.quantize(..., symmetric=True), or with the '
                f'tools and --cfg-options {" ".join(cures)}'
            )
        for name, layer in quant_layers(model).items():
            limits: Any = self.limits(kind_of(layer), 'weight')
            scales = len(layer.weight_quantizer.scale)
            if limits.per_channel is False and scales > 1:
                raise ValueError(
                    f'{self.title} takes one scale for the weight of a '
                    f'layer, and that of {name!r} has {scales}: quantize '
                    f'with --target {self.name or "NAME"} (`target`), or '
                    'with model.quantization.weight.per_channel=False'
                )

    def _asymmetric(self, model: nn.Module) -> Iterator[tuple[str, str]]:
        """Yield layers and units whose zero points may not be in a file.

        Yields:
            tuple[str, str]: The name, and ``weight`` or ``activation``.
        """
        for name in _zero_points(model):
            limits = self.limits(kind_of(model.get_submodule(name)), 'weight')
            if limits is not None and limits.symmetric:
                yield name, 'weight'
        for found in input_quantizers(model):
            if not found.quantizer.active or found.quantizer.grid.symmetric:
                continue
            for layer in found.layers:
                kind = kind_of(model.get_submodule(layer))
                allowed = self.limits(kind, 'activation')
                if allowed is not None and allowed.symmetric:
                    yield layer, 'activation'

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
                f'--pack changes nothing (`pack=True`): {self.title} takes '
                + (
                    f'packed weights of {list(self.packed)} bits, these have '
                    'more'
                    if self.packed
                    else 'no packed weights'
                )
            )
        if 2 in stored:
            found.append(
                'INT2 weights (opset 25) are for storage: of the runtimes '
                'known here only ONNX Runtime loads them, and only with '
                'session.disable_quant_qdq=1 or basic optimization, which '
                'computes in float'
            )
        slow = [
            name
            for name in _zero_points(model)
            if kind_of(model.get_submodule(name)) in self.slow_zero_points
        ]
        if slow:
            found.append(
                f'{len(slow)} layers, {slow[0]!r} first, have 8-bit weights '
                f'with zero points, which {self.title} is slow with; '
                f'{SYMMETRIC}'
            )
        if pack and self.packed_in_float:
            found.append(
                f'{self.title} on a CPU computes with packed weights in '
                'float; without --pack (`pack=True`) it computes in integers'
            )
        return found

    def stored_bits(self, bits: int, pack: bool) -> int:
        """Return the bits that each element of a weight takes in the file.

        Args:
            bits (int): Bits of the weight, 2 to 8.
            pack (bool): Whether packing is asked for.
        """
        fitting = [packed for packed in sorted(self.packed) if bits <= packed]
        return fitting[0] if pack and fitting else 8

    def check_packed(self, model: nn.Module) -> None:
        """Check that weights can be packed: such integers keep zero points.

        Raises:
            ValueError: If they may have none.
        """
        for name, layer in quant_layers(model).items():
            quantizer = layer.weight_quantizer
            limits = self.limits(kind_of(layer), 'weight')
            if (
                limits is not None
                and limits.symmetric
                and self.stored_bits(quantizer.grid.bits, True) < 8
                and quantizer.zero_point.any()
            ):
                raise ValueError(
                    f'{self.title} takes symmetric integers only, and the '
                    f'packed weight of {name!r} is not: leave --pack '
                    '(`pack=True`) out, or quantize with --target '
                    f'{self.name or "NAME"} (`target`)'
                )


def _zero_points(model: nn.Module) -> list[str]:
    """Return the names of layers whose weights keep zero points in a file."""
    return [
        name
        for name, layer in quant_layers(model).items()
        # With fewer bits, the integers less the zero point still fit.
        if layer.weight_quantizer.grid.bits == 8
        and layer.weight_quantizer.zero_point.any()
    ]


def build_target(target: Union[str, Mapping[str, Any], Description]) -> Target:
    """Return the target of a name, of a file or of a description.

    Args:
        target (str | dict): A known name, such as ``onnxruntime``, the path
            of a YAML file, or fields of :class:`Description`.

    Raises:
        FileNotFoundError: If it is the path of no file.
        ValueError: If no target has this name, or the file describes none.
    """
    found: Description = validate(target, TargetConfig, KeyPath('target'))
    return found if isinstance(found, Target) else Target(**vars(found))


__all__ = ['OPSET_OF_PACKED', 'TARGETS', 'Target', 'build_target']
