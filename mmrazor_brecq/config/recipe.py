"""Compose a quantization onto a user's own float config."""

from __future__ import annotations

import copy
import difflib
import os.path as osp
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config, ConfigDict

from ..registry import SCOPE
from ..validation import ImageCount, validated
from .read import read_file

#: Part of a config, without mmengine's own types.
PlainConfig = dict[str, Any]

PACKAGE = Path(__file__).resolve().parents[1]
#: Keys of an OpenMMLab config that only training uses.
TRAINING_KEYS = (
    'auto_scale_lr',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'train_dataloader',
    'val_cfg',
    'val_dataloader',
    'val_evaluator',
)
#: Keys of a config that measures no accuracy.
NO_EVALUATION: PlainConfig = dict(test_dataloader=None, test_evaluator=None)
NO_EVAL_CURE = 'add --no-eval to quantize without measuring the accuracy'
#: Transforms of a pipeline that need labels.
LABEL_TRANSFORMS = ('LoadAnnotations', 'LoadPanopticAnnotations')


@validated
@dataclass(frozen=True)
class Recipe:
    """Settings that make a quantization of a float config.

    Args:
        bits (str): Name of a file of ``configs/_base_/bits``, such as
            ``w4a4``, or path of a config that defines ``bits``.
        schedule (str): Name of a file of ``configs/_base_/schedules``, or
            path of a config that defines ``schedule``.
        calibration (str, optional): A folder of images, or a list of
            images: a text file with a path at the beginning of each line,
            or a COCO JSON. By default the training images of the config.
        num_images (int): Largest number of calibration images, at least 2.
        evaluate (bool): Whether the test images of the config measure the
            accuracy. If not, the config needs neither test images nor a
            ``test_evaluator``.

    Example:
        >>> recipe = Recipe('w4a4', schedule='fast', num_images=256)
        >>> cfg = compose(Config.fromfile('resnet18_8xb32_in1k.py'), recipe)
    """

    bits: str
    schedule: str = 'default'
    calibration: Optional[str] = None
    num_images: ImageCount = 1024
    evaluate: bool = True

    @property
    def name(self) -> str:
        """Return the name of the bits, for names of files and folders."""
        return osp.splitext(osp.basename(self.bits))[0]


def compose(cfg: Config, recipe: Recipe) -> Config:
    """Compose a recipe onto a float config.

    The result is an ordinary config of a quantization: it can be dumped,
    inherited, and given to all tools.

    Args:
        cfg (Config): The float config of a model; it stays as it is.
        recipe (Recipe): The settings of the quantization.

    Returns:
        Config: The config of the quantization.

    Raises:
        FileNotFoundError: If the calibration images do not exist.
        ValueError: If the config lacks what the recipe needs, or the recipe
            names bits or a schedule that do not exist.
    """
    content = copy.deepcopy(cfg.to_dict())
    _check_complete(content, recipe, cfg.filename)
    loader = _calibration_loader(content, recipe)
    content['model'] = dict(
        type=f'{SCOPE}.BRECQ',
        architecture=content['model'],
        quantization=read_part('bits', recipe.bits, '--recipe'),
        reconstructor=read_part('schedule', recipe.schedule, '--schedule'),
    )
    content['test_cfg'] = dict(
        type=f'{SCOPE}.PTQLoop',
        calibration=dict(num_images=recipe.num_images, dataloader=loader),
    )
    content.update(dict.fromkeys(TRAINING_KEYS))
    if not recipe.evaluate:
        content.update(NO_EVALUATION)
    stem, ending = osp.splitext(osp.basename(cfg.filename or 'model.py'))
    # `cfg_text` is given, since there is no file of that name to read.
    return Config(
        content,
        cfg_text=f'# {recipe} composed onto {cfg.filename}\n',
        filename=f'{stem}_{recipe.name}{ending}',
    )


def _check_complete(
    content: PlainConfig, recipe: Recipe, filename: Optional[str]
) -> None:
    """Refuse a config that lacks what a recipe needs."""
    for key in ('model', *(NO_EVALUATION if recipe.evaluate else ())):
        if not content.get(key):
            cure = '' if key == 'model' else f', or {NO_EVAL_CURE}'
            raise ValueError(
                f'--recipe: the config {filename!r} has no `{key}`, '
                f'expected the complete config of a float model{cure}'
            )


