"""Quantizes a trained model.

python tools/ptq.py CONFIG CHECKPOINT
"""

from __future__ import annotations

import sys

from mmrazor_brecq.cli import add_trust_option, run_tool, tool_parser
from mmrazor_brecq.engine.launch import load_config, ptq


def main() -> int:
    parser = tool_parser(
        __doc__,
        config='a config with a BRECQ model',
        checkpoint='float weights of the architecture',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with the unfinished run in the folder',
    )
    add_trust_option(parser)
    args = parser.parse_args()

    def action() -> None:
        cfg = load_config(
            args.config, args.cfg_options, args.work_dir, args.launcher
        )
        ptq(cfg, args.checkpoint, args.resume, args.trust_checkpoint)

    return run_tool(
        args,
        action,
        ': the same command with --resume goes on after the last finished '
        'unit',
    )


if __name__ == '__main__':
    sys.exit(main())
