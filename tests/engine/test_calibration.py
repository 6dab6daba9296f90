from __future__ import annotations

import psutil
import pytest
import torch

from mmrazor_brecq.engine.calibration import memory_budget

CPU = torch.device('cpu')


@pytest.mark.parametrize(
    ('memory', 'size'),
    [
        ('1GiB', 2**30),
        ('1.5 GiB', 3 * 2**29),
        ('500MB', 500_000_000),
        ('2kb', 2000),
        ('64 B', 64),
        (None, None),
    ],
)
def test_a_size_is_read(memory, size):
    assert memory_budget(memory, CPU) == size


def test_a_share_is_of_what_is_free():
    free = psutil.virtual_memory().available
    assert 0.3 * free < memory_budget(0.5, CPU) < 0.7 * free


@pytest.mark.parametrize(
    'memory', ['1 potato', '1', '', '-1GiB', 'GiB', 0, -0.5, 1.5, [1]]
)
def test_all_else_is_refused(memory):
    with pytest.raises(ValueError, match=r'calibration\.memory=.*GiB'):
        memory_budget(memory, CPU)
