"""Fine-tune the quantized checkpoint of a run."""

from __future__ import annotations

import os.path as osp
from typing import Any, Optional

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import init_default_scope

from ..checkpoint import keep_older, save_quantized
from . import fine_tuning
from .differences import config_changes
from .mistakes import construction
from .results import best_metric, one_run
from .runners import RunOwner
from .settings import check_settings
from .training import PlainCheckpoint

#: Keys that a config of fine-tuning needs.
NEEDED = ('train_dataloader', 'train_cfg', 'optim_wrapper')
#: File name of the result.
RESULT = 'finetuned.pth'


def finetune(
    cfg: Config,
    checkpoint: str,
    teacher: Optional[str] = None,
    labels: bool = True,
    resume: bool = False,
    trust: bool = False,
) -> str:
    """Train weights and scales of a quantized checkpoint.

    Args:
        cfg (Config): From :func:`load_config`, with ``train_dataloader``,
            ``train_cfg`` and ``optim_wrapper`` as mmengine's runner takes
            them.
        checkpoint (str): A quantized checkpoint of ``tools/ptq.py``.
        teacher (str, optional): The float checkpoint, to learn from.
        labels (bool): Whether to learn from labels.
        resume (bool): Whether to go on after the last epoch saved.
        trust (bool): Whether loading the teacher may run code.

    Returns:
        str: Path of the quantized checkpoint that was written.

    Raises:
        ValueError: If the config or a checkpoint is not valid, or
            ``resume`` is given another config than before.
    """
    check_settings(cfg)
    missing = [key for key in NEEDED if not cfg.get(key)]
    if missing:
        raise ValueError(
            f'The config has no `{missing[0]}`: inherit '
            'configs/_base_/fine_tuning.py and a data set with '
            '`train_dataloader`, as configs/fine_tuning does'
        )
    cfg.update(_validation(cfg))
    cfg.update(test_dataloader=None, test_evaluator=None, test_cfg={})
    quantized = dict(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        # As mmengine's runner does.
        quantized.setdefault('data_preprocessor', cfg.pop('data_preprocessor'))
    cfg.model = dict(
        type='mmrazor_brecq.FineTuning',
        quantized=quantized,
        checkpoint=osp.abspath(checkpoint),
        teacher=None if teacher is None else osp.abspath(teacher),
        labels=labels,
        trust=trust,
    )
    cfg.resume = resume
    with one_run(cfg, 'once that is fixed, the same command with --resume'):
        name = osp.basename(cfg.filename or '')
        changed = config_changes(cfg.work_dir, name, cfg) if resume else []
        if changed:
            raise ValueError(
                f'--resume: the run in {cfg.work_dir} had another config '
                f'({"; ".join(changed[:4])}). Give it the same, or start a '
                'new run without --resume, or with another --work-dir'
            )
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        with construction(cfg):
            runner = RunOwner.from_cfg(cfg)
        runner.begin()
        runner.register_hook(PlainCheckpoint())
        model = fine_tuning.train(runner, best_metric(cfg))
        path = osp.join(runner.work_dir, RESULT)
        if is_main_process():
            keep_older(path)
            save_quantized(model.quantized.cpu(), model.meta, path)
        runner.logger.info(f'The fine-tuned model is in {path}')
    return path


def _validation(cfg: Config) -> dict[str, Any]:
    """Return what validates: the images of the test, unless others do."""
    keys = 'dataloader', 'evaluator'
    kind = 'val' if cfg.get('val_dataloader') else 'test'
    parts = {f'val_{key}': cfg.get(f'{kind}_{key}') for key in keys}
    known = all(parts.values())
    loop = dict(cfg.get('val_cfg') or {})
    return dict(
        {key: part if known else None for key, part in parts.items()},
        val_cfg=loop if known else None,
    )
