"""Test loop of mmengine that quantizes the model before it evaluates."""

from __future__ import annotations

import copy
import hashlib
import os.path as osp
from typing import Any, Optional, Union

import torch
from mmengine.dist import (
    all_reduce,
    barrier,
    is_main_process,
)
from mmengine.evaluator import Evaluator
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, TestLoop
from torch import nn
from torch.utils.data import DataLoader

from ..activations import CachedBatches, Store
from ..algorithms import BRECQ
from ..analysis import describe, divergence
from ..checkpoint import (
    check_container,
    check_describable,
    checksum_of,
    fingerprint,
    keep_older,
    remove_folder,
    save_json,
    save_quantized,
)
from ..functional import in_grad_mode
from ..graph import copy_network
from ..reconstruction import UnitReport
from ..registry import LOOPS
from ..report import (
    closing_table,
    main_metric,
    outdone,
    setback,
    write,
)
from ..runtime.allocator import reuse_freed_memory
from .accuracy_control import (
    AccuracyControl,
    Attempt,
    given_settings,
)
from .calibration import (
    CalibrationConfig,
    cache_images,
    fingerprint_images,
)
from .data_mistakes import check_measured, measuring
from .differences import config_changes
from .image_set import ImageSet
from .loaders import CALIBRATION, build_dataloader
from .max_drop import (
    MaxDrop,
    MaxDropConfig,
    check_met,
    check_possible,
    yardstick_of,
)
from .progress import Progress, in_first
from .results import (
    best_metric,
    earlier_reports,
    finished_metrics,
    made_by,
    read_report,
    refuse_other_run,
)
from .run_report import class_names, run_report
from .runners import begin, starting
from .unit_run import prepare_on, reconstruct_units, round_to_nearest
from .usage import Clock


