"""Analyze the layers of a quantized or a float checkpoint one by one."""

from __future__ import annotations

import hashlib
import logging
import math
import os.path as osp
from collections.abc import Callable, Mapping
from typing import Any, Optional

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..analysis import SingleLayers
from ..checkpoint import (
    checksum_of,
    fingerprint,
    is_quantized,
    keep_older,
    load_float,
    load_quantized,
    save_json,
    write_whole,
)
from ..functional import in_grad_mode
from ..report import (
    UnitProgress,
    analysis_page,
    analysis_table,
    main_metric,
    ranked,
)
from .calibration import fingerprint_images
from .dry_run import evaluation_seconds
from .fine_tuning import folded
from .launch import bare_model, build_model, build_runner, calibration_images
from .ptq_loop import PTQLoop
from .results import best_metric, one_run, read_report
from .runners import RunOwner, starting
from .sensitivity_run import MixedPrecision, SensitivityFile
from .unit_run import prepare_on, round_to_nearest

#: Content of ``analysis.json``.
Analysis = dict[str, Any]


@in_grad_mode
def analyze(
    cfg: Config,
    checkpoint: str,
    teacher: Optional[str] = None,
    images: int = 64,
    evaluations: int = 0,
    sensitivity: Optional[str] = None,
    trust: bool = False,
) -> Analysis:
    """Measure what each layer costs, quantized alone and left out alone.

    Writes ``analysis.json`` and ``analysis.html`` into the folder of the
    run. An analysis that was interrupted is continued.

    Args:
        cfg (Config): From :func:`load_config`.
        checkpoint (str): A quantized checkpoint; or a float one, whose
            weights are rounded to nearest with the bits of the config.
        teacher (str, optional): The float checkpoint of a quantized one; by
            default the one that its ``report.json`` names.
        images (int): Held-out calibration images to measure on, at most.
        evaluations (int): Number of layers, those that cost most, whose
            accuracy is measured by the config's metric, both ways.
        sensitivity (str, optional): File of sensitivities to show beside;
            by default ``sensitivity.json`` in the folder, if it fits.
        trust (bool): Whether loading a float checkpoint may run code.

    Returns:
        dict: The content of ``analysis.json``.

    Raises:
        ValueError: If a checkpoint does not fit, or there is no metric.
    """
    if cfg.launcher != 'none':
        raise ValueError(
            f'--launcher {cfg.launcher}: layers are analyzed in one process, '
            'leave --launcher out'
        )
    if evaluations and not cfg.get('test_evaluator'):
        raise ValueError(
            f'--eval {evaluations} needs a metric: the config has no '
            '`test_evaluator`'
        )
    with one_run(
        cfg,
        'once that is fixed, the same command continues after the last '
        'finished layer',
    ):
        runner = build_runner(cfg)
        with starting(runner):
            subject = _Subject(runner, checkpoint, teacher, trust)
            predicted = _sensitivities(runner, subject, sensitivity)
            seconds = _evaluation_seconds(runner, subject, evaluations)
        runner.begin()
        student, network = subject.pair()
        path = osp.join(runner.work_dir, 'analysis.json')
        identity = subject.identity(images)
        content = _earlier(path, identity) or dict(
            identity=identity, checkpoint=osp.basename(checkpoint), layers=[]
        )
        layers = SingleLayers(student, network, subject.images, images)
        content.update(images=layers.images, divergence=layers.whole)
        _state_cost(runner, layers, content, seconds, evaluations)
        _measure(runner, layers, content, path)
        if evaluations:
            _Accuracy(runner, layers)(content, path, evaluations)
        for row in content['layers']:
            row['predicted'] = predicted(row)
        _write(runner, content, path)
    return content


