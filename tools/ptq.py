"""Quantizes a trained model.

python tools/ptq.py CONFIG CHECKPOINT
"""

from __future__ import annotations

import argparse
import os
import sys

from mmengine.config import DictAction

from mmrazor_brecq.engine.launch import load_config, ptq


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config with a BRECQ model')
    parser.add_argument('checkpoint', help='float weights of the architecture')
    parser.add_argument('--work-dir', help='folder of everything written')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with the unfinished run in the folder',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load the checkpoint even if that can run code in it',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='changes to the config, such as model.quantization.weight.bits=3',
    )
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
        ptq(cfg, args.checkpoint, args.resume, args.trust_checkpoint)
    except (ValueError, KeyError, OSError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            '\nInterrupted: the same command with --resume goes on after the '
            'last finished unit',
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
