"""Post-training quantization of OpenMMLab models by block reconstruction."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ._interrupt import install

install()

from ._requirements import check_requirements  # noqa: E402

check_requirements()

from mmengine.config.utils import MODULE2PACKAGE  # noqa: E402

from .registry import SCOPE  # noqa: E402
from .version import __version__  # noqa: E402

# Where mmengine looks for `_base_ = ['mmrazor_brecq::...']`: in `.mim` beside
# this module. Given the name of the distribution instead, it would look in
# site-packages, where an editable install has nothing.
MODULE2PACKAGE[SCOPE] = f'{__name__}.version'

__all__ = [
    '__version__',
    'export_onnx',
    'finetune',
    'load',
    'quantize',
    'report',
    'save',
]


def __getattr__(name: str) -> Any:
    if name == 'report':
        return import_module(f'{__name__}.report')
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
