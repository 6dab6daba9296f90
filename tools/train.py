"""Train the float models of the demo, fast on a CPU too.

python tools/train.py configs/float/resnet18_fashion-mnist.py

Leaves ``<work_dir>/float.pth``: a plain ``state_dict`` of the model.
"""

from __future__ import annotations

import os.path as osp
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config

from mmrazor_brecq._interrupt import set_resumable
from mmrazor_brecq.cli import run_tool, tool_parser
from mmrazor_brecq.config.load import check_data, check_writable
from mmrazor_brecq.config.read import read_file


def main() -> int:
    parser = tool_parser(__doc__, config='a config of configs/float')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='continue after the last epoch saved in the folder',
    )
    args = parser.parse_args()

    def action() -> None:
        cfg = read_file(args.config)
        cfg.launcher = args.launcher
        cfg.merge_from_dict(args.cfg_options or {})
        cfg.work_dir = args.work_dir or osp.join(
            'work_dirs', osp.splitext(osp.basename(args.config))[0]
        )
        cfg.resume = args.resume
        check_data(cfg, ['train_dataloader', 'val_dataloader'])
        check_writable(cfg.work_dir)
        train(cfg)

    return run_tool(
        args,
        action,
        'the same command with --resume goes on after the last epoch that '
        'was saved',
    )


def train(cfg: Config) -> None:
    """Train, and write the weights."""
    import numpy as np
    import torch
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    from mmrazor_brecq.checkpoint import save_tensors
    from mmrazor_brecq.engine import loaders

    class WatchingRunner(Runner):
        """Names images that cannot be read."""

        build_dataloader = staticmethod(loaders.build_dataloader)

    class PlainCheckpoint(Hook):
        """Leaves out objects of Python, for torch refuses to load them."""

        def before_save_checkpoint(
            self, runner: Runner, checkpoint: dict[str, Any]
        ) -> None:
            known = checkpoint['message_hub']['runtime_info']
            known = {
                key: value.item() if isinstance(value, np.generic) else value
                for key, value in known.items()
            }
            checkpoint['message_hub'] = dict(
                log_scalars={}, runtime_info=known, resumed_keys={}
            )

    register_wrapper()
    runner = WatchingRunner.from_cfg(cfg)
    runner.register_hook(PlainCheckpoint())
    set_resumable()
    runner.model.to(memory_format=torch.channels_last)
    model = runner.train()
    path = osp.join(runner.work_dir, 'float.pth')
    save_tensors(
        {k: v.contiguous() for k, v in model.cpu().state_dict().items()}, path
    )
    runner.logger.info(f'The float model lies in {path}')


def register_wrapper() -> None:
    """Register a mixed precision that asks for no accelerator."""
    import torch
    from mmengine.optim import OptimWrapper
    from mmengine.registry import OPTIM_WRAPPERS

    @OPTIM_WRAPPERS.register_module(force=True)
    class AutocastOptimWrapper(OptimWrapper):
        """Runs the forward pass in bfloat16, on any device."""

        @contextmanager
        def optim_context(self, model: Any) -> Iterator[None]:
            device = next(model.parameters()).device.type
            with (
                super().optim_context(model),
                torch.autocast(device, dtype=torch.bfloat16),
            ):
                yield


if __name__ == '__main__':
    sys.exit(main())
