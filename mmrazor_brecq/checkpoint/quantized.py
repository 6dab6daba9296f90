"""Write quantized checkpoints, and load them into models they fit."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from .._requirements import require
from ..algorithms import BRECQ
from ..functional import pack_extra
from ..graph import QuantizationScheme
from ..layers import quant_layers
from ..version import __version__
from .files import save_tensors, write_whole
from .fit import misfit
from .format import encode
from .io import SAFETENSORS, errors_name, read_checkpoint
from .meta import abbreviate, check_meta, check_names
from .values import (
    QUANTIZED_KEY,
    check_input_shape,
    check_tensors,
    check_values,
    unfitted_activations,
)


def check_quantized(model: nn.Module) -> None:
    """Check that the quantization of a model is complete.

    Args:
        model (BRECQ): The model to save or to export.

    Raises:
        ValueError: If the model is a float network, or if some of its
            layers are not yet reconstructed.
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
            f'The BRECQ of a {type(model.architecture).__name__} still has '
            f'the float network: {cure}'
        )
    layers = quant_layers(model.architecture)
    left = [name for name, layer in layers.items() if not layer.frozen]
    if left:
        raise ValueError(
            f'{len(left)} of {len(layers)} layers, {left[0]!r} first, have '
            f'float weights: not reconstructed yet; {cure}'
        )


def check_describable(model: BRECQ) -> None:
    """Check that a checkpoint can describe the config of a model.

    Raises:
        ValueError: If the config is not plain Python.
    """
    try:
        meta = dict(
            quantization=model.scheme.to_dict(),
            partition=json.loads(json.dumps(model.partition_cfg)),
        )
    except TypeError as error:
        raise ValueError(
            'model.quantization and model.partition have to be plain Python '
            f'to be saved in a checkpoint ({error}): give the name of a '
            'registered type in place of a class'
        ) from error
    check_meta(meta)


def save_quantized(model: BRECQ, meta: dict[str, Any], path: str) -> None:
    """Write a quantized network, with its integers packed to their bits.

    Args:
        model (BRECQ): A reconstructed model.
        meta (dict): Additional metadata of plain Python. The version, the
            bit widths and what :func:`load_quantized` needs are added.
        path (str): The file. If it ends in ``.safetensors``, it is written
            in that format, else in that of torch.

    Raises:
        ValueError: If the quantization of the model is not complete.
    """
    check_quantized(model)
    layers = quant_layers(model)
    weight_bits = {
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
    content = encode(pack_extra(model.state_dict()), weight_bits, meta)
    if path.endswith(SAFETENSORS):
        write_whole(path, require('safetensors.torch').save(content))
    else:
        save_tensors(content, path)


def is_quantized(path: str, trust: bool = False) -> bool:
    """Return whether a file is a quantized checkpoint, not a float one.

    Args:
        path (str): The file.
        trust (bool): As for :func:`read_checkpoint`, whose errors it raises.
    """
    return QUANTIZED_KEY in read_checkpoint(path, trust)['state_dict']


def read_quantized(path: str) -> dict[str, Any]:
    """Read and check a quantized checkpoint.

    Args:
        path (str): A file of ``tools/ptq.py`` or ``mmrazor_brecq.save``.

    Returns:
        dict: ``state_dict`` and ``meta``.

    Raises:
        ValueError: If it is a float checkpoint, or no valid one.
    """
    checkpoint = {'meta': {}, **read_checkpoint(path)}
    if QUANTIZED_KEY not in checkpoint['state_dict']:
        raise ValueError(
            f'{path!r} is a float checkpoint: quantize the network first, '
            'with tools/ptq.py or mmrazor_brecq.quantize'
        )
    with errors_name(path):
        check_meta(checkpoint['meta'])
        check_tensors(checkpoint['state_dict'])
        check_input_shape(checkpoint['state_dict'][QUANTIZED_KEY])
    return checkpoint


def build_quantized(network: nn.Module, path: str) -> BRECQ:
    """Build the model that a checkpoint describes, and load it.

    Args:
        network (nn.Module): The float network. It becomes a part of the
            model.
        path (str): A file of ``tools/ptq.py`` or ``mmrazor_brecq.save``.

    Returns:
        BRECQ: The quantized model, in evaluation mode.

    Raises:
        ValueError: If the file names a part that is not registered, or is
            no quantized checkpoint of the network.
    """
    checkpoint = read_quantized(path)
    meta = checkpoint['meta']
    with errors_name(path):
        check_names(meta)
        try:
            model = BRECQ(
                network, meta['quantization'], meta.get('partition')
            ).eval()
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f'no model can be built from its meta ({error})'
            ) from error
    _load(model, checkpoint, path)
    return model


def load_quantized(model: BRECQ, path: str) -> dict[str, Any]:
    """Load a quantized checkpoint into a freshly built model.

    Args:
        model (BRECQ): A model from the config of the run.
        path (str): A file of ``tools/ptq.py``.

    Returns:
        dict: The ``meta`` of the checkpoint.

    Raises:
        ValueError: If it is a float checkpoint, if it belongs to another
            config, or if it has values that no network can have.
    """
    checkpoint = read_quantized(path)
    meta = checkpoint['meta']
    before = meta.get('quantization') or {}
    expected = model.scheme.to_dict()
    other = [key for key in before if before[key] != expected.get(key)]
    if model.target is not None:  # The scheme became what the device allows.
        other = [
            key
            for key in other
            if key in model.given and not _holds(before[key], expected[key])
        ]
    if other:
        raise ValueError(
            f'{path!r} was quantized with model.quantization.{other[0]} = '
            f'{abbreviate(before[other[0]])}, the config has '
            f'{expected.get(other[0])}: use the config of its run'
        )
    if model.target is not None and before:
        with errors_name(path):
            check_names(meta)
            model.scheme = QuantizationScheme(**before)
    if meta.get('partition') not in (None, model.partition_cfg):
        with errors_name(path):
            check_names(dict(meta, quantization=before))
    _load(model, checkpoint, path)
    return meta


def _holds(before: object, asked: object) -> bool:
    """Return whether a setting has what a config asks for, and maybe more."""
    if not isinstance(before, dict) or not isinstance(asked, dict):
        return before == asked
    return all(k in before and _holds(before[k], v) for k, v in asked.items())


def _load(model: BRECQ, checkpoint: dict[str, Any], path: str) -> None:
    """Load a checkpoint that :func:`read_quantized` returned."""
    problem = misfit(model.architecture, checkpoint['state_dict'])
    if problem:
        raise ValueError(
            f'{path!r} does not belong to this config or network: {problem}. '
            'Give the network that was quantized, or the config in the folder '
            'of the checkpoint'
        )
    try:
        model.load_state_dict(checkpoint['state_dict'])
    except RuntimeError as error:
        raise ValueError(
            f'{path!r} does not belong to this config: '
            f'{_second_line(error)} Use the config in the folder of the '
            'checkpoint'
        ) from error
    except ValueError as error:
        raise ValueError(f'{path!r}: {error}') from error
    with errors_name(path):
        check_values(model, checkpoint['meta'].get('unfitted'))


def _second_line(error: Exception) -> str:
    """Return the line in which torch names keys, cut to 300 letters."""
    lines = str(error).splitlines()
    return lines[min(1, len(lines) - 1)].strip()[:300]
