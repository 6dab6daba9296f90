"""Configs: found by name, read, and checked, before torch is imported."""

from __future__ import annotations

import difflib
import os.path as osp
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from mmengine.config import Config

from .read import read_file
from .recipe import Recipe, compose
from .safe import check_regular

#: What the configs of `_base_` define for others to compose `model` from.
BUILDING_BLOCKS = ('bits', 'schedule', 'calibration')
#: Data sets that read what is there, and fetch nothing.
NEVER_MADE = (
    *('UnlabelledImages', 'IDXDataset', 'ImageNet', 'ImageNet21k'),
    *('CustomDataset', 'CocoDataset'),
)
#: Keys that the runner or a tool takes where a config does not have them.
TAKEN = (
    *('model', 'work_dir', 'launcher', 'env_cfg', 'randomness', 'cfg'),
    *('train_dataloader', 'val_dataloader', 'test_dataloader'),
    *('train_cfg', 'val_cfg', 'test_cfg', 'val_evaluator', 'test_evaluator'),
    *('optim_wrapper', 'param_scheduler', 'auto_scale_lr'),
    *('default_hooks', 'custom_hooks', 'data_preprocessor', 'load_from'),
    *('resume', 'log_processor', 'log_level', 'visualizer', 'default_scope'),
    *('experiment_name', 'mixed_precision'),
)


def read_config(
    path: str,
    options: Optional[dict[str, Any]] = None,
    recipe: Optional[Recipe] = None,
) -> Config:
    """Read a config of a quantization, and do nothing else.

    Args:
        path (str): A Python, YAML or JSON config, or one of a package, such
            as ``mmrazor_brecq::brecq/resnet/NAME.py``.
        options (dict, optional): Changes, by dotted key.
        recipe (Recipe, optional): Composed onto the config, which is then
            that of a float model.

    Returns:
        Config: Complete.

    Raises:
        FileNotFoundError: If there is no such file.
        KeyError: If an option changes a key that the config does not have.
        ValueError: If it is no config, or its model not a :class:`BRECQ`.
    """
    cfg = read_file(path)
    for name in BUILDING_BLOCKS:
        cfg.pop(name, None)
    if recipe is not None:
        if _quantizes(cfg):
            raise ValueError(
                f'--recipe {recipe.bits!r}, but {path!r} configures a '
                'quantization itself: give a float config, or change '
                '`model.quantization` with --cfg-options'
            )
        cfg = compose(cfg, recipe)
    options = options or {}
    known = {*cfg, *TAKEN}
    for key in options:
        root = key.split('.')[0]
        if root not in known:
            close = difflib.get_close_matches(root, cfg, 1)
            hint = (
                f', did you mean {close[0]!r}?'
                if close
                else (': it has ' + ', '.join(sorted(cfg)))
            )
            raise KeyError(
                f'--cfg-options {key}: the config has no {root!r}{hint}'
            )
    cfg.merge_from_dict(options)
    if not _quantizes(cfg):
        raise ValueError(
            f'{path!r} configures no quantization: add --recipe w4a4 for a '
            'float config, or inherit one of configs/brecq, where '
            "model.type = 'mmrazor_brecq.BRECQ'"
        )
    return cfg


def _quantizes(cfg: Config) -> bool:
    """Return whether a config's model is a :class:`BRECQ`."""
    model = cfg.get('model')
    kind = model.get('type') if isinstance(model, Mapping) else None
    return str(kind).split('.')[-1] == 'BRECQ'


def load_config(
    path: str,
    options: Optional[dict[str, Any]] = None,
    work_dir: Optional[str] = None,
    launcher: str = 'none',
    recipe: Optional[Recipe] = None,
) -> Config:
    """Read a config of a quantization that is to be run.

    Args:
        path (str): As for :func:`read_config`.
        options (dict, optional): Likewise.
        work_dir (str, optional): Folder of the run; by default the
            config's ``work_dir``, or one named after the config. It is made
            when the run begins.
        launcher (str): As in mmengine.
        recipe (Recipe, optional): As for :func:`read_config`.

    Returns:
        Config: Complete.
    """
    cfg = read_config(path, options, recipe)
    cfg.launcher = launcher
    if cfg.get('randomness', {}).get('seed') is None:
        # A run without a seed could not be resumed.
        cfg.randomness = dict(cfg.get('randomness', {}), seed=0)
    cfg.work_dir = (
        work_dir
        or cfg.get('work_dir')
        or osp.join('work_dirs', osp.splitext(osp.basename(cfg.filename))[0])
    )
    # The checkpoint is loaded by us, with better words.
    cfg.load_from, cfg.resume = None, False
    check_writable(cfg.work_dir)
    return cfg


