"""The images that the tests of detectors compose."""

from __future__ import annotations

import json
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
