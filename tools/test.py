"""Evaluates a quantized checkpoint.

python tools/test.py CONFIG QUANTIZED
"""

from __future__ import annotations

import argparse
import os
import sys

from mmengine.config import DictAction

from mmrazor_brecq.engine.launch import load_config, test


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='the config of the run')
    parser.add_argument('checkpoint', help='quantized.pth of the run')
    parser.add_argument('--work-dir', help='folder of the log')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))

    try:
        cfg = load_config(
            args.config, args.cfg_options, args.work_dir, args.launcher
        )
        test(cfg, args.checkpoint)
    except (ValueError, KeyError, OSError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
