from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import mmrazor_brecq
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.api import SCHEDULE
from mmrazor_brecq.layers import quant_layers
from mmrazor_brecq.registry import TASK_UTILS

ROOT = Path(__file__).parents[1]

BRIEF = dict(type='BlockReconstructor', iterations=2)


def test_it_says_how_far_it_is(toy, generator, capsys):
    images = torch.randn(64, 3, 8, 8, generator=generator)
    _, report = mmrazor_brecq.quantize(
        toy('residual'), images, reconstructor=BRIEF
    )
    said = capsys.readouterr().err
    for unit in report['units']:
        assert f'{unit["name"]}: error' in said


@pytest.mark.parametrize('count', [2, 3, 64, 65])
def test_as_many_images_as_there_are(count, toy, generator, warnings_log):
    """Fewer than a batch of 64 will do, with a word of warning."""
    images = torch.randn(count, 3, 8, 8, generator=generator)
    model, report = mmrazor_brecq.quantize(
        toy('residual'), images, reconstructor=BRIEF
    )

    assert all(layer.frozen for layer in quant_layers(model).values())
    assert all(unit['after'] < math.inf for unit in report['units'])
    few = [line for line in warnings_log if line.startswith(f'{count} images')]
    assert len(few) == (count < 64)


@pytest.mark.parametrize('count', [0, 1])
def test_an_image_to_learn_from_and_one_to_judge_by(count, toy):
    images = torch.zeros(count, 3, 8, 8)
    with pytest.raises(
        ValueError, match=f'{count} images, expected 2 or more'
    ):
        mmrazor_brecq.quantize(toy('residual'), images)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_a_network_of_another_type_is_refused(dtype, toy):
    images = torch.zeros(4, 3, 8, 8, dtype=dtype)
    with pytest.raises(ValueError, match=f'{dtype}, expected torch.float32'):
        mmrazor_brecq.quantize(toy('residual').to(dtype), images)


def test_a_quantized_network_is_refused(toy, generator):
    images = torch.randn(4, 3, 8, 8, generator=generator)
    model, _ = mmrazor_brecq.quantize(
        toy('residual'), images, reconstructor=dict(type='NearestRounding')
    )
    with pytest.raises(ValueError, match='quantized already'):
        mmrazor_brecq.quantize(model, images)


def test_the_default_schedule_is_that_of_the_configs():
    path = ROOT / 'configs/_base_/schedules/default.py'
    ours, theirs = (
        TASK_UTILS.build(dict(schedule))
        for schedule in (SCHEDULE, Config.fromfile(path).schedule)
    )
    assert type(ours.objective) is type(theirs.objective)
    for part in (lambda x: x, lambda x: x.objective, lambda x: x.autocast):
        a, b = (
            {
                key: value
                for key, value in vars(part(learner)).items()
                if isinstance(value, (int, float, str, tuple))
            }
            for learner in (ours, theirs)
        )
        assert a == b and a


def test_memory_bounds_what_is_held(toy, generator, monkeypatch):
    images = torch.randn(12, 3, 8, 8, generator=generator)
    spilled, found = [], []
    run = BRECQ.reconstruct

    def reconstruct(self, teacher, rows, seed):
        yield from run(self, teacher, rows, seed)
        spilled.append(rows.store.spilled)

    monkeypatch.setattr(BRECQ, 'reconstruct', reconstruct)
    for memory in None, '4KB':
        model, _ = mmrazor_brecq.quantize(
            toy('residual'), images, reconstructor=BRIEF, memory=memory
        )
        found.append(model.state_dict())

    assert spilled[0] == 0 and spilled[1] > 0
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    with pytest.raises(ValueError, match="memory='much'"):
        mmrazor_brecq.quantize(toy('residual'), images, memory='much')
