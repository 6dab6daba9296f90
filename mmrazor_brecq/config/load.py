"""Read and check the config of a run, before torch is imported."""

from __future__ import annotations

import difflib
import os.path as osp
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from mmengine.config import Config

from ..registry import SCOPE
from ..validation import did_you_mean
from .read import read_file
from .recipe import Recipe, compose
from .safe import check_regular

#: Keys that configs of `_base_` define for others to build `model` from.
BUILDING_BLOCKS = ('bits', 'schedule', 'calibration')
#: Data sets that read existing files, and download nothing.
LOCAL_DATASETS = (
    *('UnlabeledImages', 'IDXDataset', 'ImageNet', 'ImageNet21k'),
    *('CustomDataset', 'CocoDataset', 'CityscapesDataset'),
    *('BaseSegDataset', 'ADE20KDataset', 'PascalVOCDataset'),
)
#: Steps of a pipeline that load images alone.
IMAGE_STEPS = {'LoadImageFromFile', 'LoadImageFromNDArray'}
#: Keys of a data set that name its files.
FILES = ('data_root', 'data_prefix', 'ann_file')
#: How similar a key is to a known one that it is a slip of, at least.
SLIP = 0.9
#: Keys that options may add: the runner or a tool takes them.
KNOWN_KEYS = (
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
    """Read the config of a quantization.

    Args:
        path (str): A Python, YAML or JSON config, or one of a package, such
            as ``mmrazor_brecq::brecq/resnet/NAME.py``.
        options (dict, optional): Values to change, by dotted key.
        recipe (Recipe, optional): Recipe to compose onto the config, which
            is then that of a float model.

    Returns:
        Config: The complete config.

    Raises:
        FileNotFoundError: If there is no such file.
        KeyError: If an option changes a key that the config does not have.
        ValueError: If it is no config, or its model is no :class:`BRECQ`.
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
    known = {*cfg, *KNOWN_KEYS}
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
    for key in options:
        _check_there(cfg, key, recipe)
    cfg.merge_from_dict(options)
    if not _quantizes(cfg):
        kind = _type_of_model(cfg)
        hint = did_you_mean(kind, {'BRECQ': f'{SCOPE}.BRECQ'})
        raise ValueError(
            f'{path!r} configures no quantization'
            + (f': model.type={kind!r}{hint} Else ' if hint else ': ')
            + 'add --recipe w4a4 for a float config, or inherit one of '
            "configs/brecq, where model.type = 'mmrazor_brecq.BRECQ'"
        )
    _check_names(cfg)
    return cfg


def _check_names(cfg: Config) -> None:
    """Refuse a key that is a slip of one that the runner or a tool reads.

    A config may have keys of its own, so only what is next to the same
    counts, and no name that goes on, such as ``test_evaluator2``.
    """
    for key in cfg:
        close = difflib.get_close_matches(key, KNOWN_KEYS, 1, SLIP)
        if close and key not in KNOWN_KEYS and not key.startswith(close[0]):
            raise ValueError(
                f'The config has the key {key!r}, which nothing reads, did '
                f'you mean {close[0]!r}? Give it another name if not'
            )


def _check_there(cfg: Config, key: str, recipe: Optional[Recipe]) -> None:
    """Refuse an option for a part of what the config says is not there."""
    value: object = cfg.to_dict()
    *outer, _ = key.split('.')
    for i, part in enumerate(outer):
        if not isinstance(value, Mapping) or part not in value:
            return
        value = value[part]
        if value is None:
            name = '.'.join(outer[: i + 1])
            without = recipe is not None and not recipe.evaluate
            why = '--no-eval leaves it out' if without else 'it is None'
            raise ValueError(
                f'--cfg-options {key}: there is no `{name}` to change, for '
                f'{why}; leave the option out, or give the whole of `{name}`'
            )


def _quantizes(cfg: Config) -> bool:
    """Return whether a config's model is a :class:`BRECQ`."""
    return _type_of_model(cfg) == 'BRECQ'


def _type_of_model(cfg: Config) -> str:
    """Return the type of a config's model, without its scope."""
    model = cfg.get('model')
    kind = model.get('type') if isinstance(model, Mapping) else None
    return str(kind).split('.')[-1]


def load_config(
    path: str,
    options: Optional[dict[str, Any]] = None,
    work_dir: Optional[str] = None,
    launcher: str = 'none',
    recipe: Optional[Recipe] = None,
) -> Config:
    """Read the config of a quantization, with the settings of its run.

    Args:
        path (str): See :func:`read_config`.
        options (dict, optional): See :func:`read_config`.
        work_dir (str, optional): Folder of the run; by default the
            config's ``work_dir``, or one named after the config. It is
            created when the run begins.
        launcher (str): Launcher of processes, as in mmengine.
        recipe (Recipe, optional): See :func:`read_config`.

    Returns:
        Config: The complete config.

    Raises:
        PermissionError: If the folder cannot be written to.
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
    # We load the checkpoint ourselves, with better error messages.
    cfg.load_from, cfg.resume = None, False
    check_writable(cfg.work_dir)
    return cfg


def check_data(
    cfg: Config,
    loaders: Sequence[str],
    cures: Optional[Mapping[str, str]] = None,
) -> None:
    """Check that the files of data sets exist.

    Args:
        cfg (Config): The config.
        loaders (list[str]): Dotted keys of its data loaders.
        cures (dict, optional): What else to do where images are missing, by
            the key of their loader.

    Raises:
        FileNotFoundError: If a file is missing; the message names its key.
    """
    for loader in loaders:
        for key, dataset in datasets_of(cfg, loader):
            _check_dataset(key, dataset, (cures or {}).get(loader, ''))


def datasets_of(cfg: Config, loader: str) -> Iterator[tuple[str, Mapping]]:
    """Yield the data sets of a loader, each with its key."""
    value: object = cfg.to_dict()
    for part in f'{loader}.dataset'.split('.'):
        value = value.get(part) if isinstance(value, Mapping) else None
    yield from _with_wrapped(f'{loader}.dataset', value)


def _with_wrapped(key: str, dataset: object) -> Iterator[tuple[str, Mapping]]:
    """Yield a data set and those that it wraps, each with its key."""
    if isinstance(dataset, Mapping):
        yield key, dataset
        yield from _with_wrapped(f'{key}.dataset', dataset.get('dataset'))
        for i, part in enumerate(dataset.get('datasets') or []):
            yield from _with_wrapped(f'{key}.datasets.{i}', part)


def _check_dataset(key: str, dataset: Mapping, cure: str) -> None:
    """Check that the files of one data set exist."""
    if str(dataset.get('type')).split('.')[-1] not in LOCAL_DATASETS:
        return  # It may download its files.
    root = dataset.get('data_root') or ''
    for name, value in (
        ('data_root', root),
        *_prefixes(dataset),
        ('ann_file', dataset.get('ann_file') or ''),
    ):
        if not isinstance(value, str) or not value or '://' in root + value:
            continue
        path = value if name == 'data_root' else osp.join(root, value)
        if not osp.exists(osp.expanduser(path)):
            where = '' if path == value else f' below data_root={root!r}'
            if key.startswith('test_dataloader'):
                images = 'the labeled images that measure the accuracy'
            else:
                images = 'the images'
            raise FileNotFoundError(
                f'{key}.{name}={value!r} is not there{where} '
                f'({osp.abspath(path)}): put {images} there, or change '
                f'the path with --cfg-options {key}.{name}=PATH'
                + (f', or {cure}' if cure else '')
            )
        if not osp.isdir(osp.expanduser(path)):
            check_regular(
                osp.expanduser(path), f'a file or a folder for {key}.{name}'
            )


def _prefixes(dataset: Mapping) -> Iterator[tuple[str, object]]:
    """Yield the folders of a data set's images, each with its key.

    mmcls has one folder, and others name several, such as ``img_path`` and
    ``seg_map_path``. Annotations are needed only where a step of the pipeline
    loads them.
    """
    prefix = dataset.get('data_prefix')
    if not isinstance(prefix, Mapping):
        yield 'data_prefix', prefix
        return
    steps = {
        str(step.get('type')).split('.')[-1]
        for step in dataset.get('pipeline') or []
        if isinstance(step, Mapping)
    }
    labeled = any(step.startswith('Load') for step in steps - IMAGE_STEPS)
    for name, value in prefix.items():
        if name.startswith('img') or labeled:
            yield f'data_prefix.{name}', value


def find_key(cfg: Config, path: str) -> Optional[str]:
    """Return the key of a data set that names a file, with its value.

    What a run writes into its folder is asked for by none whose images lie
    around that folder.

    Args:
        cfg (Config): The config of a run.
        path (str): The file or folder.

    Returns:
        str: Text such as ``test_dataloader.dataset.ann_file='val.txt'``,
        that of the longest path if there are several; None if there is none.
    """
    run = osp.abspath(cfg.get('work_dir') or osp.devnull)
    is_own = _lies_in(path, run)
    found: dict[str, str] = {}
    for loader in ('test_dataloader', 'test_cfg.calibration.dataloader'):
        for prefix, dataset in datasets_of(cfg, loader):
            root = dataset.get('data_root') or ''
            for key, text in _texts(prefix, dataset):
                for named in (text, osp.join(root, text)):
                    folder = osp.expanduser(named)
                    around = is_own and _lies_in(osp.dirname(run), folder)
                    if _lies_in(path, folder) and not around:
                        found.setdefault(named, f'{key}={text!r}')
    return found[max(found, key=len)] if found else None


def _texts(prefix: str, dataset: Mapping) -> Iterator[tuple[str, str]]:
    """Yield the texts of a data set's config, each with its key."""
    for name, value in dataset.items():
        key = f'{prefix}.{name}'
        if isinstance(value, str) and value:
            yield key, value
        elif isinstance(value, Mapping):
            for inner, text in value.items():
                if isinstance(text, str) and text:
                    yield f'{key}.{inner}', text


def _lies_in(path: str, folder: str) -> bool:
    return f'{osp.abspath(path)}/'.startswith(f'{osp.abspath(folder)}/')


def check_writable(folder: str) -> None:
    """Check that a folder can be written to, or created, without doing so.

    Raises:
        PermissionError: If files cannot be created in it.
    """
    existing = osp.abspath(folder)
    while not osp.lexists(existing):
        existing = osp.dirname(existing)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise PermissionError(
            f'Cannot write to the folder {folder!r} ({error.strerror}): '
            'choose another one with --work-dir or `work_dir`'
        ) from error
