"""The reference says what the code does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmrazor_brecq import (  # noqa: F401
    datasets,
    export,
    mixed_precision,
    models,
)
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.engine import PTQLoop
from mmrazor_brecq.graph import QuantizationScheme
from mmrazor_brecq.quantizers import (
    ActivationQuantizer,
    LpObserver,
    WeightQuantizer,
)
from mmrazor_brecq.reconstruction import BlockReconstructor
from mmrazor_brecq.registry import DATASETS, LOOPS, MODELS, TASK_UTILS

ROOT = Path(__file__).parents[2]
CONFIG = (ROOT / 'docs/reference/config.md').read_text(encoding='utf-8')
PARTS = (ROOT / 'docs/reference/parts.md').read_text(encoding='utf-8')


def default(key: str) -> str:
    """The last column of a key's row."""
    (row,) = re.findall(rf'^\| `{re.escape(key)}`.*$', CONFIG, re.M)
    return row.strip('| ').split(' | ')[-1]


def argument(owner: type, name: str) -> object:
    return inspect.signature(owner).parameters[name].default


@pytest.mark.parametrize(
    ('key', 'owner', 'name'),
    [
        ('quantization.weight.bits', WeightQuantizer, 'bits'),
        ('quantization.weight.learn_scale', WeightQuantizer, 'learn_scale'),
        ('quantization.weight.observer', LpObserver, 'p'),
        ('quantization.activation', ActivationQuantizer, 'bits'),
        (
            'quantization.activation.drop_prob',
            ActivationQuantizer,
            'drop_prob',
        ),
        (
            'quantization.first_last_bits',
            QuantizationScheme,
            'first_last_bits',
        ),
        ('reconstructor.iterations', BlockReconstructor, 'iterations'),
        ('reconstructor.batch_size', BlockReconstructor, 'batch_size'),
        ('held_out', BRECQ, 'held_out'),
        ('checkpoint', PTQLoop, 'checkpoint'),
    ],
)
def test_defaults_are_those_of_the_code(key, owner, name):
    assert re.search(
        rf'(?<![\w.]){re.escape(str(argument(owner, name)))}(?![\w.])',
        default(key),
    )


@pytest.mark.parametrize('name', ['fast', 'default', 'best'])
def test_schedules_are_those_of_the_configs(name):
    path = ROOT / f'configs/_base_/schedules/{name}.py'
    schedule = Config.fromfile(path).schedule
    (row,) = re.findall(
        rf'^\| `_base_/schedules/{name}.py` \| (.*) \|$', CONFIG, re.M
    )
    assert row.startswith(
        f'{schedule.iterations} iterations of {schedule.batch_size} images'
    )
    if refiner := schedule.get('refiner'):
        assert f'{refiner.iterations:,} of all units' in row


def test_every_part_of_a_config_is_in_the_reference():
    named = set(re.findall(r'autoclass:: [\w.]+\.(\w+)', PARTS))
    registered = {
        part.__name__
        for registry in (DATASETS, LOOPS, MODELS, TASK_UTILS, export.TARGETS)
        for part in registry.module_dict.values()
        if part.__module__.startswith('mmrazor_brecq.')
    }
    assert {'ExactSearch', 'MSE', 'AdaRound', 'IDXDataset'} <= registered
    assert registered <= named
