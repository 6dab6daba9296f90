"""Measure the latency of the layers of a model one by one, in ONNX Runtime.

python tools/measure_latency.py CONFIG --out latency.csv
"""

from __future__ import annotations

import sys

from mmrazor_brecq.cli import config_of, run_tool, tool_parser
from mmrazor_brecq.validation import Count, option


def main() -> int:
    parser = tool_parser(__doc__, config='a config with a BRECQ model')
    parser.add_argument(
        '--out', required=True, help='the table to write, .csv or .json'
    )
    parser.add_argument(
        '--repeats',
        type=option(Count),
        default=30,
        help='number of runs of each layer',
    )
    parser.add_argument(
        '--threads',
        type=option(Count),
        default=1,
        help='threads of the runtime',
    )
    parser.add_argument(
        '--template',
        action='store_true',
        help='write an empty table, to be filled in on another device',
    )
    args = parser.parse_args()

    def action() -> None:
        cfg = config_of(args, 'test_cfg.calibration.dataloader')
        from mmrazor_brecq.engine.latency_run import write_latency_table

        write_latency_table(
            cfg, args.out, args.repeats, args.threads, not args.template
        )

    return run_tool(args, action)


if __name__ == '__main__':
    sys.exit(main())
