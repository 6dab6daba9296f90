"""The call of notebooks needs torch and mmengine, and nothing of mmcv."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
#: What belongs to libraries of models, by the beginning of its name.
OF_HOSTS = ('mmcv', 'mmcls', 'mmpretrain', 'mmdet', 'mmseg', 'mmrazor')
OF_HOSTS += ('onedl_mmcv', 'onedl_mmpretrain', 'onedl_mmdet', 'onedl_mmseg')

CODE = """
import importlib.util
for name in ('mmcv', 'mmcls'):
    assert importlib.util.find_spec(name) is None, name
import torch, mmrazor_brecq
from torch import nn
network = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
).eval()
images = torch.randn(16, 3, 8, 8)
model, report = mmrazor_brecq.quantize(
    network,
    images,
    reconstructor=dict(type='BlockReconstructor', iterations=2, batch_size=8),
)
mmrazor_brecq.save(model, 'quantized.pth')
again = mmrazor_brecq.load(network, 'quantized.pth')
assert torch.equal(again(images), model(images))
print('quantized', len(report['units']))
"""


@pytest.fixture
def python(tmp_path):
    """The interpreter of an environment that has all but OpenMMLab's models.

    Its packages are links to those of this environment, which takes no
    download and no time.
    """
    folder = tmp_path / 'venv'
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob('lib/python*/site-packages'))
    for entry in Path(torch.__file__).parents[1].iterdir():
        own = entry.name.startswith(('__editable__', 'mmrazor_brecq'))
        if not own and not entry.name.startswith(OF_HOSTS):
            (site / entry.name).symlink_to(entry)
    return folder / 'bin/python'


def test_quantizes_saves_and_loads(python, tmp_path):
    run = subprocess.run(
        [python, '-W', 'error::UserWarning:mmrazor_brecq', '-c', CODE],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == 'quantized 2'
