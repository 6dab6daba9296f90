"""Trace a network in torch, and emit nodes of ONNX for its quantizers.

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
from typing import Optional, Union

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..functional import tensors
from ..graph import run_float
from ..layers import quant_layers
from ..quantizers import ActivationQuantizer, WeightQuantizer
from .nodes import LAYER, QUANTIZER, name_calls

#: The opset that torch emits. All our operators exist in it, and later ones
#: have not changed them.
OPSET = 21


def _node(
    op: str,
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
    axis: Optional[int] = None,
    metadata: Optional[dict[str, str]] = None,
) -> Tensor:
    """Emit one node of ONNX, whose output has the shape of its input.

    Args:
        op (str): Type of the operator.
        inputs (tuple[Tensor]): Its inputs.
        dtype (torch.dtype): Type of the output.
        axis (int, optional): Axis of the scales, where they have one.
        metadata (dict, optional): Metadata of the node.
    """
    return torch.onnx.ops.symbolic(
        op,
        inputs,
        {} if axis is None else dict(axis=axis),
        dtype=dtype,
        shape=inputs[0].shape,
        version=OPSET,
        metadata_props=metadata,
    )


class WeightNodes(nn.Module):
    """DequantizeLinear on the integers of a layer.

    Args:
        quantizer (WeightQuantizer): Of the layer.
        name (str): Name of the layer.
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
            scale.dtype,
            axis=0,
            metadata={LAYER: self.name},
        )


class ActivationNodes(nn.Module):
    """Clip (below 8 bits), QuantizeLinear and DequantizeLinear.

    The clip comes first, on real values, where every runtime takes it. Its
    bounds are points of the grid, so it changes nothing else.

    Args:
        quantizer (ActivationQuantizer): Active.
        name (str): Name of the quantizer.
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
        self.bounds: Optional[tuple[float, float]] = None
        if quantizer.grid.bits < 8:
            self.bounds = (
                float((low - zero_point) * scale),
                float((high - zero_point) * scale),
            )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.bounds is not None:
            x = x.clamp(*self.bounds)
        grid = self.scale, self.zero_point
        metadata = {QUANTIZER: f'{self.name}#{self.calls}'}
        self.calls += 1
        q = _node('QuantizeLinear', (x, *grid), self.dtype)
        return _node(
            'DequantizeLinear', (q, *grid), x.dtype, metadata=metadata
        )


class Normalize(nn.Module):
    """Conversion of images as a file takes them to those of the network.

    Args:
        preprocessor (nn.Module): Of OpenMMLab. Its ``mean`` and ``std`` of
            three channels count, and whether it turns BGR into RGB.
    """

    mean: Tensor
    std: Tensor
    order: Tensor

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        mean = getattr(preprocessor, 'mean', torch.zeros(3))
        std = getattr(preprocessor, 'std', torch.ones(3))
        self.register_buffer('mean', mean.detach().flatten().clone())
        self.register_buffer('std', std.detach().flatten().clone())
        order = [0, 1, 2] if is_rgb(preprocessor) else [2, 1, 0]
        self.register_buffer('order', torch.tensor(order))

    def forward(self, image: Tensor) -> Tensor:
        """Normalize images.

        Args:
            image (Tensor): N x H x W x 3, ``uint8``, RGB.

        Returns:
            Tensor: N x 3 x H x W, float.
        """
        x = image.float().index_select(-1, self.order)
        return ((x - self.mean) / self.std).permute(0, 3, 1, 2)


def is_rgb(preprocessor: nn.Module) -> bool:
    """Return whether a network takes its channels as red, green, blue.

    OpenMMLab reads images as blue, green, red; its preprocessors reverse
    them if they are configured to.

    Args:
        preprocessor (nn.Module): Of OpenMMLab.
    """
    return bool(
        getattr(preprocessor, 'to_rgb', False)
        or getattr(preprocessor, '_channel_conversion', False)
    )


class Plain(nn.Module):
    """A network as one function from images to a tuple of tensors.

    Args:
        network (nn.Module): Any.
        normalize (nn.Module, optional): Applied to the images first.
    """

    def __init__(
        self, network: nn.Module, normalize: Optional[nn.Module]
    ) -> None:
        super().__init__()
        self.network = network
        self.normalize = normalize

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.normalize is not None:
            image = self.normalize(image)
        return tuple(tensors(run_float(self.network, image)))


def with_nodes(network: nn.Module) -> nn.Module:
    """Copy a network, its quantizers replaced by modules that emit nodes.

    Args:
        network (nn.Module): Quantized; it is left as it is.
    """
    network = copy.deepcopy(network)
    for name, layer in quant_layers(network).items():
        layer.add_module(
            'weight_quantizer', WeightNodes(layer.weight_quantizer, name)
        )
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
    """Silence torch, which reports on its own workings while it exports."""
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
    preprocessor: Optional[nn.Module] = None,
) -> ir.Model:
    """Convert a network, float or quantized, to a model of ONNX.

    Args:
        network (nn.Module): In evaluation mode; it is left as it is.
        example (Tensor): N x ... images in the form that the file shall
            take; the first one is used.
        batch (str | int): ``'dynamic'``, or the number of images.
        preprocessor (nn.Module, optional): Becomes part of the file, whose
            input then is N x H x W x 3, ``uint8``, RGB.

    Returns:
        ir.Model: With the input ``image`` and the output ``logits``, or
        ``output_0``, ``output_1`` and so on.

    Raises:
        ImportError: If torch is older than 2.8.
        ValueError: If torch cannot export the network.
    """
    if not hasattr(torch.onnx, 'ops'):
        raise ImportError(
            f'The export needs torch>=2.8, and found {torch.__version__}'
        )
    normalize = Normalize(preprocessor) if preprocessor is not None else None
    plain = Plain(with_nodes(network), normalize).eval().cpu()
    try:
        model = _export(plain, example, batch)
    except Exception as error:
        cure = ' Try a fixed --batch (`batch`)' if batch == 'dynamic' else ''
        raise ValueError(
            f'{type(network).__name__} cannot be exported: '
            f'{_reason(error)}{cure}'
        ) from error
    outputs = model.graph.outputs
    single = len(outputs) == 1 and len(outputs[0].shape) == 2
    for i, output in enumerate(outputs):
        output.name = 'logits' if single else f'output_{i}'
    name_calls(model)
    return model


def _export(plain: Plain, example: Tensor, batch: Union[str, int]) -> ir.Model:
    """Have torch make a model of ONNX; see :func:`trace`."""
    # A batch of one image would be taken for a constant of the network.
    count = 2 if batch == 'dynamic' else int(batch)
    example = example[:1].cpu().expand(count, *example.shape[1:]).contiguous()
    dynamic = ({0: torch.export.Dim('batch')},) if batch == 'dynamic' else None
    with _quiet(), torch.no_grad():
        # In two steps: by itself the exporter to ONNX silently fixes a batch
        # that the network's code makes a constant.
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
    return program.model  # type: ignore[union-attr]


def _reason(error: BaseException) -> str:
    """Return the root cause of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if 'Constraints violated' in str(error):
        return 'its code makes a plain number of the number of images.'
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'[:300]
