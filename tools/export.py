"""Write a quantized checkpoint as an ONNX file, and prove that it agrees.

python tools/export.py CONFIG QUANTIZED
"""

from __future__ import annotations

import sys

from mmrazor_brecq.cli import config_of, run_tool, tool_parser
from mmrazor_brecq.validation import Batch, Count, Fraction, option


def main() -> int:
    parser = tool_parser(
        __doc__,
        config='the config of the run',
        checkpoint='quantized.pth of the run',
    )
    parser.add_argument(
        '--target',
        metavar='NAME_OR_FILE',
        help='onnxruntime, openvino, tensorrt, a target of your own, or a '
        'YAML file (default: `model.target` of the config, or else '
        'onnxruntime)',
    )
    parser.add_argument(
        '--pack',
        action='store_true',
        help='store weights of 4 bits or fewer as INT4 or INT2',
    )
    parser.add_argument(
        '--batch',
        type=option(Batch),
        default='dynamic',
        help='`dynamic`, or a number of images',
    )
    parser.add_argument(
        '--output',
        help='the ONNX file (default: beside the checkpoint, with its name)',
    )
    parser.add_argument(
        '--force', action='store_true', help='overwrite an existing file'
    )
    parser.add_argument(
        '--with-preprocess',
        action='store_true',
        help='take uint8 images, N x H x W x 3, RGB, and normalize inside',
    )
    parser.add_argument(
        '--with-postprocess',
        action='store_true',
        help='put out boxes, scores and classes of a detector, suppressed '
        'inside',
    )
    parser.add_argument(
        '--no-verify',
        action='store_true',
        help='write the file without comparing it with torch',
    )
    parser.add_argument(
        '--images',
        type=option(Count),
        default=1024,
        help='number of images to compare on',
    )
    for name, least, what in (
        ('agreement', 0.9, 'images of the same class'),
        ('exact', 0.97, 'equal integers in each layer'),
        ('within', 0.9999, 'integers that differ by at most one'),
        ('metric', 0.9, 'the metric in torch'),
    ):
        parser.add_argument(
            f'--least-{name}',
            type=option(Fraction),
            default=least,
            help=f'smallest fraction of {what} that passes',
        )
    args = parser.parse_args()

    def action() -> None:
        images = [] if args.no_verify else ['test_dataloader']
        cfg = config_of(args, 'test_cfg.calibration.dataloader', *images)
        from mmrazor_brecq.engine.deploy import Request, export

        request = Request(
            target=args.target,
            pack=args.pack,
            batch=args.batch,
            output=args.output,
            force=args.force,
            preprocess=args.with_preprocess,
            postprocess=args.with_postprocess,
            verify=not args.no_verify,
            images=args.images,
            least_agreement=args.least_agreement,
            least_exact=args.least_exact,
            least_within=args.least_within,
            least_metric=args.least_metric,
        )
        export(cfg, args.checkpoint, request)

    return run_tool(args, action)


if __name__ == '__main__':
    sys.exit(main())
