"""Check the versions of required packages before any is imported."""

from __future__ import annotations

import importlib
import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

#: Required distributions: name, lowest version, first version too high.
REQUIRED = (('torch', '2.4', None), ('mmengine', '0.10.1', '1.0'))

#: Distributions that install the package ``mmcv``.
MMCV = ('mmcv', 'mmcv-lite', 'mmcv-full')

#: Model libraries and the mmcv that they need: lowest, first too high.
MMCV_OF_HOST = {
    'mmcls': ('2.0.0', '2.1'),
    'mmpretrain': ('2.0.0', '2.2'),
    'mmdet': ('2.0.0', '2.2'),
    'mmsegmentation': ('2.0.0', '2.2'),
}

#: For each optional package, the extra of this one that installs it.
EXTRAS = {
    'onnx': 'export',
    'onnx_ir': 'export',
    'onnxruntime': 'export',
    'onnxscript': 'export',
    'safetensors': 'export',
    'openvino': 'openvino',
    'nncf': 'openvino',
    'scipy': 'search',
    'matplotlib': 'report',
}


def check_requirements() -> None:
    """Check torch, mmengine and mmcv by their metadata, without import.

    Only OpenMMLab's model libraries need mmcv.

    Raises:
        ImportError: If one of them is missing, or its version does not fit.
            The message names the installed version, the expected one, and a
            command that installs it.
    """
    for name, low, high in REQUIRED:
        found, wanted = _find(name), _specifier(low, high)
        if found is None or not _fits(found, low, high):
            raise ImportError(
                f'mmrazor_brecq needs {name}{wanted}, and found '
                f'{found or "none"}: pip install "{name}{wanted}"'
            )
    _check_mmcv()


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages above that are installed."""
    names = [name for name, *_ in REQUIRED] + [*MMCV, *MMCV_OF_HOST]
    return {name: found for name in names if (found := _find(name))}


def require(name: str) -> ModuleType:
    """Import an optional package.

    Args:
        name (str): Name of a package in :data:`EXTRAS`, or of a module in
            it.

    Returns:
        ModuleType: The module.

    Raises:
        ImportError: If it is not installed; the message names the extra.
    """
    root = name.split('.')[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or '').split('.')[0] != root:
            raise
        raise ImportError(
            f'This needs the package {root!r}, which is not installed: '
            f"pip install 'mmrazor_brecq[{EXTRAS[root]}]'"
        ) from error


def _check_mmcv() -> None:
    """Refuse a missing or unfit mmcv, and warn of several ones."""
    owners = {name: found for name in MMCV if (found := _find(name))}
    hosts = {name: MMCV_OF_HOST[name] for name in MMCV_OF_HOST if _find(name)}
    if not owners and hosts:
        host = ' and '.join(hosts)
        highest = max((high for _, high in hosts.values()), key=_release)
        raise ImportError(
            f'{host} needs mmcv, and found none: either {_cure(highest)}; '
            'never both, since both install the package `mmcv`'
        )
    if len(owners) > 1:
        warnings.warn(
            f'{_named(owners)} are installed together and both provide '
            '`import mmcv`: which one is imported depends on the order of '
            f'installation. Run `pip uninstall {" ".join(owners)}`, then '
            'install the one that you need',
            stacklevel=3,
        )
    if (
        owners
        and hosts
        and not any(
            _fits(found, *bounds)
            for found in owners.values()
            for bounds in hosts.values()
        )
    ):
        wanted = ', '.join(
            f'{host} {_find(host)} needs mmcv{_specifier(*hosts[host])}'
            for host in hosts
        )
        highest = max((high for _, high in hosts.values()), key=_release)
        raise ImportError(
            f'Found {_named(owners)}, but {wanted}: run `pip uninstall '
            f'{" ".join(owners)}`, then either {_cure(highest)}; never both'
        )


def _find(name: str) -> str | None:
    """Return the installed version of a distribution, None without it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _release(text: str) -> tuple[int, ...]:
    """Return the release of a version: (2, 1, 0) for '2.1.0a0+cu'."""
    numbers = re.split(r'[^\d.]', text)[0].split('.')
    return (*(int(number or 0) for number in numbers), 0, 0, 0)[:3]


def _fits(found: str, low: str, high: str | None) -> bool:
    return _release(low) <= _release(found) and (
        high is None or _release(found) < _release(high)
    )


def _specifier(low: str, high: str | None) -> str:
    return f'>={low},<{high}' if high else f'>={low}'


def _named(owners: dict[str, str]) -> str:
    """Return names and versions in words."""
    return ' and '.join(f'{name} {found}' for name, found in owners.items())


def _cure(high: str) -> str:
    """Return the commands that install an mmcv below a version."""
    return (
        f'`pip install "mmcv-lite>=2.0.1,<{high}"` (no compiled ops, '
        f'works everywhere) or `mim install "mmcv>=2.0.1,<{high}"`'
    )
