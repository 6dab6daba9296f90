"""How near to float are detectors with real weights on real images?

    python benchmarks/detection.py FOLDER --detectors yolox-nano --bits w4a8

FOLDER has `coco/` with 128 images each of COCO's `train2017/` and `val2017/`
and their boxes in `train2017.json` and `val2017.json`; `bccd/` with the
`images/` of the Blood Cell Count and Detection data set, `trainval.json`,
`test.json`, and `retinanet_r18w24.py`, the config of the small RetinaNet that
was trained on them; and `weights/` with the float weights of both.

One row for each detector, bit widths, schedule and placement: the box mAP
beside that of float, and the seconds and the memory of the quantization
alone. `nearest` is a schedule without learning; `onnxruntime` and `nncf`, at
w8a8, are what these make of the float network, in a file that ONNX Runtime
runs. Each row is a process of its own. What is measured already, in --out,
is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import os.path as osp
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from quantize import add_row_options, prepared
from rich.console import Console
from rich.table import Table

from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.checkpoint import save_json
from mmrazor_brecq.config.read import read_file
from mmrazor_brecq.config.recipe import Recipe, read_base
from mmrazor_brecq.engine.deploy_metric import metric_of_file
from mmrazor_brecq.engine.launch import load_config
from mmrazor_brecq.engine.usage import peak_memory_mb
from mmrazor_brecq.export.session import to_bytes
from mmrazor_brecq.export.trace import trace

FLOAT, NEAREST = 'float', 'nearest'
METRIC = 'coco/bbox_mAP'
#: Where quantizers stand: everywhere, or in backbone and neck alone.
PLACEMENTS = {'ours': None, 'qdrop': 'placement/qdrop'}


@dataclass(frozen=True)
class Detector:
    """One detector, its images and its weights.

    Attributes:
        config (str): Of its model, of mmdet or below the folder.
        weights (str): Name of the file.
        data (str): Folder of the images.
        splits (tuple): COCO JSON to calibrate on and to measure on, and the
            folders of their images.
        resize (list): How its images get their size.
        classes (tuple): Where they are not those of COCO.
    """

    config: str
    weights: str
    data: str
    splits: tuple[tuple[str, str], tuple[str, str]]
    resize: list[dict[str, Any]]
    classes: tuple[str, ...] = ()


DETECTORS = {
    'yolox-nano': Detector(
        'mmdet::yolox/yolox_nano_8xb8-300e_coco.py',
        'mmdet_yolox-nano_coco.pth',
        'coco',
        (('train2017.json', 'train2017'), ('val2017.json', 'val2017')),
        [
            dict(type='Resize', scale=(416, 416), keep_ratio=True),
            dict(
                type='Pad',
                pad_to_square=True,
                pad_val=dict(img=(114.0, 114.0, 114.0)),
            ),
        ],
    ),
    'retinanet': Detector(
        'bccd/retinanet_r18w24.py',
        'mmdet_retinanet-r18w24_bccd.pth',
        'bccd',
        (('trainval.json', 'images'), ('test.json', 'images')),
        [dict(type='Resize', scale=(320, 240), keep_ratio=True)],
        ('RBC', 'WBC', 'Platelets'),
    ),
}


def float_config(folder: str, detector: Detector) -> Config:
    """Return the config of a float detector with the images of a folder."""
    path = detector.config
    if '::' not in path:
        path = osp.join(folder, path)
    keys = 'model', 'default_scope'
    read = read_file(path)
    loaders = [
        dict(
            batch_size=8,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=_dataset(osp.join(folder, detector.data), detector, split),
        )
        for split in detector.splits
    ]
    return Config(
        dict(
            {key: read[key] for key in keys},
            custom_imports=dict(
                imports=['mmrazor_brecq', 'mmrazor_brecq.mmcv_ext'],
                allow_failed_imports=False,
            ),
            train_dataloader=loaders[0],
            test_dataloader=loaders[1],
            test_evaluator=dict(
                type='CocoMetric',
                ann_file=osp.join(
                    folder, detector.data, detector.splits[1][0]
                ),
                metric='bbox',
            ),
            test_cfg=dict(),
            log_level='WARNING',
        )
    )


def _dataset(
    root: str, detector: Detector, split: tuple[str, str]
) -> dict[str, Any]:
    """Return the config of a data set."""
    classes = detector.classes
    meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    return dict(
        type='CocoDataset',
        data_root=root,
        ann_file=split[0],
        data_prefix=dict(img=split[1]),
        metainfo=dict(classes=classes) if classes else {},
        pipeline=[
            dict(type='LoadImageFromFile'),
            *detector.resize,
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs', meta_keys=meta),
        ],
        test_mode=True,
    )


def configure(
    args: argparse.Namespace,
    name: str,
    bits: str,
    schedule: str,
    placement: str,
    work: str,
) -> Config:
    """Return the config of one row, and write the float one beside it."""
    path = osp.join(work, f'{name}.py')
    float_config(osp.abspath(args.folder), DETECTORS[name]).dump(path)
    known = bits != FLOAT, schedule not in (FLOAT, NEAREST, *PEERS)
    recipe = Recipe(
        bits if known[0] else 'w8a8',
        schedule if known[1] else 'default',
        num_images=args.num_images,
    )
    options = {'randomness.seed': args.seed, **args.cfg_options}
    cfg = load_config(path, options, work, recipe=recipe)
    if schedule == NEAREST:
        cfg.model.reconstructor = dict(type='NearestRounding')
    if PLACEMENTS[placement]:
        changes = read_base(PLACEMENTS[placement])['placement']
        cfg.merge_from_dict({'model.quantization': changes})
    return cfg


@torch.no_grad()
def mean_average_precision(runner: Runner, model: BRECQ) -> float:
    """Return the box mAP of a model on all test images, 0 to 1."""
    loader = runner.build_dataloader(runner.cfg.test_dataloader)
    evaluator = Evaluator(runner.cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for data in loader:
        evaluator.process(model.test_step(data), data)
    return float(evaluator.evaluate(len(loader.dataset))[METRIC])


def by_onnxruntime(content: bytes, images: CachedBatches, work: str) -> bytes:
    """Return what ONNX Runtime's static quantization makes of a file."""
    from deploy import Reader
    from onnxruntime.quantization import QuantFormat, quantize_static

    path = osp.join(work, 'onnxruntime.onnx')
    quantize_static(
        onnx.load_from_string(content),
        path,
        Reader(images.take(torch.arange(len(images)))),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
    )
    with open(path, 'rb') as file:
        return file.read()


