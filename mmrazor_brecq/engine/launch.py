"""From a config file and a checkpoint to a runner that is ready."""

from __future__ import annotations

from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS, init_default_scope
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.runner import Runner

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..checkpoint import load_float, load_quantized
from ..config.load import load_config, read_config
from .calibration import ImageSet, cache_images
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
    """Quantize as the config says.

    Args:
        cfg (Config): From :func:`load_config`.
        checkpoint (str): The float checkpoint.
        resume (bool): Go on with an unfinished run in the same folder.
        trust (bool): Whether the checkpoint may run code.

    Returns:
        dict: Metrics of the quantized model.
    """
    loop = cfg.get('test_cfg') or {}
    if not str(loop.get('type')).endswith('PTQLoop'):
        raise ValueError(
            f'test_cfg.type={loop.get("type")!r}, expected '
            "'mmrazor_brecq.PTQLoop': inherit one of configs/brecq, or write "
            '`test_cfg` as docs/tutorials/classifier.md has it'
        )
    check_settings(cfg)
    # It is of this call, and no part of the config that stays.
    cfg.test_cfg.pop('resume', None)
    with one_run(
        cfg,
        'once that is mended, the same command with --resume goes on after '
        'the last finished unit',
    ):
        runner = build_runner(cfg, RunOwner)
        with starting(runner):
            load_float(bare_model(runner), checkpoint, trust)
            _loop(runner).resume = resume
        return runner.test()


def test(cfg: Config, checkpoint: str) -> dict[str, float]:
    """Evaluate a quantized checkpoint.

    Args:
        cfg (Config): From :func:`load_config`.
        checkpoint (str): What :func:`ptq` wrote.

    Returns:
        dict: Its metrics.
    """
    cfg.test_cfg = dict()
    runner = build_runner(cfg)
    with starting(runner):
        load_quantized(bare_model(runner), checkpoint)
        _loop(runner)
    runner.begin()
    return runner.test()


def build_model(cfg: Config) -> BRECQ:
    """The model of a config, without a runner and without weights."""
    check_settings(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = dict(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        # As the runner does it.
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    # So the architecture is looked for in the default scope, as there.
    with construction(cfg):
        return MMENGINE_MODELS.build(model).eval()


def build_runner(cfg: Config, kind: type[RunOwner] = RunVisitor) -> RunOwner:
    """A runner as the config says.

    Args:
        cfg (Config): From :func:`load_config`.
        kind (type): Whether the folder becomes its own (:class:`RunOwner`),
            or is that of a run it looks at.

    Hooks that put averaged weights in the place of a model's while it is
    tested, such as mmengine's EMAHook, are of training, and left out: they
    would put float weights in the place of integers.

    Raises:
        ValueError: If the config has a key that nothing takes.
    """
    check_settings(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if cfg.launcher == 'pytorch' and get_device() == 'cpu':
        # mmengine's own launcher takes an accelerator for granted.
        if not is_distributed():
            torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', device_ids=None
        )
    cfg.custom_hooks = [
        hook for hook in cfg.get('custom_hooks') or [] if not _averages(hook)
    ]
    with construction(cfg):
        return kind.from_cfg(cfg)


def _loop(runner: Runner) -> Any:
    """The loop of a runner, which builds its data sets."""
    with construction(runner.cfg):
        return runner.test_loop


def _averages(hook: Any) -> bool:
    """Whether a hook swaps weights for their averages."""
    kind = hook.get('type') if isinstance(hook, dict) else type(hook)
    if isinstance(kind, str):
        kind = HOOKS.get(kind)
    return isinstance(kind, type) and issubclass(kind, EMAHook)


def bare_model(runner: Runner) -> BRECQ:
    """The runner's model without a wrapper."""
    return getattr(runner.model, 'module', runner.model)


def calibration_images(
    runner: Runner, model: BRECQ, num_images: Optional[int] = None
) -> CachedBatches:
    """The calibration images that a config names.

    Args:
        runner (Runner): Of the config.
        model (BRECQ): With its preprocessor.
        num_images (int, optional): In place of those of the config.
    """
    calibration = dict(runner.cfg.test_cfg.calibration)
    if num_images is not None:
        calibration['num_images'] = num_images
    loader = calibration['dataloader']
    return cache_images(
        model,
        runner.build_dataloader(loader, runner.seed),
        calibration,
        runner.work_dir,
        ImageSet(),
    )
