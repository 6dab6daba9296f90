"""Build models and runners from configs, quantize, and evaluate."""

from __future__ import annotations

from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS, init_default_scope
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.runner import BaseLoop, Runner

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..checkpoint import load_float, load_quantized
from ..config.load import load_config, read_config
from .calibration import cache_images
from .data_mistakes import measuring
from .image_set import ImageSet
from .loaders import CALIBRATION, build_dataloader
from .mistakes import construction
from .results import one_run
from .runners import RunOwner, RunVisitor, starting
from .settings import check_settings

__all__ = [
    'bare_model',
    'build_model',
    'build_runner',
    'calibration_images',
    'load_config',
    'ptq',
    'read_config',
    'test',
]


def ptq(
    cfg: Config, checkpoint: str, resume: bool = False, trust: bool = False
) -> dict[str, float]:
    """Quantize the model of a config, and evaluate it.

    Args:
        cfg (Config): From :func:`load_config`.
        checkpoint (str): The float checkpoint.
        resume (bool): Whether to continue an unfinished run in the folder.
        trust (bool): Whether loading the checkpoint may run code.

    Returns:
        dict: Metrics of the quantized model.

    Raises:
        ValueError: If the config or the checkpoint is not valid, or another
            run uses the folder.
        OSError: If a file cannot be read or written.
    """
    loop = cfg.get('test_cfg') or {}
    if not str(loop.get('type')).endswith('PTQLoop'):
        raise ValueError(
            f'test_cfg.type={loop.get("type")!r}, expected '
            "'mmrazor_brecq.PTQLoop': inherit one of configs/brecq, or write "
            '`test_cfg` as docs/tutorials/classifier.md has it'
        )
    check_settings(cfg)
    # This call decides it, so the saved config does not contain it.
    cfg.test_cfg.pop('resume', None)
    with one_run(
        cfg,
        'once that is fixed, the same command with --resume continues after '
        'the last finished unit',
    ):
        runner = build_runner(cfg, RunOwner)
        with starting(runner):
            load_float(bare_model(runner), checkpoint, trust)
            test_loop: Any = _loop(runner)
            test_loop.resume = resume
            test_loop.float_checkpoint = checkpoint
        return runner.test()


def test(cfg: Config, checkpoint: str) -> dict[str, float]:
    """Evaluate a quantized checkpoint.

    Args:
        cfg (Config): From :func:`load_config`.
        checkpoint (str): A quantized checkpoint of :func:`ptq`.

    Returns:
        dict: Metrics of the quantized model.
    """
    if not cfg.get('test_evaluator'):
        raise ValueError(
            'The config has no `test_evaluator`, as that of a run with '
            '--no-eval: give one with `test_dataloader` and `test_evaluator`, '
            'such as that of the same run without --no-eval'
        )
    cfg.test_cfg = dict()
    runner = build_runner(cfg)
    with starting(runner):
        load_quantized(bare_model(runner), checkpoint)
        _loop(runner)
    runner.begin()
    with measuring():
        return runner.test()


def build_model(cfg: Config) -> BRECQ:
    """Build the model of a config, without a runner and without weights."""
    check_settings(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = dict(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        # As mmengine's runner does.
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    # Like the runner, look for the architecture in the default scope.
    with construction(cfg):
        return MMENGINE_MODELS.build(model).eval()


def build_runner(cfg: Config, kind: type[RunOwner] = RunVisitor) -> RunOwner:
    """Build the runner of a config.

    Hooks that replace the weights of a model by averages while it is tested,
    such as mmengine's EMAHook, are left out, since they would replace
    integers by float weights.

    Args:
        cfg (Config): From :func:`load_config`.
        kind (type): :class:`RunOwner` for a runner that writes into the
            folder of the run, else :class:`RunVisitor`.

    Returns:
        RunOwner: The runner.

    Raises:
        ValueError: If the config has an unknown key.
    """
    check_settings(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if cfg.launcher == 'pytorch' and get_device() == 'cpu':
        # mmengine's own launcher requires an accelerator.
        if not is_distributed():
            torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', device_ids=None
        )
    cfg.custom_hooks = [
        hook
        for hook in cfg.get('custom_hooks') or []
        if not _averages_weights(hook)
    ]
    with construction(cfg):
        return kind.from_cfg(cfg)


def _loop(runner: Runner) -> BaseLoop:
    """Return the test loop of a runner, which builds its data sets."""
    with construction(runner.cfg):
        return runner.test_loop


def _averages_weights(hook: object) -> bool:
    """Return whether a hook replaces weights by their averages."""
    kind = hook.get('type') if isinstance(hook, dict) else type(hook)
    if isinstance(kind, str):
        kind = HOOKS.get(kind)
    return isinstance(kind, type) and issubclass(kind, EMAHook)


def bare_model(runner: Runner) -> BRECQ:
    """Return the model of a runner, without a wrapper."""
    return getattr(runner.model, 'module', runner.model)


def calibration_images(
    runner: Runner, model: BRECQ, num_images: Optional[int] = None
) -> CachedBatches:
    """Return the calibration images of a config.

    Args:
        runner (Runner): The runner of the config.
        model (BRECQ): The model. Its preprocessor is applied.
        num_images (int, optional): Number of images, in place of that of
            the config.

    Returns:
        CachedBatches: Batches of N x C x H x W.
    """
    calibration = dict(runner.cfg.test_cfg.calibration)
    if num_images is not None:
        calibration['num_images'] = num_images
    loader = calibration['dataloader']
    return cache_images(
        model,
        build_dataloader(loader, runner.seed, key=CALIBRATION),
        calibration,
        runner.work_dir,
        ImageSet(),
    )