def by_nncf(content: bytes, images: CachedBatches, work: str) -> bytes:
    """Return what NNCF's post-training quantization makes of a file."""
    import nncf

    nncf.set_log_level(40)
    batches = images.take(torch.arange(len(images))).split(1)
    quantized = nncf.quantize(
        onnx.load_from_string(content),
        nncf.Dataset(list(batches), lambda x: {'image': x.numpy()}),
        subset_size=len(images),
    )
    return quantized.SerializeToString()


PEERS = {'onnxruntime': by_onnxruntime, 'nncf': by_nncf}


def measure(
    args: argparse.Namespace,
    name: str,
    bits: str,
    schedule: str,
    placement: str,
    work: str,
) -> None:
    """Quantize, measure, and write what came of it."""
    torch.set_num_threads(args.threads)
    cfg = configure(args, name, bits, schedule, placement, work)
    weights = osp.join(args.folder, 'weights', DETECTORS[name].weights)
    runner, brecq, images = prepared(cfg, weights)
    found: dict[str, Any] = dict(images=len(images))
    content = b''
    start, clock = time.process_time(), time.perf_counter()
    if bits != FLOAT:
        example = images.batch(0)[:1]
        teacher = brecq.prepare(example)
        if schedule in PEERS:
            # Of the folded network, for norms of a shared head stay in a file.
            traced = to_bytes(trace(teacher, example))
            content = PEERS[schedule](traced, images, work)
        else:
            found['widened'] = brecq.widen(images)
            reports = list(brecq.reconstruct(teacher, images, args.seed))
            found['units_learned'] = sum(x.accepted for x in reports)
            found['units'] = len(reports)
    found.update(
        cpu_seconds=time.process_time() - start,
        seconds=time.perf_counter() - clock,
        peak_memory_mb=peak_memory_mb(),
    )
    if content:
        of_file = metric_of_file(cfg, brecq, content, 10**6, False)
        found['map'] = of_file['file'] if of_file else float('nan')
    else:
        found['map'] = mean_average_precision(runner, brecq)
    save_json(found, osp.join(work, 'run.json'))


def row(
    args: argparse.Namespace,
    name: str,
    bits: str,
    schedule: str,
    placement: str,
) -> dict[str, Any]:
    """Measure in a process of its own, unless it is known."""
    found = []
    for part in (
        (name, FLOAT, FLOAT, 'ours'),
        (name, bits, schedule, placement),
    ):
        key = '_'.join(osp.basename(x) for x in dict.fromkeys(part))
        work = osp.join(args.out, f'{key}_seed{args.seed}')
        path = osp.join(work, 'run.json')
        if not osp.exists(path):
            os.makedirs(work, exist_ok=True)
            subprocess.run(
                [sys.executable, *sys.argv, '--alone', *part, work],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        with open(path) as file:
            found.append(json.load(file))
    return dict(
        detector=name,
        bits=bits,
        schedule=schedule,
        placement=placement,
        float=found[0]['map'],
        **found[1],
        seed=args.seed,
    )


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    table = Table(
        *('Detector', 'Bits', 'Schedule', 'Placement', 'Float', 'mAP'),
        *('To float', '16 bits', 'CPU s', 'Peak MB'),
    )
    for found in rows:
        table.add_row(
            *(found['detector'], found['bits'].upper()),
            *(found['schedule'], found['placement']),
            *(f'{100 * found[key]:.1f}' for key in ('float', 'map')),
            f'{100 * (found["map"] - found["float"]):+.1f}',
            str(len(found.get('widened', []))),
            f'{found["cpu_seconds"]:,.0f}',
            f'{found["peak_memory_mb"]:,.0f}',
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folder')
    parser.add_argument(
        '--detectors', nargs='+', choices=DETECTORS, default=list(DETECTORS)
    )
    parser.add_argument('--bits', nargs='+', default=['w8a8', 'w4a8'])
    parser.add_argument(
        '--schedules',
        nargs='+',
        default=['fast', 'default'],
        help=f'names or paths, {NEAREST}, or {" or ".join(PEERS)}',
    )
    parser.add_argument(
        '--placements', nargs='+', choices=PLACEMENTS, default=['ours']
    )
    parser.add_argument('--num-images', type=int, default=64)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1)
    add_row_options(parser, 'work_dirs/detection')
    parser.add_argument('--alone', nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        measure(args, *args.alone)
        return
    rows = []
    for settings in itertools.product(
        args.detectors, args.bits, args.schedules, args.placements
    ):
        rows.append(row(args, *settings))
        save_json(dict(rows=rows), osp.join(args.out, 'detection.json'))
    Console(width=120).print(table_of(rows))


if __name__ == '__main__':
    main()
