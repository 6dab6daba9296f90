"""From a quantized network in torch to nodes of ONNX.

A copy of the network gets modules in place of its quantizers that put
QuantizeLinear and DequantizeLinear into the graph, with the integers as
they are: nothing is rounded again, so what was learned survives.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Optional, Union

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..functional import tensors
from ..graph import run_float
from ..layers import quant_layers
from ..quantizers import ActivationQuantizer, WeightQuantizer
from .nodes import LAYER, QUANTIZER, name_calls

#: Operators that all have been there in this opset, and are as they were.
OPSET = 21


def _node(op: str, inputs: tuple, x: Tensor, **kwargs: Any) -> Tensor:
    """One node of ONNX whose output has the shape of ``x``."""
    return torch.onnx.ops.symbolic(
        op, inputs, shape=x.shape, version=OPSET, **kwargs
    )


class WeightNodes(nn.Module):
    """DequantizeLinear on the integers of a layer.

    Args:
        quantizer (WeightQuantizer): The layer's.
        name (str): The layer's name.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: WeightQuantizer, name: str) -> None:
        super().__init__()
        self.name = name
        self.register_buffer('scale', quantizer.scale.clone())
        self.register_buffer('zero_point', quantizer.zero_point.clone())

    def forward(self, weight: Tensor) -> Tensor:
        scale, zero_point = self.scale, self.zero_point
        if len(scale) == 1 and weight.shape[0] > 1:
            scale, zero_point = (
                value.expand(weight.shape[0]) for value in (scale, zero_point)
            )
        return _node(
            'DequantizeLinear',
            (weight, scale, zero_point),
            weight,
            attrs=dict(axis=0),
            dtype=scale.dtype,
            metadata_props={LAYER: self.name},
        )


