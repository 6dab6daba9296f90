"""Fine-tune a quantized checkpoint on training images.

python tools/finetune.py CONFIG QUANTIZED
python tools/finetune.py CONFIG QUANTIZED --teacher FLOAT.pth --no-labels
"""

from __future__ import annotations

import sys

from mmrazor_brecq._interrupt import set_resumable
from mmrazor_brecq.cli import (
    add_trust_option,
    config_of,
    run_tool,
    tool_parser,
)


def main() -> int:
    parser = tool_parser(
        __doc__,
        config='the config of the run, with `train_dataloader`, `train_cfg` '
        'and `optim_wrapper`',
        checkpoint='quantized.pth of the run',
    )
    parser.add_argument(
        '--teacher',
        metavar='FLOAT',
        help='float checkpoint, whose outputs are learned, too',
    )
    parser.add_argument(
        '--no-labels',
        action='store_true',
        help='learn from the teacher alone',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='continue after the last epoch saved in the folder',
    )
    add_trust_option(parser)
    args = parser.parse_args()

    def action() -> None:
        cfg = config_of(args, 'train_dataloader', 'test_dataloader')
        # Imported late: torch takes seconds.
        from mmrazor_brecq.engine.fine_tune_run import finetune

        set_resumable()
        finetune(
            cfg,
            args.checkpoint,
            args.teacher,
            not args.no_labels,
            args.resume,
            args.trust_checkpoint,
        )

    return run_tool(
        args,
        action,
        'the same command with --resume goes on after the last epoch that '
        'was saved',
    )


if __name__ == '__main__':
    sys.exit(main())
