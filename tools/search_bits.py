"""Search the bits of each layer within a budget.

python tools/search_bits.py CONFIG CHECKPOINT --budget 'weight_bytes<=0.4MB'
"""

from __future__ import annotations

import sys

from mmrazor_brecq.cli import (
    add_target_option,
    add_trust_option,
    config_of,
    run_tool,
    tool_parser,
)


def main() -> int:
    parser = tool_parser(
        __doc__,
        config='a config with a BRECQ model',
        checkpoint='float weights of the architecture',
    )
    parser.add_argument(
        '--budget',
        nargs='+',
        default=[],
        help="limits such as 'weight_bytes<=0.4MB', 'bops<=1.5G' or "
        "'latency_ms<=2'; 'weight_bytes<=0.4MB,bops<=1.5G' combines two; each "
        'argument is a separate search',
    )
    parser.add_argument(
        '--equal-to',
        nargs='+',
        default=[],
        help='uniform models that set the size limit, such as w3 or w3a4',
    )
    parser.add_argument(
        '--sensitivity',
        help='file of sensitivities: read if it exists, else written '
        '(default: sensitivity.json in the folder)',
    )
    parser.add_argument(
        '--latency-table', help='table that tools/measure_latency.py wrote'
    )
    add_target_option(parser)
    add_trust_option(parser)
    args = parser.parse_args()

    def action() -> None:
        cfg = config_of(args, 'test_cfg.calibration.dataloader')
        from mmrazor_brecq.engine.search_run import search_bits

        search_bits(
            cfg,
            args.config,
            args.checkpoint,
            args.budget,
            args.equal_to,
            args.sensitivity,
            args.latency_table,
            bool(args.cfg_options or args.device),
            args.trust_checkpoint,
        )

    return run_tool(
        args, action, 'the same command continues after the last finished unit'
    )


if __name__ == '__main__':
    sys.exit(main())