class ActivationNodes(nn.Module):
    """Clip (below 8 bits), QuantizeLinear and DequantizeLinear.

    The clip comes first, in real numbers, where every runtime takes it;
    its ends are points of the grid, so that it changes nothing else.

    Args:
        quantizer (ActivationQuantizer): Active.
        name (str): Its name.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: ActivationQuantizer, name: str) -> None:
        super().__init__()
        low, high = quantizer.grid.range
        self.name = name
        self.dtype = torch.int8 if low < 0 else torch.uint8
        scale, zero_point = quantizer.scale, int(quantizer.zero_point)
        self.register_buffer('scale', scale.clone())
        self.register_buffer(
            'zero_point', torch.tensor(zero_point, dtype=self.dtype)
        )
        self.ends: Optional[tuple[float, float]] = None
        if quantizer.grid.bits < 8:
            self.ends = (
                float((low - zero_point) * scale),
                float((high - zero_point) * scale),
            )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.ends is not None:
            x = x.clamp(*self.ends)
        scale = self.scale, self.zero_point
        meta = {QUANTIZER: f'{self.name}#{self.calls}'}
        self.calls += 1
        q = _node('QuantizeLinear', (x, *scale), x, dtype=self.dtype)
        return _node(
            'DequantizeLinear',
            (q, *scale),
            x,
            dtype=x.dtype,
            metadata_props=meta,
        )


class Normalise(nn.Module):
    """From images as a file holds them to what the network takes.

    Args:
        preprocessor (nn.Module, optional): Of OpenMMLab, with ``mean`` and
            ``std`` of three channels, and ``to_rgb``.
    """

    mean: Tensor
    std: Tensor
    order: Tensor

    def __init__(self, preprocessor: Any) -> None:
        super().__init__()
        mean = getattr(preprocessor, 'mean', torch.zeros(3))
        std = getattr(preprocessor, 'std', torch.ones(3))
        self.register_buffer('mean', mean.detach().flatten().clone())
        self.register_buffer('std', std.detach().flatten().clone())
        order = [0, 1, 2] if is_rgb(preprocessor) else [2, 1, 0]
        self.register_buffer('order', torch.tensor(order))

    def forward(self, image: Tensor) -> Tensor:
        """Normalise.

        Args:
            image (Tensor): N x H x W x 3, ``uint8``, RGB.

        Returns:
            Tensor: N x 3 x H x W.
        """
        x = image.float().index_select(-1, self.order)
        return ((x - self.mean) / self.std).permute(0, 3, 1, 2)


def is_rgb(preprocessor: Any) -> bool:
    """Whether a network takes its channels as red, green, blue.

    OpenMMLab reads images as blue, green, red; its preprocessors turn them
    round if told to.
    """
    return bool(
        getattr(preprocessor, 'to_rgb', False)
        or getattr(preprocessor, '_channel_conversion', False)
    )


class Plain(nn.Module):
    """A network as one function from images to a tuple of tensors."""

    def __init__(self, network: nn.Module, normalise: Optional[nn.Module]):
        super().__init__()
        self.network = network
        self.normalise = normalise

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.normalise is not None:
            image = self.normalise(image)
        return tuple(tensors(run_float(self.network, image)))


def with_nodes(network: nn.Module) -> nn.Module:
    """A copy whose quantizers put nodes of ONNX into a graph."""
    network = copy.deepcopy(network)
    for name, layer in quant_layers(network).items():
        nodes: Any = WeightNodes(layer.weight_quantizer, name)
        layer.weight_quantizer = nodes
    for name, module in list(network.named_modules()):
        if getattr(module, 'inplace', False):
            # The graph is the same, and torch takes half as long for it.
            module.inplace = False
        if isinstance(module, ActivationQuantizer) and module.active:
            parent, _, child = name.rpartition('.')
            network.get_submodule(parent).add_module(
                child, ActivationNodes(module, name)
            )
    return network


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch tells much of its own workings while it exports."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with contextlib.redirect_stdout(io.StringIO()):
                yield
    finally:
        logging.disable(level)


def trace(
    network: nn.Module,
    example: Tensor,
    batch: Union[str, int] = 'dynamic',
    preprocessor: Any = None,
) -> ir.Model:
    """A network as a model of ONNX, float or quantized.

    Args:
        network (nn.Module): In evaluation mode; it is left as it is.
        example (Tensor): One input or more, N x ..., as the file is to take
            them.
        batch (str | int): ``'dynamic'``, or the number of images.
        preprocessor (nn.Module, optional): Baked in, if given: then the
            input is N x H x W x 3, ``uint8``, RGB.

    Returns:
        ir.Model: With the input ``image`` and the output ``logits``, or
        ``output_0``, ``output_1`` and so on.

    Raises:
        ValueError: If torch cannot export it.
    """
    if not hasattr(torch.onnx, 'ops'):
        raise ImportError(
            f'The export needs torch>=2.8, and found {torch.__version__}'
        )
    normalise = Normalise(preprocessor) if preprocessor is not None else None
    plain = Plain(with_nodes(network), normalise).eval().cpu()
    # One image alone would be taken for a constant of the network.
    count = 2 if batch == 'dynamic' else int(batch)
    example = example[:1].cpu().expand(count, *example.shape[1:]).contiguous()
    dynamic = ({0: torch.export.Dim('batch')},) if batch == 'dynamic' else None
    try:
        with _quiet(), torch.no_grad():
            # By itself first: the exporter to ONNX takes a batch that is no
            # free number for the example's, and says nothing.
            captured = torch.export.export(
                plain, (example,), dynamic_shapes=dynamic, strict=False
            )
            program = torch.onnx.export(
                captured,
                dynamo=True,
                opset_version=OPSET,
                input_names=['image'],
                verbose=False,
            )
    except Exception as error:
        raise ValueError(
            f'{type(network).__name__} cannot be exported: {_reason(error)}'
            + (' Try a fixed --batch (`batch`)' if batch == 'dynamic' else '')
        ) from error
    model = program.model  # type: ignore[union-attr]
    outputs = model.graph.outputs
    single = len(outputs) == 1 and len(outputs[0].shape) == 2
    for i, output in enumerate(outputs):
        output.name = 'logits' if single else f'output_{i}'
    name_calls(model)
    return model


def _reason(error: BaseException) -> str:
    """What went wrong at the root, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if 'Constraints violated' in str(error):
        return 'its code makes a plain number of the number of images.'
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'[:300]
