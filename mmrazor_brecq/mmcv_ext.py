"""Stand-in for ``mmcv._ext``, the compiled module that mmcv-lite lacks.

mmdet and mmsegmentation import all of ``mmcv.ops``, which loads that module,
although most models need ``nms`` and ``roi_align`` of it, or nothing at all.
These two are torchvision's operators here. Every other one can be imported,
and raises an error when it is called.

A config opts in, and nothing happens without that:

.. code-block:: python

    custom_imports = dict(imports=['mmrazor_brecq', 'mmrazor_brecq.mmcv_ext'])

Where mmcv was built with its operators, that module stays as it is.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision
from torch import Tensor

NAME = 'mmcv._ext'


def nms(
    bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """Return the indices of the boxes that non-maximum suppression keeps.

    Args:
        bboxes (Tensor): N x 4, corners as (x1, y1, x2, y2).
        scores (Tensor): N.
        iou_threshold (float): Intersection over union, 0 to 1, above which
            the box with the lower score goes.
        offset (int): 1 if the corners are pixels that belong to the box, so
            that its width is ``x2 - x1 + 1``, else 0.

    Returns:
        Tensor: Indices, those of the highest scores first.
    """
    if offset:
        bboxes = torch.cat([bboxes[:, :2], bboxes[:, 2:] + offset], 1)
    return torchvision.ops.nms(bboxes, scores, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the features of regions, K x C x H x W, into ``output``.

    Args:
        input (Tensor): Maps, N x C x H x W.
        rois (Tensor): K x 5: index of the image, and corners.
        output (Tensor): Written to.
        argmax_y (Tensor): Of maxima; not used.
        argmax_x (Tensor): Of maxima; not used.
        aligned_height (int): Height of the output.
        aligned_width (int): Width of the output.
        spatial_scale (float): Size of a map over that of its image.
        sampling_ratio (int): Samples along a side of a bin, 0 for as many as
            it has pixels.
        pool_mode (int): 1 for the mean of a bin's samples.
        aligned (bool): Whether corners move by half a pixel.

    Raises:
        NotImplementedError: If the maximum is asked for.
    """
    _refuse_maximum(pool_mode)
    output.copy_(
        torchvision.ops.roi_align(
            input,
            rois.to(input),
            (aligned_height, aligned_width),
            spatial_scale,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient at the maps, N x C x H x W, into ``grad_input``.

    The arguments are those of :func:`roi_align_forward`.
    """
    _refuse_maximum(pool_mode)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output,
            rois.to(grad_output),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _refuse_maximum(pool_mode: int) -> None:
    if pool_mode != 1:
        _missing("roi_align with pool_mode='max'")


def _missing(name: str) -> NoReturn:
    raise NotImplementedError(
        f'{name} of mmcv.ops is a compiled operator, and mmcv-lite has none; '
        'mmrazor_brecq.mmcv_ext stands in for nms and roi_align (mean) '
        'alone: build mmcv with ops (https://mmcv.readthedocs.io, "Build '
        'mmcv from source"), and uninstall mmcv-lite, or choose a model '
        'without it'
    )


class _Extension(ModuleType):
    """Module whose unknown names are functions that raise an error."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):  # Python asks for these by itself.
            raise AttributeError(name)

        def operator(*args: Any, **kwargs: Any) -> NoReturn:
            _missing(name)

        return operator


def install() -> ModuleType:
    """Put the stand-in in place, unless mmcv has the compiled module.

    Returns:
        ModuleType: What ``import mmcv._ext`` gives from now on.

    Raises:
        ImportError: If there is no mmcv at all.
    """
    if NAME in sys.modules:
        return sys.modules[NAME]
    try:
        spec = importlib.util.find_spec(NAME)
    except ModuleNotFoundError as error:
        if error.name != 'mmcv':
            raise
        raise ImportError(
            'mmrazor_brecq.mmcv_ext stands in for a part of mmcv, and there '
            "is no mmcv: pip install 'mmrazor_brecq[detection]'"
        ) from error
    if spec is not None:
        return importlib.import_module(NAME)
    module = _Extension(NAME, __doc__)
    # Without a specification, mmengine's loader of configs refuses it.
    module.__spec__ = ModuleSpec(NAME, None)
    for function in (nms, roi_align_forward, roi_align_backward):
        setattr(module, function.__name__, function)
    sys.modules[NAME] = module
    _complete()
    return module


def _complete() -> None:
    """Give mmcv what it left out if it was imported without this module."""
    left = sys.modules.get('mmcv.cnn.bricks.transformer')
    name = 'MultiScaleDeformableAttention'
    if left is not None and not hasattr(left, name):
        source = importlib.import_module('mmcv.ops.multi_scale_deform_attn')
        setattr(left, name, getattr(source, name))


install()
