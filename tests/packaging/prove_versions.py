"""Run the tests of hosts under each set of versions that the docs name.

    python tests/packaging/prove_versions.py [NAME ...]

NAME is a key of ROWS below. Each row gets an environment of its own, which
sees the packages of this one but none of OpenMMLab, so that torch is not
installed again. It takes some minutes a row and needs PyPI.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
#: What an environment does not take over, by the beginning of its name.
LEFT_OUT = ('mm', '__editable__', 'onedl', 'pip', '__pycache__')


class Row(NamedTuple):
    """A set of versions, and the tests that it has to pass.

    Attributes:
        packages (str): What pip installs, without dependencies: those of
            mmcv-lite would put mmengine over onedl-mmengine.
        tests (str): Files of tests.
    """

    packages: str
    tests: str


HOSTS = 'tests/packaging/test_mmcv_ext.py'
CLASSIFIERS = 'tests/hosts/test_mmpretrain.py tests/graph/test_backbones.py'
DENSE = 'tests/detection'
PRETRAIN = 'mat4py einops modelindex importlib_metadata<9 zipp model-index'
SEGMENT = 'prettytable ftfy regex'

ROWS = {
    'mmcls': Row(
        'mmengine==0.10.7 mmcv-lite==2.0.1 mmcls==1.0.0rc6',
        f'{HOSTS} tests/engine/test_ptq.py tests/graph/test_backbones.py',
    ),
    'mmpretrain': Row(
        f'mmengine==0.10.7 mmcv-lite==2.1.0 mmpretrain==1.2.0 {PRETRAIN}',
        f'{HOSTS} {CLASSIFIERS}',
    ),
    'dense': Row(
        'mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0 '
        f'mmsegmentation==1.2.2 {SEGMENT}',
        f'{HOSTS} {DENSE}',
    ),
    'onedl': Row(
        'onedl-mmengine==0.10.12 mmcv-lite==2.1.0 onedl-mmpretrain==1.3.6 '
        f'onedl-mmsegmentation==1.4.2 {PRETRAIN} {SEGMENT}',
        f'{HOSTS} {CLASSIFIERS} {DENSE}',
    ),
    # mmdet of this line imports imaug, which wants older packages of its own.
    'onedl-dense': Row(
        'onedl-mmengine==0.10.12 mmcv-lite==2.1.0 onedl-mmdetection==3.5.1 '
        'imaug imagecorruptions-imaug imageio lazy-loader scikit-image '
        'numba llvmlite tifffile numpy==2.2.6',
        'tests/detection/test_detector.py',
    ),
}


def environment(folder: Path) -> Path:
    """Make an environment without OpenMMLab; return its interpreter."""
    venv.create(folder, with_pip=True, symlinks=True)
    site = next(folder.glob('lib/python*/site-packages'))
    for name in ('setuptools', 'pkg_resources', '_distutils_hack'):
        subprocess.run(['rm', '-rf', site / name], check=True)
    own = {entry.name.lower() for entry in site.iterdir()}
    base = folder / 'base'
    base.mkdir()
    for entry in Path(torch.__file__).parents[1].iterdir():
        name = entry.name.lower()
        ours = name.startswith(LEFT_OUT) or name.endswith('.pth')
        if name not in own and not ours:
            (base / entry.name).symlink_to(entry)
    # Behind what is installed here.
    (site / 'base.pth').write_text(f'{base}\n')
    return folder / 'bin/python'


def prove(name: str) -> bool:
    """Return whether the tests of a row pass."""
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder, 'venv'))
        pip = [python, '-m', 'pip', 'install', '-q', '--no-deps']
        subprocess.run([*pip, *row.packages.split()], check=True)
        run = subprocess.run(
            [
                *(python, '-m', 'pytest', '-q', '-m', 'slow or not slow'),
                *('-p', 'no:cacheprovider', *row.tests.split()),
            ],
            cwd=ROOT,
            env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        )
    return run.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('names', nargs='*', metavar='NAME', default=[*ROWS])
    passed = {name: prove(name) for name in parser.parse_args().names}
    for name, fine in passed.items():
        print(f'{name}: {"passes" if fine else "FAILS"} ({ROWS[name][0]})')
    return 0 if all(passed.values()) else 1


if __name__ == '__main__':
    sys.exit(main())