class _Subject:
    """A quantized network and its float one, from one or two checkpoints.

    Args:
        runner (RunOwner): The runner of the config.
        checkpoint (str): As for :func:`analyze`.
        teacher (str, optional): As for :func:`analyze`.
        trust (bool): As for :func:`analyze`.
    """

    def __init__(
        self,
        runner: RunOwner,
        checkpoint: str,
        teacher: Optional[str],
        trust: bool,
    ) -> None:
        self.runner = runner
        self.model = bare_model(runner).eval()
        self.student: Optional[BRECQ] = None
        meta: Mapping[str, Any] = {}
        source = checkpoint
        if is_quantized(checkpoint, trust):
            self.student = build_model(runner.cfg)
            self.student.to(next(self.model.parameters()).device)
            meta = load_quantized(self.student, checkpoint)
            source = teacher or _float_of(checkpoint)
        elif teacher is not None:
            raise ValueError(
                f'--teacher {teacher!r} belongs to a quantized checkpoint, '
                f'and {checkpoint!r} is a float one: leave it out'
            )
        load_float(self.model, source, trust)
        self.hash = fingerprint(self.model.architecture)
        expected = (meta.get('identity') or {}).get('checkpoint')
        if expected not in (None, self.hash):
            raise ValueError(
                f'{checkpoint!r} was not made from {source!r}: name the float '
                'checkpoint of its run with --teacher'
            )
        self.images: CachedBatches = calibration_images(runner, self.model)

    def pair(self) -> tuple[BRECQ, nn.Module]:
        """Return the quantized model, and its folded float network."""
        if self.student is not None:
            return self.student, folded(self.student, self.model.architecture)
        model = self.model
        network, _ = prepare_on(model, self.images)
        round_to_nearest(
            model, network, self.images, self.runner.seed, self.runner.logger
        )
        return model, network

    def identity(self, images: int) -> dict[str, str]:
        """Return hashes of all that an analysis depends on."""
        cfg = self.runner.cfg.to_dict()
        parts = [
            *(cfg[key] for key in ('model', 'test_evaluator') if key in cfg),
            cfg.get('test_dataloader'),
            self.runner.seed,
            images,
        ]
        state = '' if self.student is None else fingerprint(self.student)
        return dict(
            config=hashlib.sha256(repr(parts).encode()).hexdigest(),
            checkpoint=f'{self.hash}{state}',
            calibration=fingerprint_images(self.images),
        )


def _float_of(checkpoint: str) -> str:
    """Return the float checkpoint of a quantized one, as its report says."""
    folder = osp.dirname(osp.abspath(checkpoint))
    cure = f'name the float checkpoint of {checkpoint!r} with --teacher'
    try:
        named = read_report(osp.join(folder, 'report.json'))[
            'float_checkpoint'
        ]
        path = osp.join(folder, named)
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(
            f'No report.json beside it names one: {cure}'
        ) from error
    if not osp.isfile(path):
        raise FileNotFoundError(f'No checkpoint at {path!r}: {cure}')
    return path


def _sensitivities(
    runner: RunOwner, subject: _Subject, path: Optional[str]
) -> Callable[[Mapping[str, Any]], Optional[dict[str, float]]]:
    """Return what sensitivities of mixed precision predict for a row."""
    used = path or osp.join(runner.work_dir, 'sensitivity.json')
    if path is None and not osp.exists(used):
        return lambda row: None
    if not osp.exists(used):
        raise FileNotFoundError(
            f'No sensitivities at {used!r}: tools/search_bits.py measures them'
        )
    settings = MixedPrecision.of(runner.cfg)
    model = subject.model
    identity = settings.identity(
        model, runner.cfg, subject.images, runner.seed
    )
    try:
        loss = SensitivityFile(used, identity).loss
    except ValueError as error:
        if path is not None:
            raise
        runner.logger.warning(f'{error} (they are left out)')
        return lambda row: None

    def predict(row: Mapping[str, Any]) -> Optional[dict[str, float]]:
        """Return nats by the bits of a layer's weight, as far as measured."""
        terms = loss.alone.get(f'{row["name"]}.weight') or {}
        return {str(bits): x for bits, x in terms.items()} or None

    return predict


def _evaluation_seconds(
    runner: RunOwner, subject: _Subject, evaluations: int
) -> float:
    """Return about how many seconds one evaluation takes, 0 if none is."""
    if not evaluations:
        return 0.0
    return evaluation_seconds(runner, subject.model)


