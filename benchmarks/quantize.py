"""Quantizes models for the other scripts; nothing to run by itself."""

from __future__ import annotations

import argparse
import json
import os.path as osp
import time
from typing import Any

import torch
from accuracy import FOLDERS, ROOT
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.checkpoint import load_float, save_json
from mmrazor_brecq.cli import CfgOptions
from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.engine.launch import (
    bare_model,
    build_runner,
    calibration_images,
)
from mmrazor_brecq.graph import run_float
from mmrazor_brecq.report import weight_bytes

#: Test images and labels, for all runs.
_TESTS: list = []


def add_row_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the options that all rows of a table share.

    Args:
        parser (ArgumentParser): Gets ``--out`` and ``--cfg-options``.
        out (str): Default folder of the results.
    """
    parser.add_argument('--out', default=out)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        default={},
        help='of all rows; give it an --out of its own',
    )


def config_of(model: str, bits: str) -> str:
    """The config of a demo model."""
    folder = f'{ROOT}/configs/brecq/{FOLDERS[model]}'
    return f'{folder}/brecq_{model}_{bits}_fashion-mnist.py'


def checkpoint_of(model: str) -> str:
    """The float weights of a demo model."""
    return f'{ROOT}/demo/{model}_fashion-mnist.pth'


def prepared(
    cfg: Config, checkpoint: str
) -> tuple[Runner, BRECQ, CachedBatches]:
    """Runner, model with float weights, and calibration images."""
    cfg.experiment_name = f'{time.time_ns()}'
    runner = build_runner(cfg)
    brecq = bare_model(runner)
    load_float(brecq, checkpoint)
    brecq.eval()
    return runner, brecq, calibration_images(runner, brecq)


@torch.no_grad()
def answers(runner: Runner, network: nn.Module) -> tuple[Tensor, Tensor]:
    """What a network says of all test images, N x C, and their labels."""
    preprocess = bare_model(runner).data_preprocessor
    said, labels = [], []
    for data in runner.build_dataloader(runner.cfg.test_dataloader):
        labels += [sample.gt_label.label for sample in data['data_samples']]
        inputs = preprocess(data, False)['inputs']
        said.append(run_float(network, inputs).cpu())
    return torch.cat(said), torch.cat(labels)


@torch.no_grad()
def top1(runner: Runner, network: nn.Module) -> float:
    """Top-1 accuracy on all test images, in per cent."""
    if not _TESTS:
        preprocess = bare_model(runner).data_preprocessor
        for data in runner.build_dataloader(runner.cfg.test_dataloader):
            labels = [s.gt_label.label for s in data['data_samples']]
            inputs = preprocess(data, False)['inputs']
            _TESTS.append((inputs, torch.cat(labels)))
    right = sum(
        int((run_float(network, inputs).argmax(1) == labels).sum())
        for inputs, labels in _TESTS
    )
    return 100 * right / sum(len(labels) for _, labels in _TESTS)


def quantize(
    model: str, config: str, options: dict, seed: int, path: str
) -> dict[str, Any]:
    """Quantize and evaluate, or read what came of it.

    Args:
        model (str): Name of a demo model.
        config (str): A config of it.
        options (dict): Changes to the config.
        seed (int): Of all randomness.
        path (str): Where the result is kept.

    Returns:
        dict: ``top1``, ``weight_bytes``, ``seconds`` and ``cpu_seconds``.
    """
    if not osp.exists(path):
        options = {
            **options,
            'randomness.seed': seed,
            'log_level': 'WARNING',
        }
        cfg = load_config(config, options, osp.dirname(path))
        runner, brecq, images = prepared(cfg, checkpoint_of(model))
        start, cpu = time.perf_counter(), time.process_time()
        teacher = brecq.prepare(images.batch(0)[:1])
        for _ in brecq.reconstruct(teacher, images, seed):
            pass
        seconds = time.perf_counter() - start
        cpu = time.process_time() - cpu
        save_json(
            dict(
                top1=top1(runner, brecq.architecture),
                weight_bytes=weight_bytes(brecq)['quantized'],
                seconds=seconds,
                cpu_seconds=cpu,
            ),
            path,
        )
    with open(path) as file:
        return json.load(file)
