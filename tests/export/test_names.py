"""Outputs of a file have the names that the network has for them."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip('onnx')

from mmrazor_brecq.export.names import output_names  # noqa: E402


@dataclass
class Found:
    depth: Any
    levels: Any


class Head(nn.Module):
    def predict_by_feat(
        self, cls_scores, bbox_preds, objectnesses=None, batch_img_metas=None
    ):
        pass


def a_map():
    return torch.zeros(1, 2, 3, 3)


MAPS = [a_map(), a_map()]


@pytest.mark.parametrize(
    'output, names',
    [
        (
            (MAPS, [a_map(), a_map()], [a_map()]),
            'cls_score_0 cls_score_1 bbox_pred_0 bbox_pred_1 objectness_0',
        ),
        (a_map(), 'cls_scores'),
        ([a_map(), a_map()], 'cls_scores bbox_preds'),
        (dict(a=a_map(), b=[a_map(), a_map()]), 'a b_0 b_1'),
        (Found(a_map(), (a_map(), a_map())), 'depth levels_0 levels_1'),
        (namedtuple('Pair', 'left right')(a_map(), a_map()), 'left right'),
        ({'a-b': a_map()}, 'a_b'),
        # Two of one name, that of the input, and more than the head names.
        ({'a_0': a_map(), 'a': [a_map()]}, 'output_0 output_1'),
        (dict(image=a_map()), 'output_0'),
        ([MAPS, MAPS[:1], [a_map()], [a_map()]], None),
        (torch.zeros(1, 2), 'logits'),
    ],
)
def test_the_head_names_its_outputs(output, names):
    network = nn.Module()
    network.bbox_head = Head()
    found = output_names(network, output)
    if names is None:
        names = ' '.join(f'output_{i}' for i in range(len(found)))
    assert found == names.split()


def test_what_has_no_name_has_a_number():
    assert output_names(nn.Module(), MAPS) == ['output_0', 'output_1']