def _earlier(path: str, identity: Mapping[str, str]) -> Optional[Analysis]:
    """Return an analysis to continue; another one keeps its file, renamed."""
    if not osp.exists(path):
        return None
    try:
        content = read_report(path)
        if content['identity'] == identity and isinstance(
            content['layers'], list
        ):
            return content
    except (KeyError, ValueError) as error:
        print_log(f'{error}: it begins anew', 'current', logging.WARNING)
    keep_older(path)
    return None


def _state_cost(
    runner: Runner,
    layers: SingleLayers,
    content: Analysis,
    evaluation: float,
    evaluations: int,
) -> None:
    """Log what is left to do, and about how long it will take."""
    left = len(layers.names) - len(content['layers'])
    text = (
        f'{left} of {len(layers.names)} layers are left to measure, each '
        f'quantized alone and left out alone, on {layers.images} held-out '
        f'images: about {left * layers.seconds:.0f} s'
    )
    if evaluations:
        runs = 2 * min(evaluations, len(layers.names)) + 2
        text += (
            f'; and at most {runs} evaluations, about '
            f'{runs * evaluation:.0f} s'
        )
    runner.logger.info(text)


def _save(content: Analysis, path: str) -> None:
    save_json(dict(content, checksum=checksum_of(content)), path)


def _measure(
    runner: Runner, layers: SingleLayers, content: Analysis, path: str
) -> None:
    """Measure the layers that an earlier run has not, and save each."""
    done = {row['name'] for row in content['layers']}
    with UnitProgress(len(layers.names), runner.logger, 'analyze') as show:
        for name in layers.names:
            if name in done:
                show.advance()
                continue
            row = layers(name)
            content['layers'].append(row)
            _save(content, path)
            show.advance(
                f'{name or "network"}: {row["alone"]:.3g} nats alone, '
                f'{row["left_out"]:.3g} of {layers.whole:.3g} without it'
            )


class _Accuracy:
    """Measures the config's own metric of networks with one layer changed.

    Args:
        runner (RunOwner): The runner.
        layers (SingleLayers): The layers.
    """

    def __init__(self, runner: RunOwner, layers: SingleLayers) -> None:
        self.layers = layers
        self.metric = best_metric(runner.cfg)
        loop = runner.test_loop
        assert isinstance(loop, PTQLoop)
        self.loop = loop
        runner.call_hook('before_run')

    def __call__(self, content: Analysis, path: str, count: int) -> None:
        """Measure the layers that cost most, and save each."""
        model = self.layers.model
        if 'quantized' not in content:
            content['float'] = self._of(self.layers.teacher, 'folded float')
            content['quantized'] = self._of(model.architecture, 'quantized')
            report = dict(content, metric=self.metric)
            content['metric'] = main_metric(report)
            _save(content, path)
        for row in ranked(content)[:count]:
            if 'metrics' in row:
                continue
            name, metrics = row['name'], {}
            with self.layers.alone(name) as network:
                metrics['alone'] = self._of(network, f'{name} alone')
            with self.layers.left_out(name) as network:
                metrics['left_out'] = self._of(network, f'{name} left out')
            row['metrics'] = metrics
            _save(content, path)

    def _of(self, network: nn.Module, text: str) -> dict[str, float]:
        """Return the metrics of a network."""
        model = self.layers.model
        quantized, model.architecture = model.architecture, network
        try:
            return self.loop.measure(model, text)
        finally:
            model.architecture = quantized


def _write(runner: RunOwner, content: Analysis, path: str) -> None:
    """Write the file and the page, and log the table."""
    content['ranking'] = [row['name'] for row in ranked(content)]
    _save(content, path)
    page = osp.join(runner.work_dir, 'analysis.html')
    write_whole(page, analysis_page(content))
    runner.logger.info('\n' + analysis_table(content))
    runner.logger.info(f'The analysis is in {page}, as data in {path}')
    if not math.isfinite(content['divergence']):
        runner.logger.warning(
            'The output of the quantized network is not finite'
        )