def known_parts(kind: str) -> dict[str, Path]:
    """Return the files of this package that define ``bits`` or ``schedule``.

    Args:
        kind (str): ``bits`` or ``schedule``.

    Returns:
        dict[str, Path]: Their paths, by the name that users give.
    """
    folder = _base_folder() / f'{kind.removesuffix("s")}s'
    return {file.stem: file for file in sorted(folder.glob('*.py'))}


def read_base(name: str) -> PlainConfig:
    """Read a file of this package's `configs/_base_`.

    Args:
        name (str): Its name without the ending.
    """
    return read_file(str(_base_folder() / f'{name}.py')).to_dict()


def _base_folder() -> Path:
    return next(
        folder / 'configs/_base_'
        for folder in (PACKAGE / '.mim', PACKAGE.parent)
        if (folder / 'configs').is_dir()
    )


def read_part(kind: str, name: str, option: str) -> PlainConfig:
    """Read ``bits`` or ``schedule`` from a file of this package or the user.

    Args:
        kind (str): ``bits`` or ``schedule``.
        name (str): Name of one of our files, or a path.
        option (str): The command line option that named it.
    """
    if osp.isfile(name):
        path = Path(name)
    else:
        known = known_parts(kind)
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            raise ValueError(
                f'{option} {name!r}, expected one of {", ".join(known)}, or '
                f'the path of a config that defines `{kind}`{hint}'
            )
        path = known[name]
    part = read_file(str(path)).get(kind)
    if not isinstance(part, ConfigDict):
        raise ValueError(f'{option} {name!r}: the file defines no `{kind}`')
    return part.to_dict()


def _calibration_loader(content: PlainConfig, recipe: Recipe) -> PlainConfig:
    """Return the test loader's config with the calibration images instead."""
    loader = copy.deepcopy(
        content.get('test_dataloader') or content.get('val_dataloader')
    )
    if not loader:
        raise ValueError(
            '--recipe: the config has no `test_dataloader`, expected one: '
            'calibration images go through its pipeline'
        )
    # Calibration needs no annotations, and their files may not be there.
    pipeline = [
        x
        for x in _pipeline(loader['dataset'])
        if _type_name(x) not in LABEL_TRANSFORMS
    ]
    if recipe.calibration is None:
        train = content.get('train_dataloader')
        if not train:
            raise ValueError(
                '--recipe: the config has no `train_dataloader` to take '
                'calibration images from: name a folder of images with '
                '--calibration'
            )
        dataset = _with_pipeline(copy.deepcopy(train['dataset']), pipeline)
    else:
        dataset = _unlabeled(recipe.calibration, pipeline)
    loader.update(
        dataset=dataset,
        sampler=dict(type='DefaultSampler', shuffle=True, seed=0),
        drop_last=False,
    )
    loader.pop('batch_sampler', None)
    return loader


def _unlabeled(path: str, pipeline: list[dict]) -> PlainConfig:
    """Return the config of a data set of the images at ``path``."""
    if not osp.exists(path):
        raise FileNotFoundError(
            f'--calibration {path!r} does not exist, expected a folder of '
            'images or a list of images'
        )
    if not any(_type_name(x).startswith('LoadImage') for x in pipeline):
        pipeline = [dict(type='LoadImageFromFile'), *pipeline]
    path = osp.abspath(path)
    source = (
        dict(data_root=path)
        if osp.isdir(path)
        else dict(data_root=osp.dirname(path), ann_file=osp.basename(path))
    )
    return dict(type=f'{SCOPE}.UnlabeledImages', pipeline=pipeline, **source)


def _type_name(transform: dict) -> str:
    """Return the type of a transform without its scope."""
    return str(transform['type']).split('.')[-1]


def _pipeline(dataset: PlainConfig) -> list[dict]:
    """Return the pipeline of a data set, or of the one that it wraps."""
    for inner in _wrapped(dataset):
        return _pipeline(inner)
    return dataset.get('pipeline', [])


def _with_pipeline(dataset: PlainConfig, pipeline: list[dict]) -> PlainConfig:
    """Return the data set with another pipeline.

    Wrappers of a single data set are left out: they repeat, balance or mix
    its images for training.
    """
    inner = _wrapped(dataset)
    if not inner:
        return dict(dataset, pipeline=copy.deepcopy(pipeline))
    parts = [_with_pipeline(part, pipeline) for part in inner]
    return parts[0] if len(parts) == 1 else dict(dataset, datasets=parts)


def _wrapped(dataset: PlainConfig) -> list[PlainConfig]:
    """Return the data sets that a data set wraps."""
    if isinstance(dataset.get('dataset'), dict):
        return [dataset['dataset']]
    return list(dataset.get('datasets') or [])
