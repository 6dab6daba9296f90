"""The guard reads versions from metadata; here they are made up."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import warnings

import pytest

from mmrazor_brecq import _requirements
from mmrazor_brecq._requirements import check_requirements

FINE = {'torch': '2.14.1', 'mmengine': '0.10.7', 'mmcv-lite': '2.0.1'}
#: Changes to it: the distributions of the maintained line.
LIVING = dict(
    mmengine=None, onedl_mmengine='0.10.12', onedl_mmpretrain='1.3.6'
)


@pytest.fixture
def installed(monkeypatch):
    """A function that sets what is installed, by changes to `FINE`."""

    def install(**changes):
        versions = {
            **FINE,
            **{k.replace('_', '-'): v for k, v in changes.items()},
        }

        def version(name):
            if versions.get(name) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(_requirements, 'version', version)

    return install


@pytest.mark.parametrize(
    'changes',
    [
        {},
        dict(torch='2.4.0a0+32f93b1'),
        dict(torch='2.4'),
        dict(mmengine='0.10.1'),
        dict(mmcls='1.0.0rc6'),
        dict(mmcls='1.0.0rc6', mmcv_lite='2.0.0'),
        dict(mmcls='1.0.0rc6', mmcv_lite=None, mmcv='2.0.1'),
        dict(mmpretrain='1.2.0', mmcv_lite='2.1.0'),
        dict(mmpretrain='1.2.0', mmcls='1.0.0rc6', mmcv_lite='2.1.0'),
        dict(mmcv_lite='2.2.0'),
        dict(mmcv_lite=None),
        dict(mmengine=None, mmengine_lite='0.10.7'),
        dict(mmengine=None, onedl_mmengine='0.10.12'),
        dict(LIVING, mmcv_lite=None, onedl_mmcv='2.3.6'),
        dict(LIVING, mmcv_lite='2.1.0'),
        dict(LIVING, onedl_mmpretrain=None, onedl_mmsegmentation='1.4.2'),
        dict(mmsegmentation='1.2.2', mmdet='3.3.0', mmcv_lite='2.1.0'),
    ],
)
def test_accepts(installed, changes):
    installed(**changes)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_requirements()


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(torch='2.0.1+cpu'), ['torch>=2.4', '2.0.1+cpu']),
        (dict(torch=None), ['torch>=2.4', 'none']),
        (dict(mmengine='0.10.0'), ['mmengine>=0.10.1,<1.0', '0.10.0']),
        (dict(mmengine='1.0.0rc1'), ['mmengine>=0.10.1,<1.0', '1.0.0rc1']),
        (
            dict(mmengine=None),
            ['and found none', '"mmengine>=', 'or "onedl-mmengine>=0.10.1'],
        ),
        (
            dict(mmengine=None, onedl_mmengine='1.0.0'),
            ['found onedl-mmengine 1.0.0', 'install "onedl-mmengine>=0.10.1'],
        ),
        (
            dict(LIVING, mmcv_lite=None),
            ['onedl-mmpretrain needs mmcv', 'pip install "onedl-mmcv>=2.3'],
        ),
        (
            dict(LIVING, mmcv_lite=None, onedl_mmcv='2.4.0'),
            ['onedl-mmcv 2.4.0', 'onedl-mmpretrain 1.3.6', '>=2.0.0,<2.4'],
        ),
        (
            dict(mmcls='1.0.0rc6', mmcv_lite=None),
            [
                'mmcls needs mmcv, and found none',
                'pip install "mmcv-lite>=2.0.1,<2.1"',
                'mim install "mmcv>=2.0.1,<2.1"',
                'never both',
            ],
        ),
        (
            dict(mmcls='1.0.0rc6', mmcv_lite='2.1.0'),
            [
                'mmcv-lite 2.1.0',
                'mmcls 1.0.0rc6',
                '>=2.0.0,<2.1',
                'pip uninstall mmcv-lite',
                'pip install "mmcv-lite>=2.0.1,<2.1"',
            ],
        ),
        (
            dict(mmcls='1.0.0rc6', mmcv_lite=None, mmcv_full='1.7.2'),
            ['mmcv-full 1.7.2', '>=2.0.0,<2.1'],
        ),
        (
            dict(mmpretrain='1.2.0', mmcls='1.0.0rc6', mmcv_lite='2.2.0'),
            [
                'mmcls 1.0.0rc6',
                'mmpretrain 1.2.0',
                '<2.2',
                'mmcv-lite>=2.0.1,<2.2',
            ],
        ),
    ],
)
def test_refuses_and_names_the_cure(installed, changes, message):
    installed(**changes)
    with pytest.raises(ImportError) as error:
        check_requirements()
    for part in message:
        assert part in str(error.value)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(mmcv='2.0.1'), 'mmcv 2.0.1 and mmcv-lite 2.0.1'),
        (dict(onedl_mmengine='0.10.12'), '0.10.7 and onedl-mmengine 0.10.12'),
        (
            dict(mmdet='3.3.0', onedl_mmdetection='3.5.1'),
            r'uninstall mmdet onedl-mmdetection`',
        ),
    ],
)
def test_warns_of_two_owners_of_a_package(installed, changes, message):
    installed(**changes)
    with pytest.warns(UserWarning, match=message):
        check_requirements()


def test_imports_nothing_it_checks_and_is_quick():
    """In a process of its own, that has imported nothing yet."""
    code = (
        'import runpy, sys, time\n'
        'guard = runpy.run_path(sys.argv[1])\n'
        'start = time.process_time()\n'
        'guard["check_requirements"]()\n'
        'print(time.process_time() - start)\n'
        'assert not {"torch", "mmengine", "mmcv", "mmcls"} & {*sys.modules}'
    )
    seconds = min(
        float(
            subprocess.run(
                [sys.executable, '-c', code, _requirements.__file__],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for _ in range(3)
    )
    assert seconds < 0.05
