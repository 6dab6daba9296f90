"""Decode the maps of a detector's dense head to boxes, inside the file.

What a head of mmdet computes from its maps goes through Python lists of as
many boxes as are left. Here each step has a fixed number of them, so that it
can be a part of the file, and what is dropped has a score of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

#: Boxes of an image where the config has no ``max_per_img``.
MOST_BOXES = 300
#: Keys of ``test_cfg.nms`` that are known here; the last one only says when
#: mmcv computes the same piece by piece.
NMS_KEYS = frozenset({'type', 'iou_threshold', 'class_agnostic', 'split_thr'})
OPTION = '--with-postprocess (`postprocess=True`)'


class Candidates(nn.Module):
    """The boxes of a dense head that non-maximum suppression chooses from.

    As ``BaseDenseHead`` of mmdet: the best pairs of place and class of each
    level count, scores are multiplied by a factor where the head has one.

    Args:
        head (nn.Module): The head, in evaluation mode.
        maps (list[Tensor]): Its output maps for any images, N x C x H x W.
        size (tuple[int, int]): Height and width of the images, in pixels.
    """

    #: Whether the priors are points with their strides.
    with_stride = False

    def __init__(
        self,
        head: Any,
        maps: Sequence[Tensor],
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.head, self.size = head, size
        self.cfg = dict(head.test_cfg)
        self.levels = head.prior_generator.num_levels
        priors = head.prior_generator.grid_priors(
            [m.shape[-2:] for m in maps[: self.levels]],
            dtype=maps[0].dtype,
            device='cpu',
            **(dict(with_stride=True) if self.with_stride else {}),
        )
        for level, prior in enumerate(priors):
            prior = getattr(prior, 'tensor', prior)
            self.register_buffer(f'priors_{level}', prior)

    @property
    def iou_threshold(self) -> float:
        """Overlap, 0 to 1, from which on the worse of two boxes is dropped."""
        return float(self.cfg['nms']['iou_threshold'])

    @property
    def most(self) -> int:
        """Most boxes of an image."""
        return int(self.cfg.get('max_per_img') or MOST_BOXES)

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode maps.

        Args:
            maps (list[Tensor]): Those of all levels with the scores of
                classes, then likewise those of boxes, then of factors.

        Returns:
            tuple[Tensor]: N x P x 4 boxes (left, top, right, bottom, in
            pixels), N x P scores, N x P classes, and the boxes again, those
            of different classes moved apart.
        """
        lists = [
            maps[i : i + self.levels] for i in range(0, len(maps), self.levels)
        ]
        parts = [
            self._of_level(i, *(self._rows(x) for x in level))
            for i, level in enumerate(zip(*lists))
        ]
        boxes, scores, labels = (torch.cat(x, 1) for x in zip(*parts))
        least = self.cfg.get('min_bbox_size', -1)
        if least >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = scores * (sides > least).all(-1)
        apart = boxes
        if not self.cfg['nms'].get('class_agnostic', False):
            reach = boxes.amax((1, 2)) - boxes.amin((1, 2)) + 1
            apart = boxes + (labels * reach[:, None])[..., None]
        return boxes, scores, labels, apart

    def _rows(self, x: Tensor) -> Tensor:
        """Return a map as N x HW x C."""
        return x.permute(0, 2, 3, 1).flatten(1, 2)

    def _of_level(
        self, level: int, cls: Tensor, box: Tensor, *factors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and classes of one level.

        Args:
            level (int): Its index.
            cls (Tensor): N x HW x AK scores, for A priors at each place.
            box (Tensor): N x HW x AD deltas.
            factors (Tensor): N x HW x A logits of a factor, or none.
        """
        priors = self.get_buffer(f'priors_{level}')
        count = len(priors)
        scores = self._chances(cls.flatten(1).unflatten(1, (count, -1)))
        classes = scores.shape[-1]
        best, index = self._best(scores.flatten(1))
        place = torch.div(index, classes, rounding_mode='floor')
        labels = index - place * classes
        deltas = box.flatten(1).unflatten(1, (count, -1))
        deltas = deltas.gather(
            1, place[..., None].expand(-1, -1, deltas.shape[-1])
        )
        boxes = self._decode(
            level, priors[place].flatten(0, 1), deltas.flatten(0, 1)
        )
        kept = best > self.cfg.get('score_thr', 0)
        for factor in factors:
            best = best * factor.flatten(1).sigmoid().gather(1, place)
        return boxes.view(*place.shape, 4), best * kept, labels

    def _chances(self, logits: Tensor) -> Tensor:
        """Return the chances of classes, N x P x K."""
        head = self.head
        loss: Any = getattr(head, 'loss_cls', None)
        if getattr(loss, 'custom_cls_channels', False):
            return loss.get_activation(logits)
        if head.use_sigmoid_cls:
            return logits.sigmoid()
        return logits.softmax(-1)[..., :-1]

    def _best(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best of N x P scores and their indices."""
        most = self.cfg.get('nms_pre', -1)
        count = scores.shape[1]
        return scores.topk(min(most, count) if most > 0 else count)

    def _decode(self, level: int, priors: Tensor, deltas: Tensor) -> Tensor:
        """Return M x 4 boxes of M priors."""
        boxes = self.head.bbox_coder.decode(
            priors, deltas, max_shape=self.size
        )
        return getattr(boxes, 'tensor', boxes)


class IntegralCandidates(Candidates):
    """As ``GFLHead``, whose sides are distributions over distances."""

    def _decode(self, level: int, priors: Tensor, deltas: Tensor) -> Tensor:
        stride = self.head.prior_generator.strides[level][0]
        sides = self.head.integral(deltas) * stride
        return super()._decode(level, self.head.anchor_center(priors), sides)


class PointCandidates(Candidates):
    """As ``YOLOXHead``: each place counts once, with its best class."""

    with_stride = True
    most = MOST_BOXES  # It keeps all that are left.

    def _of_level(
        self, level: int, cls: Tensor, box: Tensor, *factors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        priors = self.get_buffer(f'priors_{level}')
        best, labels = cls.sigmoid().max(-1)
        best = best * factors[0].sigmoid()[..., 0]
        boxes = self.head._bbox_decode(priors, box)
        kept = best >= self.cfg.get('score_thr', 0)
        return boxes, best * kept, labels


#: How a head is decoded, by the classes of mmdet whose ``predict_by_feat``,
#: ``_predict_by_feat_single`` and ``_bbox_post_process`` it has.
DECODERS: Mapping[tuple[Optional[str], ...], type[Candidates]] = {
    ('BaseDenseHead', 'BaseDenseHead', 'BaseDenseHead'): Candidates,
    ('BaseDenseHead', 'GFLHead', 'BaseDenseHead'): IntegralCandidates,
    ('YOLOXHead', 'BaseDenseHead', 'YOLOXHead'): PointCandidates,
}
DECODING = 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process'


def decoder_of(network: nn.Module) -> type[Candidates]:
    """Return what decodes the maps of a detector.

    Args:
        network (nn.Module): Any network.

    Raises:
        ValueError: If its decoding cannot be a part of the file. The message
            names what it is that cannot.
    """
    head: Any = getattr(network, 'bbox_head', None)
    single = _origin(network, 'predict') == 'SingleStageDetector'
    name = type(network).__name__
    if head is None or not single:
        raise _refusal(f'{name} is no single-stage detector of mmdet')
    decoder = DECODERS.get(tuple(_origin(head, x) for x in DECODING))
    if decoder is None or _origin(head, 'predict') != 'BaseDenseHead':
        raise _refusal(
            f'{type(head).__name__}, the head of {name}, decodes its maps in '
            'a way of its own'
        )
    cfg = dict(head.test_cfg or {})
    nms = dict(cfg.get('nms') or dict(type=None))
    if nms.get('type', 'nms') != 'nms' or not NMS_KEYS >= nms.keys():
        raise _refusal(
            f'`test_cfg.nms` of {name} is {cfg.get("nms")}, and ONNX has '
            "dict(type='nms', iou_threshold=...) alone"
        )
    coder = getattr(head, 'bbox_coder', None)
    if getattr(coder, 'encode_size', 4) != 4:
        raise _refusal(f'the boxes of {name} are rotated')
    return decoder


def _refusal(reason: str) -> ValueError:
    return ValueError(
        f'{OPTION}: {reason}; expected a dense head that decodes as '
        'RetinaNet, FCOS, ATSS, GFL, RTMDet or YOLOX. Without the option the '
        "file has the head's maps"
    )


def _origin(module: nn.Module, method: str) -> Optional[str]:
    """Return the class of mmdet that a module has a method from, if any."""
    if method in vars(module):
        return None
    for cls in type(module).__mro__:
        if method in vars(cls):
            of_mmdet = cls.__module__.split('.')[0] == 'mmdet'
            return cls.__name__ if of_mmdet else None
    return None
