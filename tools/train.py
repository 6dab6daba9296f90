"""Train the float models of the demo, fast on a CPU too.

python tools/train.py configs/float/resnet18_fashion-mnist.py

Leaves ``<work_dir>/float.pth``: a plain ``state_dict`` of the model.
"""

from __future__ import annotations

import os.path as osp
import sys

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
    import torch

    from mmrazor_brecq.checkpoint import save_tensors
    from mmrazor_brecq.engine.training import PlainCheckpoint, WatchingRunner

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


if __name__ == '__main__':
    sys.exit(main())