@LOOPS.register_module()
class PTQLoop(TestLoop):
    """Test loop that calibrates, reconstructs and evaluates a model.

    It writes ``quantized.pth``, packed to its bits, and ``report.json`` into
    the folder of the run. During the run, ``progress/`` in this folder has
    the finished units. An evaluator without metrics measures nothing.

    Args:
        runner (Runner): The runner. Its model is a :class:`BRECQ` with
            float weights.
        dataloader (DataLoader | dict): Data loader of the test images.
        evaluator (Evaluator | dict | list): Metrics; there may be none.
        calibration (dict): ``dataloader`` of the calibration images, and
            ``num_images``, the number of images to take from it. Optional
            keys are ``memory``, the most memory for activations, such as
            ``'1GiB'``, or a fraction of the free memory (by default half of
            it, but at most 1.5 GiB; the rest is cached in files), and
            ``max_unreadable``, the fraction of images that may be
            unreadable and are left out (by default 0.01).
        resume (bool): Whether to continue an unfinished run.
        checkpoint (str): Name of the quantized checkpoint. If it ends in
            ``.safetensors``, the file has that format.
        fp16 (bool): Whether to evaluate in half precision.
        max_drop (float | dict, optional): How many points of the main metric
            may be lost, or fields of :class:`MaxDrop`. If more are, bits are
            given back where they buy most.

    Example:
        >>> test_cfg = dict(
        ...     type='mmrazor_brecq.PTQLoop',
        ...     calibration=dict(num_images=1024, dataloader=calibration),
        ... )
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Union[DataLoader, dict],
        evaluator: Union[Evaluator, dict, list],
        calibration: CalibrationConfig,
        resume: bool = False,
        checkpoint: str = 'quantized.pth',
        fp16: bool = False,
        max_drop: Optional[MaxDropConfig] = None,
    ) -> None:
        super().__init__(runner, dataloader, evaluator, fp16)
        check_container(checkpoint)
        self.checkpoint = checkpoint
        self.calibration = calibration
        self.calibration_dataloader = build_dataloader(
            calibration['dataloader'], runner.seed, key=CALIBRATION
        )
        self.calibration_set = ImageSet()
        #: Number of test images that are calibration images, too.
        self.overlap = torch.zeros(())
        self.row = ''
        self.resume = resume
        self.max_drop = MaxDrop.of(max_drop)
        #: Where the float weights are from, if that is known.
        self.float_checkpoint = ''

    @property
    def model(self) -> BRECQ:
        """The model without a wrapper."""
        model = self.runner.model
        return model.module if is_model_wrapper(model) else model

    @in_grad_mode
    def run(self) -> dict[str, float]:
        """Quantize the model, and evaluate it.

        Returns:
            dict: Metrics of the quantized model.
        """
        with starting(self.runner):
            check_possible(self.max_drop, bool(self.evaluator.metrics))
        with reuse_freed_memory():
            metrics = self._run(Clock())
        if self.max_drop is not None and is_main_process():
            check_met(read_report(self._path('report.json')))
        return metrics

    def _run(self, clock: Clock) -> dict[str, float]:
        model = self.model
        check_describable(model)
        with starting(self.runner), clock('prepare'):
            images = cache_images(
                model,
                self.calibration_dataloader,
                self.calibration,
                self.runner.work_dir,
                self.calibration_set,
            )
            self.calibration_set.gather()
            identity = self._identity(images)
            done = self._finished(identity)
            if done is not None:
                return done
            original = copy_network(model)
            teacher, widened = prepare_on(model, images)
            progress = Progress(
                self._path('progress'), identity, self.resume, self._changes
            )
        begin(self.runner)
        with clock('evaluate'):
            self._evaluate(original, 'float', progress)
        control: Optional[AccuracyControl] = None
        if self.max_drop is not None:
            control = AccuracyControl(
                self.max_drop,
                original,
                images,
                given_settings(self.runner.cfg),
                self._path('progress'),
                identity,
                self.runner.seed,
                self.runner.logger,
                self.resume,
            )
        del original
        self._round_to_nearest(model, teacher, images, progress, clock)
        kept = Attempt(model, teacher, progress, widened)
        self._learn(kept, images, clock)
        path: dict[str, Any] = {}
        if control is not None:
            kept, path = self._give_back(control, kept, images, clock)
        with clock('report'):
            found = describe(
                kept.model, kept.teacher, images, kept.progress.reports
            )
        if is_main_process():
            self._write(
                kept, clock, identity, images.store, dict(found, **path)
            )
            progress.remove()
        barrier()
        return kept.progress.metrics['quantized']

    def _learn(
        self, attempt: Attempt, images: CachedBatches, clock: Clock
    ) -> None:
        """Reconstruct and evaluate a model."""
        if not is_model_wrapper(self.runner.model):
            self.runner.model = attempt.model
        with clock('reconstruct'):
            for report in reconstruct_units(
                attempt.model,
                attempt.teacher,
                images,
                self.runner.seed,
                attempt.progress,
                self.runner.logger,
            ):
                self._plot(report)
        with clock('evaluate'):
            attempt.progress.metrics.setdefault('divergence', {}).update(
                quantized=divergence(attempt.model, attempt.teacher, images)
            )
            self._evaluate(self.runner.model, 'quantized', attempt.progress)

    def _give_back(
        self,
        control: AccuracyControl,
        first: Attempt,
        images: CachedBatches,
        clock: Clock,
    ) -> tuple[Attempt, dict[str, Any]]:
        """Give back bits until little accuracy is lost.

        Returns:
            tuple[Attempt, dict]: The attempt that is kept, and the entry of
            the report.
        """
        metrics = first.progress.metrics
        report = dict(metrics, metric=best_metric(self.runner.cfg))
        name = main_metric(report)
        yardstick = yardstick_of(name, metrics['float'][name])

        def measure(attempt: Attempt) -> None:
            attempt.value = attempt.progress.metrics['quantized'][name]
            attempt.drop = yardstick.drop(attempt.value)
            self.runner.logger.info(
                f'{name} is {attempt.value:.4g}, {attempt.drop:.2f} points '
                f'below float; {control.target.points:g} are allowed'
            )

        def learn(attempt: Attempt) -> None:
            attempt.progress.add_metrics('float', metrics['float'])
            self._learn(attempt, images, clock)
            measure(attempt)

        measure(first)
        kept = control(first, learn)
        self.runner.model = kept.model
        if kept is not first:
            self._round_to_nearest(
                *control.fresh(kept), images, kept.progress, clock
            )
            quantization = self.runner.cfg.model.setdefault('quantization', {})
            assert kept.scheme is not None
            quantization['bit_overrides'] = kept.scheme.bit_overrides
        return kept, dict(max_drop=control.report(yardstick, kept))

    def _round_to_nearest(
        self,
        model: BRECQ,
        teacher: nn.Module,
        images: CachedBatches,
        progress: Progress,
        clock: Clock,
    ) -> None:
        """Evaluate the baseline: the model with nearest rounding."""
        if 'nearest' in progress.metrics:
            return
        with clock('nearest'):
            nearest = copy.deepcopy(model)
            round_to_nearest(
                nearest, teacher, images, self.runner.seed, self.runner.logger
            )
            progress.add_metrics(
                'divergence',
                dict(nearest=divergence(nearest, teacher, images)),
            )
        with clock('evaluate'):
            self._evaluate(nearest, 'nearest', progress)

    def _path(self, name: str) -> str:
        """Return the path of a file in the folder of the run."""
        return osp.join(self.runner.work_dir, name)

    def _finished(self, identity: dict[str, str]) -> Optional[dict]:
        """Return the metrics of a run that was killed after all its work."""
        paths = self._path(self.checkpoint), self._path('report.json')
        if not self.resume:
            return None
        done = in_first(lambda: finished_metrics(*paths, identity))
        if done is None:
            if not osp.exists(self._path('progress')):
                in_first(
                    lambda: refuse_other_run(paths[1], identity, self._changes)
                )
            return None
        self.runner.logger.info(
            f'The run in {self.runner.work_dir} is done: the quantized model '
            f'is in {paths[0]}, the report in {paths[1]}'
        )
        if is_main_process():
            page = self._path('report.html')
            if not osp.exists(page):  # It was killed before that.
                write(read_report(paths[1]), page)
            remove_folder(self._path('progress'))
        barrier()
        return done

    def _changes(self) -> list[str]:
        """Return how the config differs from the one in the folder."""
        cfg = self.runner.cfg
        name = osp.basename(cfg.filename or '')
        return config_changes(self.runner.work_dir, name, cfg)

    def _evaluate(
        self, model: nn.Module, row: str, progress: Progress
    ) -> dict[str, float]:
        """Return the metrics of a model, measured unless they are known.

        mmengine's test loop evaluates all models of the report, so ``fp16``,
        hooks and wrappers apply to each of them.

        Args:
            model (nn.Module): The float, nearest or quantized model.
            row (str): Its name in the report.
            progress (Progress): Saved metrics of the run.
        """
        if row not in progress.metrics:
            metrics = (
                self.measure(model, row) if self.evaluator.metrics else {}
            )
            progress.add_metrics(row, metrics)
        return progress.metrics[row]

    def measure(self, model: nn.Module, row: str) -> dict[str, float]:
        """Return the metrics of a model, and log them.

        Args:
            model (nn.Module): The model, with or without a wrapper.
            row (str): What it is called in the log.
        """
        self.runner.logger.info(f'Evaluates the {row} model')
        quantized, self.runner.model = self.runner.model, model
        self.row = row
        try:
            with measuring():
                metrics = {k: float(v) for k, v in super().run().items()}
        finally:
            self.runner.model = quantized
        if row == 'float':
            check_measured(metrics)
            all_reduce(self.overlap)
            self.calibration_set.warn_of_overlap(int(self.overlap))
        self.runner.logger.info(
            f'{row}: '
            + ', '.join(f'{key} {x:.4g}' for key, x in metrics.items())
        )
        return metrics

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Evaluate a batch, and compare its images with those calibrated."""
        if self.row == 'float':  # All models see the same images.
            self.overlap += self.calibration_set.count(data_batch)
            if idx == 0:
                self.calibration_set.warn_of_size(data_batch)
        super().run_iter(idx, data_batch)

    def _plot(self, report: UnitReport) -> None:
        """Plot the loss of a unit while it learned."""
        for step, loss in report.losses:
            self.runner.visualizer.add_scalar(
                f'loss/{report.name}', loss, step
            )

    def _identity(self, images: CachedBatches) -> dict[str, str]:
        """Return hashes of all that must be equal to resume a run."""
        cfg = self.runner.cfg
        parts = ('model', 'test_dataloader', 'test_evaluator')
        source = cfg.test_cfg.calibration.to_dict()
        for key in ('memory', 'max_unreadable'):
            source.pop(key, None)  # They change no bit of the result.
        settings = [cfg.to_dict().get(part) for part in parts]
        settings += [source, self.runner.seed]
        if self.model.target is not None:  # Its file may have changed.
            settings.append(vars(self.model.target))
        if self.max_drop is not None:
            settings.append(self.max_drop)
        config = repr(settings)
        return dict(
            config=hashlib.sha256(config.encode()).hexdigest(),
            checkpoint=fingerprint(self.model.architecture),
            calibration=fingerprint_images(images),
        )

    def _write(
        self,
        kept: Attempt,
        clock: Clock,
        identity: dict[str, str],
        store: Store,
        found: dict[str, Any],
    ) -> None:
        """Write the quantized checkpoint and the report, and log them."""
        report = dict(
            run_report(kept, store, self.calibration_set),
            metric=best_metric(self.runner.cfg),
            seconds=clock.seconds,
            seed=self.runner.seed,
            float_checkpoint=self.float_checkpoint
            and osp.relpath(self.float_checkpoint, self.runner.work_dir),
            identity=identity,
            **found,
        )
        names = self.checkpoint, 'report.json', 'report.html'
        checkpoint, table, page = map(self._path, names)
        for path, of in (checkpoint,) * 2, (table,) * 2, (page, table):
            # A resumed run may have written them before it was killed.
            if not self.resume or not made_by(of, identity):
                keep_older(path)
        earlier = earlier_reports(self.runner.work_dir)
        loaders = self.dataloader, self.calibration_dataloader
        meta = dict(identity=identity, classes=class_names(loaders))
        begin(self.runner)  # The checkpoint belongs to the bits in it.
        save_quantized(self.model, meta, checkpoint)
        save_json(dict(report, checksum=checksum_of(report)), table)
        write(report, page)
        begin(self.runner)  # The folder may have been removed meanwhile.
        self.runner.logger.info('\n' + closing_table(report))
        for worse in setback(report), outdone(report, earlier):
            if worse:
                self.runner.logger.warning(worse)
        self.runner.logger.info(
            f'The quantized model is in {checkpoint}, the report in {page}, '
            f'as data in {table}'
        )
