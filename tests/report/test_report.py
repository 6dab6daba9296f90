from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.reconstruction import UnitReport
from mmrazor_brecq.report import (
    UnitProgress,
    closing_table,
    export_table,
    main_metric,
    setback,
    weight_bytes,
)


def test_weight_bytes_follow_from_the_bits():
    model = BRECQ(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, bias=False)),
        quantization=dict(
            bit_overrides={'0': dict(weight=8), '1': dict(weight=2)}
        ),
    ).eval()
    model.prepare(torch.zeros(1, 3, 8, 8))
    sizes = weight_bytes(model)
    assert sizes['float'] == 4 * (4 * 27 + 4 + 8 * 36)
    assert sizes['quantized'] == (4 * 27 + 5 * 4 + 4 * 4 + 8 * 36 // 4 + 5 * 8)


def test_closing_table_has_all_models():
    top = {'accuracy/top1': 90.126, 'accuracy/top5': 99.0}
    table = closing_table(
        dict(
            float=top,
            nearest={**top, 'accuracy/top1': 50.0},
            quantized={**top, 'accuracy/top1': 89.5},
            weight_bytes=dict(float=4000, quantized=500),
            seconds=dict(reconstruct=3.0, total=5.0),
            peak_memory_mb=100,
            activations_mb=dict(budget=None, held=70, spilled=20),
            units=[dict(accepted=True), dict(accepted=False)],
            account=dict(summary='6 of 7 layers quantized; up is not'),
        )
    )
    for text in (
        *('90.13', '50.00', '89.50', '4,000', '1 of', '2 units'),
        '6 of 7 layers quantized; up is not',
    ):
        assert text in table


def layer(name, exact, ties=0.0, within=1.0):
    return dict(name=name, exact=exact, ties=ties, within=within, largest=0.6)


@pytest.mark.parametrize(
    'layers, words, without',
    [
        ([], '', 'Layer by layer'),
        (
            [layer('a', 1.0), layer('b', 1.0)],
            '2 of 2 give the same integers throughout',
            'furthest',
        ),
        (
            [layer('a', 1.0), layer('b', 0.99, ties=0.008, within=0.99999)],
            '1 of 2 give the same integers throughout; of the others at least '
            '99.99% differ by at most one; furthest is b, 99.00% equal and '
            '0.80% ties',
            'furthest is a',
        ),
        ([layer('a', 0.97), layer('b', 0.99)], 'is a, 97.00% equal', 'ties'),
    ],
)
def test_the_table_of_an_export_says_how_layers_differ(layers, words, without):
    match = dict.fromkeys(
        ('agreement', 'largest', 'mean', 'accuracy', 'accuracy_torch'), 0.5
    )
    table = export_table(
        dict(
            matches=[dict(match, runtime='ONNX Runtime', images=8)],
            layers=layers,
            refused={},
            operators={},
            float_convolutions={},
        )
    )
    text = ' '.join(table.split())
    assert words in text and without not in text


def test_a_table_without_metrics_says_so_and_has_the_divergence():
    table = closing_table(
        dict(
            **dict.fromkeys(('float', 'nearest', 'quantized'), {}),
            weight_bytes=dict(float=4000, quantized=500),
            divergence=dict(nearest=0.125, quantized=0.0625),
            seconds=dict(reconstruct=3.0, total=5.0),
            peak_memory_mb=100,
            activations_mb=dict(budget=None, held=70, spilled=20),
            units=[dict(accepted=True)],
        )
    )
    words = ' '.join(table.split())
    assert 'accuracy was not measured' in words and '4,000' in words
    assert '0.125 nats with nearest rounding, and by 0.0625' in words
    assert max(map(len, table.splitlines())) <= 100


@pytest.mark.parametrize(
    ('metric', 'floating', 'nearest', 'learned', 'worse'),
    [
        ('accuracy/top1', 90.0, 50.0, 80.0, False),
        ('accuracy/top1', 90.0, 80.0, 50.0, True),
        ('accuracy/top1', 90.0, 90.1, 89.8, True),
        ('accuracy/top1', 90.0, 80.0, 80.0, False),
        # What is better than float needs no advice.
        ('accuracy/top1', 90.0, 90.1, 91.0, False),
        ('accuracy/top1', 90.0, 91.0, 90.5, False),
        ('coco/bbox_mAP', 0.4, 0.39, 0.45, False),
        ('single-label/f1-score', 80.0, 79.0, 70.0, True),
        ('loss', 0.2, 0.9, 0.3, False),
        ('loss', 0.2, 0.3, 0.9, True),
        ('val/MAE', 0.2, 0.3, 0.1, False),
        ('depth/abs_err', 0.2, 0.3, 0.4, True),
        ('accuracy/top1', 90.0, 80.0, float('nan'), False),
    ],
)
def test_learning_that_made_a_metric_worse_has_advice(
    metric, floating, nearest, learned, worse
):
    models = dict(float=floating, nearest=nearest, quantized=learned)
    report = {name: {metric: value} for name, value in models.items()}
    advice = setback(report)
    assert bool(advice) is worse
    if worse:
        assert f'{learned:.2f}' in advice and 'num_images' in advice


def test_each_unit_has_a_line(caplog):
    logger = logging.getLogger('test_report')
    with caplog.at_level(logging.INFO), UnitProgress(2, logger) as show:
        show(UnitReport('a', before=2.0, after=1.0, seconds=3.0))
        show(UnitReport('b', note='something was wrong'))
    assert 'a: error 2 -> 1, 3.0 s' in caplog.text
    assert 'something was wrong' in caplog.text


COCO = {
    f'coco/bbox_mAP{end}': 0.335 + i / 10
    for i, end in enumerate(('', '_50', '_75', '_s', '_m', '_l'))
}
IOU = {'aAcc': 90.0, 'mIoU': 61.5, 'mAcc': 70.0}


def three(metrics, **more):
    """A report of three models; nearest rounding has a tenth of all."""
    return dict(
        float=metrics,
        nearest={k: v / 10 for k, v in metrics.items()},
        quantized=metrics,
        weight_bytes=dict(float=4000, quantized=500),
        seconds=dict(reconstruct=3.0, total=5.0),
        peak_memory_mb=100,
        activations_mb=dict(budget=None, held=70, spilled=20),
        units=[dict(accepted=True)],
        **more,
    )


def test_of_many_metrics_the_table_has_the_main_one():
    table = closing_table(three(COCO))
    assert 'coco/bbox_mAP ' in table and '0.335' in table
    assert '0.034' in table  # Two digits would not tell it from others.
    assert 'bbox_mAP_50' not in table and '0.435' not in table
    assert 'judged by coco/bbox_mAP; report.json has 5 other' in table


@pytest.mark.parametrize(
    ('metrics', 'named', 'main'),
    [
        (COCO, None, 'coco/bbox_mAP'),
        (COCO, 'coco/bbox_mAP_50', 'coco/bbox_mAP_50'),
        (COCO, 'bbox_mAP_75', 'coco/bbox_mAP_75'),
        (COCO, 'a metric that there is not', 'coco/bbox_mAP'),
        (IOU, None, 'mIoU'),
        (IOU, 'mAcc', 'mAcc'),
        ({'pascal_voc/AP50': 1, 'pascal_voc/mAP': 2}, None, 'pascal_voc/mAP'),
        ({'accuracy/top5': 9.0, 'accuracy/top1': 8.0}, None, 'accuracy/top5'),
        ({}, 'mIoU', ''),
    ],
)
def test_the_metric_of_the_config_counts(metrics, named, main):
    assert main_metric(three(metrics, metric=named)) == main


def test_a_metric_that_is_not_the_first_is_named():
    assert 'judged by mIoU' in closing_table(three(IOU))


def test_advice_is_about_the_main_metric():
    report = three(IOU)
    report['quantized'] = dict(IOU, mIoU=1.0)
    assert setback(report).startswith('mIoU is 1.00')
    report['quantized'] = dict(IOU, aAcc=1.0)
    assert not setback(report)
