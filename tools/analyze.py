"""Analyze which layers cost most, each quantized alone and left out alone.

python tools/analyze.py CONFIG QUANTIZED
python tools/analyze.py CONFIG FLOAT
"""

from __future__ import annotations

import sys

from mmrazor_brecq.cli import (
    add_trust_option,
    config_of,
    run_tool,
    tool_parser,
)
from mmrazor_brecq.validation import Count, Natural, option


def main() -> int:
    parser = tool_parser(
        __doc__,
        config='a config with a BRECQ model',
        checkpoint='quantized.pth of a run, or float weights, which are '
        'rounded to nearest with the bits of the config',
    )
    parser.add_argument(
        '--teacher',
        metavar='FLOAT',
        help='float checkpoint of a quantized one (default: the one that '
        'report.json beside it names)',
    )
    parser.add_argument(
        '--images',
        type=option(Count),
        default=64,
        help='held-out calibration images to measure on, at most',
    )
    parser.add_argument(
        '--eval',
        type=option(Natural),
        default=0,
        metavar='LAYERS',
        help='also measure the accuracy, both ways, for so many layers, the '
        'costliest ones; each takes two evaluations (default: none)',
    )
    parser.add_argument(
        '--sensitivity',
        help='file of sensitivities of search_bits to show beside (default: '
        'sensitivity.json in the folder, if it is of this network)',
    )
    add_trust_option(parser)
    args = parser.parse_args()

    def action() -> None:
        images = ['test_dataloader'] if args.eval else []
        cfg = config_of(args, 'test_cfg.calibration.dataloader', *images)
        # Imported late: torch takes seconds.
        from mmrazor_brecq.engine.analyze_run import analyze

        analyze(
            cfg,
            args.checkpoint,
            args.teacher,
            args.images,
            args.eval,
            args.sensitivity,
            args.trust_checkpoint,
        )

    return run_tool(
        args,
        action,
        'the same command continues after the last finished layer',
    )


if __name__ == '__main__':
    sys.exit(main())
