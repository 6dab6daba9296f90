"""Checks the versions of what we stand on, before any of it is imported."""

from __future__ import annotations

import importlib
import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

#: Versions that we need ourselves: distribution, lowest, and first too high.
REQUIRED = (('torch', '2.4', None), ('mmengine', '0.10.1', '1.0'))

#: Distributions that own ``import mmcv``.
MMCV = ('mmcv', 'mmcv-lite', 'mmcv-full')

#: Libraries of models that refuse the wrong mmcv: lowest, and first too high.
MMCV_OF_HOST = {
    'mmcls': ('2.0.0', '2.1'),
    'mmpretrain': ('2.0.0', '2.2'),
}

#: The extra of ours that brings a package.
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
    """Check torch, mmengine and mmcv by their metadata, importing none.

    mmcv is needed by libraries of OpenMMLab's models alone.

    Raises:
        ImportError: If one of them is missing, or its version does not fit.
            The message names the version found, the one expected, and the
            command that helps.
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
    """Return the versions of what a run stands on, as far as it is there."""
    names = [name for name, *_ in REQUIRED] + [*MMCV, *MMCV_OF_HOST]
    return {name: found for name in names if (found := _find(name))}


def require(name: str) -> Any:
    """Import an optional package.

    Args:
        name (str): A package of :data:`EXTRAS`, or a module in it.

    Returns:
        ModuleType: The module.

    Raises:
        ImportError: If it is not there; the message names the extra.
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
    owners = {name: found for name in MMCV if (found := _find(name))}
    hosts = {name: MMCV_OF_HOST[name] for name in MMCV_OF_HOST if _find(name)}
    if not owners and hosts:
        host = ' and '.join(hosts)
        highest = max((high for _, high in hosts.values()), key=_release)
        raise ImportError(
            f'{host} needs mmcv, and found none: either {_cure(highest)}; '
            'never both, for both own `import mmcv`'
        )
    if len(owners) > 1:
        warnings.warn(
            f'{_named(owners)} are installed together and own the same '
            '`import mmcv`: which one it gives depends on the order in which '
            f'they came. Run `pip uninstall {" ".join(owners)}`, then '
            'install the one that you want',
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
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _release(text: str) -> tuple[int, ...]:
    """The release segment of a version alone: '2.1.0a0+cu' is (2, 1, 0)."""
    numbers = re.split(r'[^\d.]', text)[0].split('.')
    return (*(int(number or 0) for number in numbers), 0, 0, 0)[:3]


def _fits(found: str, low: str, high: str | None) -> bool:
    return _release(low) <= _release(found) and (
        high is None or _release(found) < _release(high)
    )


def _specifier(low: str, high: str | None) -> str:
    return f'>={low},<{high}' if high else f'>={low}'


def _named(owners: dict[str, str]) -> str:
    return ' and '.join(f'{name} {found}' for name, found in owners.items())


def _cure(high: str) -> str:
    return (
        f'`pip install "mmcv-lite>=2.0.1,<{high}"` (no compiled ops, '
        f'works everywhere) or `mim install "mmcv>=2.0.1,<{high}"`'
    )
