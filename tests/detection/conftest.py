"""The images that the tests of detectors and segmenters compose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def detection_set(tmp_path_factory):
    """The composed images, and `few.json` with 100 of the test images."""
    folder = tmp_path_factory.mktemp('detection')
    subprocess.run(
        [sys.executable, ROOT / 'demo/compose_detection.py', folder],
        check=True,
    )
    content = json.loads((folder / 'test.json').read_text())
    for key, name in (('images', 'id'), ('annotations', 'image_id')):
        content[key] = [x for x in content[key] if x[name] < 100]
    (folder / 'few.json').write_text(json.dumps(content))
    return folder


@pytest.fixture
def quantize(detection_set, tmp_path):
    """A function that runs the tool; returns the report, and what it told."""

    def run_tool(config, checkpoint, bits, *options, images=64):
        run = subprocess.run(
            [
                *(sys.executable, ROOT / 'tools/ptq.py'),
                *(ROOT / config, ROOT / checkpoint),
                *('--recipe', bits, '--schedule', 'fast'),
                *('--calibration', detection_set / 'calibration'),
                *('--num-images', str(images), '--work-dir', tmp_path),
                *('--cfg-options', *options),
            ],
            env=dict(
                os.environ,
                PYTHONPATH=str(ROOT),
                OMP_NUM_THREADS='1',
                MMRAZOR_BRECQ_DETECTION=str(detection_set),
            ),
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        report = json.loads((tmp_path / 'report.json').read_text())
        return report, run.stdout + run.stderr

    return run_tool
