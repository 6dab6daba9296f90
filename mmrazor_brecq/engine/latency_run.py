"""A table of latencies for the layers of a config."""

from __future__ import annotations

import os.path as osp
import platform

import torch
from mmengine.config import Config

from ..checkpoint import keep_older, write_whole
from ..mixed_precision import model_shape
from ..mixed_precision.cost import FLOAT, LatencyTable
from ..mixed_precision.latency import Row, format_rows, measure_latency
from ..validation import Count, validated
from .launch import bare_model, build_runner, calibration_images
from .runners import starting
from .sensitivity_run import MixedPrecision


@validated
def write_latency_table(
    cfg: Config,
    path: str,
    repeats: Count = 30,
    threads: Count = 1,
    measure: bool = True,
) -> None:
    """Measure the layers of a config on this machine, in ONNX Runtime.

    The widths are those that a search may choose, the config's own ones
    (of the first and the last layer, say), and float.

    Args:
        cfg (Config): From :func:`load_config`.
        path (str): Where the table goes, CSV or JSON by its ending.
        repeats (int): Runs of each layer.
        threads (int): Threads of the runtime.
        measure (bool): If not, the times are left empty, to be filled in
            where the device is.

    Raises:
        ValueError: If the ending is another one.
    """
    ending = osp.splitext(path)[1]
    format_rows([], ending)
    settings = MixedPrecision.of(cfg)
    runner = build_runner(cfg)
    model = bare_model(runner)
    count = model.reconstructor.batch_size
    with starting(runner):
        example = calibration_images(runner, model, count).batch(0)
    runner.begin()
    model.eval()
    model.prepare(example[:1])
    shapes = [
        call
        for layer in model_shape(model.architecture, example[:1]).layers
        for call in layer.calls
    ]
    own = [
        {*settings.bits, *(bits[place] for bits in model.bits.values())}
        for place in (0, 1)
    ]
    widths = [sorted(own[0]), [*sorted(own[1]), FLOAT]]
    if measure:
        rows: list[Row] = []
        for row in measure_latency(
            shapes, widths[0], widths[1], repeats, threads
        ):
            if not rows or rows[-1]['shape'] != row['shape']:
                runner.logger.info(
                    f'{row["shape"]}: {row["latency_ms"]:.3f} ms'
                )
            rows.append(row)
    else:
        rows = [
            dict(zip(LatencyTable.COLUMNS, (key, weight, activation, '')))
            for key in dict.fromkeys(shape.key for shape in shapes)
            for weight in widths[0]
            for activation in widths[1]
        ]
    device = dict(
        machine=platform.machine(),
        system=platform.platform(),
        threads=threads,
        repeats=repeats,
        torch=torch.__version__,
    )
    keep_older(path)
    write_whole(path, format_rows(rows, ending, device))
    runner.logger.info(f'The latency table lies in {path}')
