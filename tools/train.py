"""Trains the float models of the demo, fast on a CPU too.

    python tools/train.py configs/float/resnet18_fashion-mnist.py

Leaves ``<work_dir>/float.pth``: a plain ``state_dict`` of the model.
"""

from __future__ import annotations

import argparse
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from mmrazor_brecq.checkpoint import save_tensors
from mmrazor_brecq.cli import CfgOptions


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Runs the forward pass in bfloat16, on any device (mmengine's own
    mixed precision asks for an accelerator)."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with (
            super().optim_context(model),
            torch.autocast(device, dtype=torch.bfloat16),
        ):
            yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config of configs/float')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions)
    args = parser.parse_args()

    cfg = Config.fromfile(args.config)
    cfg.work_dir = args.work_dir or osp.join(
        'work_dirs', osp.splitext(osp.basename(args.config))[0]
    )
    cfg.resume = args.resume
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    runner = Runner.from_cfg(cfg)
    runner.model.to(memory_format=torch.channels_last)
    model = runner.train()
    path = osp.join(runner.work_dir, 'float.pth')
    save_tensors(
        {k: v.contiguous() for k, v in model.cpu().state_dict().items()}, path
    )
    runner.logger.info(f'The float model lies in {path}')


if __name__ == '__main__':
    main()