def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """See that the files of data sets are there.

    Args:
        cfg (Config): With the loaders.
        loaders (list[str]): Their dotted keys.

    Raises:
        FileNotFoundError: If one is not; the message names its key.
    """
    for loader in loaders:
        for place, dataset in _datasets(cfg, loader):
            _check_dataset(place, dataset)


def _datasets(cfg: Config, loader: str) -> Iterator[tuple[str, Mapping]]:
    """Yield the data sets of a loader, each after its key."""
    found: Any = cfg.to_dict()
    for part in f'{loader}.dataset'.split('.'):
        found = found.get(part) if isinstance(found, Mapping) else None
    yield from _wrapped(f'{loader}.dataset', found)


def _wrapped(key: str, found: Any) -> Iterator[tuple[str, Mapping]]:
    """Yield a data set and those that it wraps."""
    if isinstance(found, Mapping):
        yield key, found
        yield from _wrapped(f'{key}.dataset', found.get('dataset'))
        for i, part in enumerate(found.get('datasets') or []):
            yield from _wrapped(f'{key}.datasets.{i}', part)


def _check_dataset(key: str, dataset: Mapping) -> None:
    if str(dataset.get('type')).split('.')[-1] not in NEVER_MADE:
        return  # It may fetch its files itself.
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or ''
    if isinstance(prefix, Mapping):
        prefix = prefix.get('img_path') or ''
    for name, value in (
        ('data_root', root),
        ('data_prefix', prefix),
        ('ann_file', dataset.get('ann_file') or ''),
    ):
        if not isinstance(value, str) or not value or '://' in root + value:
            continue
        path = value if name == 'data_root' else osp.join(root, value)
        if not osp.exists(osp.expanduser(path)):
            where = '' if path == value else f' below data_root={root!r}'
            raise FileNotFoundError(
                f'{key}.{name}={value!r} is not there{where} '
                f'({osp.abspath(path)}): put the images there, or name their '
                f'place with --cfg-options {key}.{name}=PATH'
            )
        if not osp.isdir(osp.expanduser(path)):
            check_regular(
                osp.expanduser(path), f'a file or a folder for {key}.{name}'
            )


def asks_for(cfg: Config, path: str) -> Optional[str]:
    """Return the key of a data set that asks for a file, with its value.

    Args:
        cfg (Config): Of a run.
        path (str): The file or folder.
    """
    found: dict[str, str] = {}
    for loader in ('test_dataloader', 'test_cfg.calibration.dataloader'):
        for place, dataset in _datasets(cfg, loader):
            root = dataset.get('data_root') or ''
            for name, value in dataset.items():
                values = value if isinstance(value, Mapping) else {'': value}
                for inner, text in values.items():
                    if not isinstance(text, str) or not text:
                        continue
                    key = f'{place}.{name}' + f'.{inner}' * bool(inner)
                    for whole in (text, osp.join(root, text)):
                        if f'{osp.abspath(path)}/'.startswith(
                            f'{osp.abspath(osp.expanduser(whole))}/'
                        ):
                            found.setdefault(whole, f'{key}={text!r}')
    return found[max(found, key=len)] if found else None


def check_writable(folder: str) -> None:
    """See that a folder is there or can be made, and leave nothing behind.

    Raises:
        PermissionError: If files cannot be made in it.
    """
    place = osp.abspath(folder)
    while not osp.lexists(place):
        place = osp.dirname(place)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise PermissionError(
            f'Cannot write to the folder {folder!r} ({error.strerror}): '
            'name another one with --work-dir or `work_dir`'
        ) from error
