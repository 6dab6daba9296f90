"""Quantize a trained model.

python tools/ptq.py CONFIG CHECKPOINT
python tools/ptq.py FLOAT_CONFIG CHECKPOINT --recipe w4a4
"""

from __future__ import annotations

import sys
from typing import Literal

from mmrazor_brecq.cli import (
    add_recipe_options,
    add_target_option,
    add_trust_option,
    config_of,
    run_tool,
    tool_parser,
)
from mmrazor_brecq.validation import Amount, option


def main() -> int:
    parser = tool_parser(
        __doc__,
        config='a config with a BRECQ model, or a float one with --recipe',
        checkpoint='float weights of the architecture',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='continue the unfinished run in the folder',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='print units, layers, bits, what stays float, and an estimate '
        'of time and memory; write nothing',
    )
    add_target_option(parser)
    parser.add_argument(
        '--max-drop',
        type=option(Amount),
        metavar='POINTS',
        help='largest drop of the main metric; if it falls further, bits are '
        'given back where they buy most (default: any drop will do)',
    )
    parser.add_argument(
        '--up-to',
        type=option(Literal[8, 'float']),
        help='the most that a layer gets back, 8 bits or float (default: 8)',
    )
    add_trust_option(parser)
    add_recipe_options(parser)
    args = parser.parse_args()

    def action() -> None:
        cfg = config_of(
            args, 'test_dataloader', 'test_cfg.calibration.dataloader'
        )
        if args.up_to is not None and args.max_drop is None:
            raise ValueError(
                f'--up-to {args.up_to} belongs to --max-drop: add it, or '
                'leave --up-to out'
            )
        if args.max_drop is not None:
            cfg.setdefault('test_cfg', {})['max_drop'] = dict(
                points=args.max_drop, up_to=args.up_to or 8
            )
        # Imported late: torch takes seconds.
        if args.dry_run:
            from mmrazor_brecq.engine.dry_run import dry_run
            from mmrazor_brecq.report import plan_table

            plan = dry_run(cfg, args.checkpoint, args.trust_checkpoint)
            print(plan_table(plan), end='')
            return
        from mmrazor_brecq.engine.launch import ptq

        ptq(cfg, args.checkpoint, args.resume, args.trust_checkpoint)

    return run_tool(
        args,
        action,
        'the same command with --resume continues after the last unit',
    )


if __name__ == '__main__':
    sys.exit(main())
