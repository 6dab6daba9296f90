"""Check the versions of required packages before any is imported."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

#: Packages of OpenMMLab and the distributions that install each of them:
#: those of OpenMMLab itself, and those of its successor, OneDL Lab. Two of one
#: package overwrite each other's files.
PROVIDERS = {
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmcls': ('mmcls',),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
}

#: Required packages: lowest version, first version too high.
REQUIRED = {'torch': ('2.4', None), 'mmengine': ('0.10.1', '1.0')}

#: Model libraries and the mmcv that they need: lowest, first too high.
MMCV_OF_HOST = {
    'mmcls': ('2.0.0', '2.1'),
    'mmpretrain': ('2.0.0', '2.2'),
    'mmdet': ('2.0.0', '2.2'),
    'mmsegmentation': ('2.0.0', '2.2'),
    'onedl-mmpretrain': ('2.0.0', '2.4'),
    'onedl-mmdetection': ('2.0.0', '2.4'),
    'onedl-mmsegmentation': ('2.0.0', '2.4'),
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
    for package, bounds in REQUIRED.items():
        found = _installed(PROVIDERS.get(package, (package,)))
        if any(_fits(version, *bounds) for version in found.values()):
            continue
        wanted = _specifier(*bounds)
        raise ImportError(
            f'mmrazor_brecq needs {package}{wanted}, and found '
            f'{_named(found) or "none"}: pip install '
            + ' or '.join(
                f'"{name}{wanted}"' for name in _choices(package, found)
            )
        )
    for package, names in PROVIDERS.items():
        _warn_of_several(package, _installed(names))
    _check_mmcv()


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages above that are installed."""
    names = (name for several in PROVIDERS.values() for name in several)
    return _installed(('torch', *names))


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


def _warn_of_several(package: str, owners: dict[str, str]) -> None:
    """Warn of distributions that overwrite each other's files."""
    if len(owners) > 1:
        warnings.warn(
            f'{_named(owners)} are installed together and both provide '
            f'`import {package}`: which one is imported depends on the order '
            f'of installation. Run `pip uninstall {" ".join(owners)}`, then '
            'install the one that you need',
            stacklevel=4,
        )


def _check_mmcv() -> None:
    """Refuse an mmcv that is missing or fits no installed model library."""
    owners = _installed(PROVIDERS['mmcv'])
    hosts = _installed(MMCV_OF_HOST)
    bounds = {host: MMCV_OF_HOST[host] for host in hosts}
    if not hosts or any(
        _fits(found, *pair)
        for found in owners.values()
        for pair in bounds.values()
    ):
        return
    if not owners:
        raise ImportError(
            f'{" and ".join(hosts)} needs mmcv, and found none: '
            f'{_cure(bounds)}; never both, since both install the package '
            '`mmcv`'
        )
    wanted = ', '.join(
        f'{host} {found} needs mmcv{_specifier(*bounds[host])}'
        for host, found in hosts.items()
    )
    raise ImportError(
        f'Found {_named(owners)}, but {wanted}: run `pip uninstall '
        f'{" ".join(owners)}`, then {_cure(bounds)}; never both'
    )


def _installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    return {name: found for name in names if (found := _find(name))}


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


def _choices(package: str, found: dict[str, str]) -> list[str]:
    """Return what to install of a package: what is there, or each line's."""
    living = [x for x in PROVIDERS.get(package, ()) if x.startswith('onedl')]
    return [*found] or [package, *living]


def _cure(bounds: dict[str, tuple[str, str]]) -> str:
    """Return the commands that install an mmcv for model libraries."""
    high = max((high for _, high in bounds.values()), key=_release)
    if all(host.startswith('onedl') for host in bounds):
        return (
            f'either `pip install "onedl-mmcv>=2.3,<{high}"` or `pip install '
            '--no-deps "mmcv-lite>=2.0.1,<2.2"` (no compiled ops, works '
            'everywhere)'
        )
    return (
        f'either `pip install "mmcv-lite>=2.0.1,<{high}"` (no compiled ops, '
        f'works everywhere) or `mim install "mmcv>=2.0.1,<{high}"`'
    )
