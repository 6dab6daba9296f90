"""Memory keeps its promise for what is worked on, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mmrazor_brecq
from mmrazor_brecq import api
from mmrazor_brecq.activations import CachedBatches, images_per_pass

CASES = Path(__file__).parents[2] / 'benchmarks' / 'memory_cases.py'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('case', 'images'),
    [('full', 3), ('small', 6000)],
)
def test_a_run_grows_by_no_more_than_it_says(case, images):
    """In a process of its own; three large images, and many small ones."""
    done = subprocess.run(
        [sys.executable, CASES, '--alone', case, '--images', str(images)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['grew'] < found['promised']


@pytest.mark.parametrize(
    ('shape', 'together'),
    [((1, 28, 28), 4), ((3, 224, 224), 4), ((3, 600, 600), 1)],
)
def test_large_images_run_one_at_a_time_from_the_api(
    shape, together, monkeypatch
):
    class Enough(Exception):
        pass

    def look(parts, sizes, store):
        raise Enough(*sizes)

    monkeypatch.setattr(api, 'CachedBatches', look)
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    images = torch.zeros(1, *shape).expand(8, *shape)
    network(images[:1])
    with pytest.raises(Enough) as caught:
        mmrazor_brecq.quantize(network, images)
    assert max(caught.value.args) == together
    assert sum(caught.value.args) == 8


def test_an_image_that_is_larger_than_the_room_runs_alone():
    assert images_per_pass(10**9, max_images=32) == 1
    assert images_per_pass(0, max_images=32) == 32
    rows = CachedBatches([torch.zeros(1, 7), torch.ones(1, 7)], [1, 1])
    assert images_per_pass(rows.elements, max_images=32, max_elements=3) == 1
