"""Write a config's latency table; mixed_precision.latency measures it.

This module finds the shapes of the layers in the config's model.
"""

from __future__ import annotations

import logging
import os.path as osp
import platform
from collections.abc import Iterable, Iterator, Sequence

import torch
from mmengine.config import Config

from ..algorithms import BRECQ
from ..checkpoint import keep_older, write_whole
from ..mixed_precision import model_shape
from ..mixed_precision.cost import LatencyTable
from ..mixed_precision.latency import Row, format_rows, measure_latency
from ..mixed_precision.shapes import CallShape
from ..targets import FLOAT
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
    searched = MixedPrecision.of(cfg).bits
    runner = build_runner(cfg)
    model = bare_model(runner)
    count = model.reconstructor.batch_size
    with starting(runner):
        example = calibration_images(runner, model, count).batch(0)[:1]
    runner.begin()
    model.eval()
    model.prepare(example)
    shapes = [
        call
        for layer in model_shape(model.architecture, example).layers
        for call in layer.calls
    ]
    weight_bits, activation_bits = _bits(model, searched)
    if measure:
        found = measure_latency(
            shapes, weight_bits, activation_bits, repeats, threads
        )
        rows = list(_logged(found, runner.logger))
    else:
        rows = _template(shapes, weight_bits, activation_bits)
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


def _bits(model: BRECQ, searched: Sequence[int]) -> tuple[list, list]:
    """Return the bits of weights and of activations that a table needs.

    Args:
        model (BRECQ): Prepared, with the bits of its config.
        searched (list[int]): The bits that a search may choose.
    """
    pairs = model.bits.values()
    # Both operands of a product of activations have the same bits.
    weights = {activation if w is None else w for w, activation in pairs}
    activations = {activation for _, activation in pairs}
    return (
        sorted({*searched, *weights}),
        [*sorted({*searched, *activations}), FLOAT],
    )


def _logged(rows: Iterable[Row], logger: logging.Logger) -> Iterator[Row]:
    """Yield the rows of a table, and log the first of each layer."""
    before = None
    for row in rows:
        if row['shape'] != before:
            logger.info(f'{row["shape"]}: {row["latency_ms"]:.3f} ms')
        before = row['shape']
        yield row


def _template(
    shapes: Iterable[CallShape],
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
) -> list[Row]:
    """Return the rows of a table without times."""
    return [
        dict(zip(LatencyTable.COLUMNS, (key, weight, activation, '')))
        for key in dict.fromkeys(shape.key for shape in shapes)
        for weight in weight_bits
        for activation in activation_bits
    ]
