"""Quantized checkpoints: written whole, loaded if they belong to a model."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from .._requirements import require
from ..algorithms import BRECQ
from ..functional import pack_extra
from ..layers import quant_layers
from ..version import __version__
from .files import save_tensors, write_whole
from .format import encode
from .io import SAFETENSORS, named, read_checkpoint
from .meta import check_meta, check_names, short
from .values import (
    MARK,
    check_input_shape,
    check_tensors,
    check_values,
    unfitted_activations,
)


def check_quantized(model: Any) -> None:
    """See that a model is what a quantization ends with.

    Args:
        model (BRECQ): What is to be saved or exported.

    Raises:
        ValueError: If it is a float network, one whose quantizers were
            placed but never fitted, or only some of them.
    """
    cure = (
        'give what mmrazor_brecq.quantize or mmrazor_brecq.load returned, '
        'or reconstruct it to the end'
    )
    if not isinstance(model, BRECQ):
        raise ValueError(
            f'The model is a {type(model).__name__}, expected a quantized '
            f'BRECQ: {cure}'
        )
    if not model.prepared:
        raise ValueError(
            f'The BRECQ of a {type(model.architecture).__name__} holds the '
            f'float network still: {cure}'
        )
    layers = quant_layers(model.architecture)
    left = [name for name, layer in layers.items() if not layer.frozen]
    if left:
        raise ValueError(
            f'{len(left)} of {len(layers)} layers, {left[0]!r} first, have '
            f'real weights: not reconstructed yet; {cure}'
        )


def check_describable(model: BRECQ) -> None:
    """See that what made a model can be said in a file, before any work.

    Raises:
        ValueError: If it is no plain Python, or of another form.
    """
    try:
        meta = dict(
            quantization=model.scheme.to_dict(),
            partition=json.loads(json.dumps(model.partition_cfg)),
        )
    except TypeError as error:
        raise ValueError(
            'model.quantization and model.partition have to be plain Python '
            f'to be kept in a checkpoint ({error}): name a registered type '
            'in place of a class'
        ) from error
    check_meta(meta)


def save_quantized(model: BRECQ, meta: dict[str, Any], path: str) -> None:
    """Write a quantized network as integers of its bits.

    Args:
        model (BRECQ): Reconstructed.
        meta (dict): More that is to be known of it, plain Python; what
            made it, its bits, and what :func:`load_quantized` needs are
            added.
        path (str): A file; one that ends in ``.safetensors`` becomes one.

    Raises:
        ValueError: If it is not quantized, or not to its end.
    """
    check_quantized(model)
    layers = quant_layers(model)
    widths = {
        f'{name}.weight': layer.weight_quantizer.grid.bits
        for name, layer in layers.items()
        if layer.frozen
    }
    meta = dict(
        meta,
        mmrazor_brecq=__version__,
        bits={name: list(bits) for name, bits in model.bits.items()},
        quantization=model.scheme.to_dict(),
        partition=model.partition_cfg,
        unfitted=unfitted_activations(model),
    )
    content = encode(pack_extra(model.state_dict()), widths, meta)
    if path.endswith(SAFETENSORS):
        write_whole(path, require('safetensors.torch').save(content))
    else:
        save_tensors(content, path)


def read_quantized(path: str) -> dict[str, Any]:
    """Read a quantized checkpoint.

    Args:
        path (str): What ``tools/ptq.py`` wrote.

    Returns:
        dict: ``state_dict`` and ``meta``.

    Raises:
        ValueError: If it is a float checkpoint.
    """
    checkpoint = dict(dict(meta={}), **read_checkpoint(path))
    if MARK not in checkpoint['state_dict']:
        raise ValueError(
            f'{path!r} is a float checkpoint: quantize it with '
            'tools/ptq.py first'
        )
    with named(path):
        check_meta(checkpoint['meta'])
        check_tensors(checkpoint['state_dict'])
        check_input_shape(checkpoint['state_dict'][MARK])
    return checkpoint


def build_quantized(network: nn.Module, path: str) -> BRECQ:
    """Build a model as a file describes it, and load the file into it.

    Args:
        network (nn.Module): The float network, which becomes part of it.
        path (str): What ``tools/ptq.py`` or ``mmrazor_brecq.save`` wrote.

    Returns:
        BRECQ: In evaluation mode.

    Raises:
        ValueError: If the file names what is not registered, or is no
            quantized checkpoint of the network.
    """
    checkpoint = read_quantized(path)
    meta = checkpoint['meta']
    with named(path):
        check_names(meta)
        try:
            model = BRECQ(
                network, meta['quantization'], meta.get('partition')
            ).eval()
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f'nothing can be built of its meta ({error})'
            ) from error
    _load(model, checkpoint, path)
    return model


def load_quantized(model: BRECQ, path: str) -> dict[str, Any]:
    """Load a quantized checkpoint into a freshly built model.

    Args:
        model (BRECQ): Built from the config of the run.
        path (str): What ``tools/ptq.py`` wrote.

    Returns:
        dict: The checkpoint's ``meta``.

    Raises:
        ValueError: If it is a float checkpoint, or one of another config,
            or holds values that no network can have.
    """
    checkpoint = read_quantized(path)
    meta = checkpoint['meta']
    before = meta.get('quantization') or {}
    own = model.scheme.to_dict()
    other = [key for key in before if before[key] != own.get(key)]
    if other:
        raise ValueError(
            f'{path!r} was quantized with model.quantization.{other[0]} = '
            f'{short(before[other[0]])}, the config says '
            f'{own.get(other[0])}: use the config of its run'
        )
    if meta.get('partition') not in (None, model.partition_cfg):
        with named(path):
            check_names(dict(meta, quantization=before))
    _load(model, checkpoint, path)
    return meta


def _load(model: BRECQ, checkpoint: dict[str, Any], path: str) -> None:
    try:
        model.load_state_dict(checkpoint['state_dict'])
    except RuntimeError as error:
        raise ValueError(
            f'{path!r} does not belong to this config: '
            f'{_second_line(error)} Use the config that lies beside the '
            'checkpoint'
        ) from error
    except ValueError as error:
        raise ValueError(f'{path!r}: {error}') from error
    with named(path):
        check_values(model, checkpoint['meta'].get('unfitted'))


def _second_line(error: Exception) -> str:
    """What torch says first of the keys, cut to a readable length."""
    lines = str(error).splitlines()
    return lines[min(1, len(lines) - 1)].strip()[:300]
