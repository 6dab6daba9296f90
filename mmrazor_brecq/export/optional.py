"""Packages that only some need."""

from __future__ import annotations

import importlib
from typing import Any

#: The extra of ours that brings a package.
EXTRAS = {
    'onnx': 'export',
    'onnx_ir': 'export',
    'onnxruntime': 'export',
    'onnxscript': 'export',
    'safetensors': 'export',
    'openvino': 'openvino',
    'nncf': 'openvino',
}


def require(name: str) -> Any:
    """Import an optional package.

    Args:
        name (str): A package of :data:`EXTRAS`, or a module in it.

    Returns:
        ModuleType: The module.

    Raises:
        ImportError: If it is not there; the message names the extra.
    """
    root = name.split('.')[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or '').split('.')[0] != root:
            raise
        raise ImportError(
            f'This needs the package {root!r}, which is not installed: '
            f"pip install 'mmrazor_brecq[{EXTRAS[root]}]'"
        ) from error
