"""Trace a network in torch into a model of ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Optional, Union

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..functional import tensors
from ..graph import run_float
from .names import output_names
from .nodes import name_calls
from .quantizer_nodes import OPSET, with_nodes


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
        return tuple(tensors(self.output(image)))

    def output(self, image: Tensor) -> Any:
        """Return what the network puts out."""
        if self.normalize is not None:
            image = self.normalize(image)
        return run_float(self.network, image)


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
        ir.Model: With the input ``image``, and outputs that have the names
        of :func:`output_names`.

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
    with torch.no_grad():
        found = Plain(network, normalize).output(example[:1].cpu())
    names = output_names(network, found)
    for output, name in zip(model.graph.outputs, names):
        output.name = name
    name_calls(model)
    return model


def _export(plain: Plain, example: Tensor, batch: Union[str, int]) -> ir.Model:
    """Have torch make a model of ONNX; see :func:`trace`."""
    return to_onnx(plain, [example], ['image'], batch)


def to_onnx(
    module: nn.Module,
    examples: Sequence[Tensor],
    names: Sequence[str],
    batch: Union[str, int],
) -> ir.Model:
    """Have torch make a model of ONNX of a module.

    Args:
        module (nn.Module): In evaluation mode, on the CPU.
        examples (list[Tensor]): N x ... arguments; the first element of
            each is used.
        names (list[str]): Names of the inputs.
        batch (str | int): ``'dynamic'``, or the number of images.
    """
    # A batch of one image would be taken for a constant of the network.
    count = 2 if batch == 'dynamic' else int(batch)
    args = tuple(
        x[:1].detach().cpu().expand(count, *x.shape[1:]).contiguous()
        for x in examples
    )
    dynamic: Any = None
    if batch == 'dynamic':
        dynamic = tuple({0: torch.export.Dim('batch')} for _ in args)
        if not isinstance(module, Plain):  # It takes any number of tensors.
            dynamic = (dynamic,)
    with _quiet(), torch.no_grad():
        # In two steps: by itself the exporter to ONNX silently fixes a batch
        # that the network's code makes a constant.
        captured = torch.export.export(
            module, args, dynamic_shapes=dynamic, strict=False
        )
        program = torch.onnx.export(
            captured,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
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
