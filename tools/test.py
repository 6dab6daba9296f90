"""Evaluate a quantized checkpoint.

python tools/test.py CONFIG QUANTIZED
"""

from __future__ import annotations

import sys

from mmrazor_brecq.cli import config_of, run_tool, tool_parser


def main() -> int:
    args = tool_parser(
        __doc__,
        config='the config of the run',
        checkpoint='quantized.pth of the run',
    ).parse_args()

    def action() -> None:
        cfg = config_of(args, 'test_dataloader')
        from mmrazor_brecq.engine.launch import test

        test(cfg, args.checkpoint)

    return run_tool(args, action)


if __name__ == '__main__':
    sys.exit(main())
