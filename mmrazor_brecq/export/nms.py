"""Put a detector's decoding and ONNX's own suppression behind its maps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Union

import onnx
import onnx_ir as ir
import torch
from onnx import parser
from torch import Tensor, nn

from ..functional import flatten, tensors
from ..graph import run_float
from .detections import decoder_of
from .quantizer_nodes import OPSET
from .rewrite import tidy
from .session import open_session, run, to_bytes
from .trace import to_onnx

#: Outputs of a file with boxes, and of what is before the suppression.
OUTPUTS = 'boxes', 'scores', 'labels'
CANDIDATES = 'all_boxes', 'all_scores', 'all_labels', 'apart'
#: From P candidates to the M best boxes that are left of each image. A place
#: without a box has score 0 and class -1.
SELECT = """
<ir_version: 10, opset_import: ["" : {opset}]>
select (
    float[N,P,4] all_boxes, float[N,P] all_scores,
    int64[N,P] all_labels, float[N,P,4] apart
) => (float[N,M,4] found, float[N,M] best, int64[N,M] classes)
<int64[1] one = {{1}}, int64[1] two = {{2}}, int64[2] columns = {{0, 2}},
 int64[1] most = {{{most}}}, float iou = {{{iou}}}, float zero = {{0}},
 int64 none = {{-1}}>
{{
    by_class = Unsqueeze(all_scores, one)
    left = NonMaxSuppression(apart, by_class, most, iou, zero)
    place = Gather<axis = 1>(left, columns)
    kept = GatherND(all_scores, place)
    shape = Shape(all_scores)
    nothing = ConstantOfShape(shape)
    all = ScatterND(nothing, place, kept)
    best, index = TopK<axis = 1>(all, most)
    of_all = GatherElements<axis = 1>(all_labels, index)
    is_box = Greater(best, zero)
    classes = Where(is_box, of_all, none)
    index_of_box = Unsqueeze(index, two)
    rows = GatherND<batch_dims = 1>(all_boxes, index_of_box)
    is_row = Unsqueeze(is_box, two)
    found = Where(is_row, rows, zero)
}}
"""


def with_boxes(
    network: nn.Module,
    model: ir.Model,
    example: Tensor,
    batch: Union[str, int],
) -> ir.Model:
    """Return a model whose outputs are boxes in place of a head's maps.

    Args:
        network (nn.Module): A detector that :func:`decoder_of` knows.
        model (ir.Model): Made from it, with the maps as outputs; it is left
            as it is.
        example (Tensor): 1 x C x H x W, any that the network takes.
        batch (str | int): ``'dynamic'``, or the number of images.

    Returns:
        ir.Model: With the outputs of :func:`decoding`.

    Raises:
        ValueError: As :func:`decoder_of`.
    """
    names = [value.name for value in model.graph.outputs]
    decode = decoding(network, example, names, batch)
    return _with_outputs(_joined(ir.to_proto(model), decode, 'decode/', names))


def decoding(
    network: nn.Module,
    example: Tensor,
    names: Sequence[str],
    batch: Union[str, int],
) -> onnx.ModelProto:
    """Return what makes boxes of the maps of a detector's head.

    Args:
        network (nn.Module): A detector that :func:`decoder_of` knows.
        example (Tensor): 1 x C x H x W, any that the network takes.
        names (list[str]): Names of the maps, which are the inputs.
        batch (str | int): ``'dynamic'``, or the number of images.

    Returns:
        onnx.ModelProto: With the outputs ``boxes``, N x M x 4 (left, top,
        right, bottom, in pixels of the images), ``scores`` and ``labels``,
        N x M, the best first. Where an image has fewer, the score is 0 and
        the class -1.

    Raises:
        ValueError: As :func:`decoder_of`.
    """
    decoder = decoder_of(network)
    with torch.no_grad():
        maps = tensors(run_float(network, example))
    head = copy.deepcopy(network.get_submodule('bbox_head')).cpu().eval()
    height, width = example.shape[-2:]
    candidates = decoder(head, maps, (height, width)).eval()
    model = to_onnx(candidates, maps, names, batch)
    for value, name in zip(model.graph.outputs, CANDIDATES):
        value.name = name
    tidy(model)
    count = int(model.graph.outputs[1].shape[1])
    select = parser.parse_model(
        SELECT.format(
            opset=OPSET,
            most=min(candidates.most, count),
            iou=candidates.iou_threshold,
        )
    )
    joined = _joined(ir.to_proto(model), select, 'select/', CANDIDATES)
    return ir.to_proto(_with_outputs(joined))


def _with_outputs(model: onnx.ModelProto) -> ir.Model:
    """Return a model whose outputs have the names of :data:`OUTPUTS`."""
    found = ir.from_proto(model)
    for value, name in zip(found.graph.outputs, OUTPUTS):
        value.name = name
    return found


def _joined(
    first: onnx.ModelProto,
    second: onnx.ModelProto,
    name: str,
    values: Sequence[str],
) -> onnx.ModelProto:
    """Put a model behind another one.

    Args:
        first (onnx.ModelProto): Puts the values out.
        second (onnx.ModelProto): Takes them, by the same names.
        name (str): Prefix of the names in the second model.
        values (list[str]): Their names.
    """
    second = copy.deepcopy(second)
    second.ir_version = first.ir_version
    del second.opset_import[:]
    second.opset_import.extend(first.opset_import)
    second.metadata_props.clear()
    second = onnx.compose.add_prefix(second, name)
    return onnx.compose.merge_models(
        first, second, [(x, name + x) for x in values]
    )


@torch.no_grad()
def compare_boxes(
    network: nn.Module,
    model: ir.Model,
    boxed: ir.Model,
    images: Tensor,
    example: Tensor,
) -> dict[str, int]:
    """Compare a file's boxes with those of torch, from the same maps.

    Args:
        network (nn.Module): The detector, as for :func:`with_boxes`.
        model (ir.Model): With maps as outputs.
        boxed (ir.Model): With boxes as outputs, made from it.
        images (Tensor): Images in the form that the file takes.
        example (Tensor): 1 x C x H x W, any that the network takes.

    Returns:
        dict: The number of ``images``, that of ``boxes`` that torch has, and
        how many of these are ``equal``: the file has one of the same class,
        at the same place but for a tenth of a pixel, with the same score
        but for 0.001. Of equal scores some may be cut off, so the lowest
        score does not count.
    """
    maps, found = (
        [
            torch.from_numpy(x)
            for x in run(open_session(to_bytes(m), fused=False), images)
        ]
        for m in (model, boxed)
    )
    leaves, rebuild = flatten(run_float(network, example))
    rest = iter(maps)
    outputs = rebuild(
        [next(rest) if isinstance(x, Tensor) else x for x in leaves]
    )
    head: Any = network.get_submodule('bbox_head')
    about = dict(img_shape=tuple(example.shape[-2:]))
    total = equal = 0
    expected = head.predict_by_feat(
        *outputs, batch_img_metas=[about] * len(images)
    )
    for image, known in zip(zip(*found), expected):
        boxes, scores, labels = image
        known = known[: len(scores)]
        known = known[known.scores > known.scores.min().item() + 1e-3]
        same = (
            ((known.bboxes[:, None] - boxes).abs() < 0.1).all(-1)
            & ((known.scores[:, None] - scores).abs() < 1e-3)
            & (known.labels[:, None] == labels)
        )
        total, equal = total + len(known), equal + int(same.any(1).sum())
    return dict(images=len(images), boxes=total, equal=equal)
