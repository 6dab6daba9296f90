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

PACKAGE = Path(__file__).resolve().parents[1]
#: What only trains, in a config of OpenMMLab.
OF_TRAINING = (
    'auto_scale_lr',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'train_dataloader',
    'val_cfg',
    'val_dataloader',
    'val_evaluator',
)
#: Steps of a pipeline that unlabeled images have nothing for.
OF_LABELS = ('LoadAnnotations', 'LoadPanopticAnnotations')


@validated
@dataclass(frozen=True)
class Recipe:
    """What is done to a float model.

    Args:
        bits (str): Name of a file of ``configs/_base_/bits``, such as
            ``w4a4``, or path of a config that defines ``bits``.
        schedule (str): Name of a file of ``configs/_base_/schedules``, or
            path of a config that defines ``schedule``.
        calibration (str, optional): A folder of images, or a list of
            images: a text file with a path at the beginning of each line,
            or a COCO JSON. By default the training images of the config.
        num_images (int): Calibration images at most.
    """

    bits: str
    schedule: str = 'default'
    calibration: Optional[str] = None
    num_images: ImageCount = 1024

    @property
    def name(self) -> str:
        """The name of the bits, for names of files and folders."""
        return osp.splitext(osp.basename(self.bits))[0]


def compose(cfg: Config, recipe: Recipe) -> Config:
    """Compose a recipe onto a float config.

    The result is a config like any other of a quantization: it can be
    dumped, inherited, and given to all tools.

    Args:
        cfg (Config): The float config of a model; it is left as it is.
        recipe (Recipe): What is done to the model.

    Returns:
        Config: The config of the quantization.

    Raises:
        FileNotFoundError: If the calibration images are not there.
        ValueError: If the config lacks what the recipe needs, or the recipe
            names bits or a schedule that do not exist.
    """
    content = copy.deepcopy(cfg.to_dict())
    for key in ('model', 'test_dataloader', 'test_evaluator'):
        if not content.get(key):
            raise ValueError(
                f'--recipe: the config {cfg.filename!r} has no `{key}`, '
                'expected the complete config of a float model'
            )
    loader = _calibration_loader(content, recipe)
    content['model'] = dict(
        type=f'{SCOPE}.BRECQ',
        architecture=content['model'],
        quantization=_part('bits', recipe.bits, '--recipe'),
        reconstructor=_part('schedule', recipe.schedule, '--schedule'),
    )
    content['test_cfg'] = dict(
        type=f'{SCOPE}.PTQLoop',
        calibration=dict(num_images=recipe.num_images, dataloader=loader),
    )
    content.update(dict.fromkeys(OF_TRAINING))
    stem, ending = osp.splitext(osp.basename(cfg.filename or 'model.py'))
    # With a text of its own, for there is no file of that name to read.
    return Config(
        content,
        cfg_text=f'# {recipe} composed onto {cfg.filename}\n',
        filename=f'{stem}_{recipe.name}{ending}',
    )


def _part(kind: str, name: str, option: str) -> dict[str, Any]:
    """Read ``bits`` or ``schedule`` from a file of ours or of the user."""
    if osp.isfile(name):
        path = Path(name)
    else:
        folder = next(
            folder
            for folder in (PACKAGE / '.mim', PACKAGE.parent)
            if (folder / 'configs').is_dir()
        )
        folder /= f'configs/_base_/{kind.removesuffix("s")}s'
        known = sorted(file.stem for file in folder.glob('*.py'))
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            raise ValueError(
                f'{option} {name!r}, expected one of {", ".join(known)}, or '
                f'the path of a config that defines `{kind}`{hint}'
            )
        path = folder / f'{name}.py'
    part = read_file(str(path)).get(kind)
    if not isinstance(part, ConfigDict):
        raise ValueError(f'{option} {name!r}: the file defines no `{kind}`')
    return part.to_dict()


def _calibration_loader(
    content: dict[str, Any], recipe: Recipe
) -> dict[str, Any]:
    """Return the test loader's config with calibration images in it."""
    loader = copy.deepcopy(content['test_dataloader'])
    pipeline = _pipeline(loader['dataset'])
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


def _unlabeled(path: str, pipeline: list[dict]) -> dict[str, Any]:
    """Return the config of a data set of the images at ``path``."""
    if not osp.exists(path):
        raise FileNotFoundError(
            f'--calibration {path!r} does not exist, expected a folder of '
            'images or a list of images'
        )
    steps = [step for step in pipeline if _kind(step) not in OF_LABELS]
    if not any(_kind(step).startswith('LoadImage') for step in steps):
        steps = [dict(type='LoadImageFromFile'), *steps]
    path = osp.abspath(path)
    where = (
        dict(data_root=path)
        if osp.isdir(path)
        else dict(data_root=osp.dirname(path), ann_file=osp.basename(path))
    )
    return dict(type=f'{SCOPE}.UnlabelledImages', pipeline=steps, **where)


def _kind(step: dict) -> str:
    return str(step['type']).split('.')[-1]


def _pipeline(dataset: dict[str, Any]) -> list[dict]:
    """Return the pipeline of a data set, or of the one that it wraps."""
    for inner in _wrapped(dataset):
        return _pipeline(inner)
    return dataset.get('pipeline', [])


def _with_pipeline(
    dataset: dict[str, Any], pipeline: list[dict]
) -> dict[str, Any]:
    """Return the data set with another pipeline.

    What wraps a single data set repeats, balances or mixes its images for
    training, and is left out.
    """
    inner = _wrapped(dataset)
    if not inner:
        return dict(dataset, pipeline=copy.deepcopy(pipeline))
    parts = [_with_pipeline(part, pipeline) for part in inner]
    return parts[0] if len(parts) == 1 else dict(dataset, datasets=parts)


def _wrapped(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the data sets that a data set wraps."""
    if isinstance(dataset.get('dataset'), dict):
        return [dataset['dataset']]
    return list(dataset.get('datasets') or [])
