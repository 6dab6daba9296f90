"""Write a config's latency table; mixed_precision.latency measures it.

This module finds the shapes of the layers in the config's model.
"""

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

    Layers are measured at the bits that a search may choose, at the bits in
    the config (such as those of the first and the last layer), and in float.

    Args:
        cfg (Config): From :func:`load_config`.
        path (str): File of the table, in CSV or JSON by its ending.
        repeats (int): Runs of each layer.
        threads (int): Threads of the runtime.
        measure (bool): Whether to measure. If not, the times are left
            empty, to be filled in on the device.

    Raises:
        ValueError: If the path has another ending.
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
    weights, activations = zip(*model.bits.values())
    weight_bits = sorted({*settings.bits, *weights})
    activation_bits = [*sorted({*settings.bits, *activations}), FLOAT]
    if measure:
        rows: list[Row] = []
        for row in measure_latency(
            shapes, weight_bits, activation_bits, repeats, threads
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
            for weight in weight_bits
            for activation in activation_bits
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
    runner.logger.info(f'The latency table is in {path}')
