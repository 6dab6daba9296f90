"""What a run has finished, kept on disk so that it can go on."""

from __future__ import annotations

import json
import os
import os.path as osp
import shutil
from typing import Any, Optional

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoint import keep_older, save_json, save_tensors
from ..functional import pack_extra
from ..reconstruction import UnitReport


class Progress:
    """Frozen units and metrics of an unfinished run.

    In several processes the first one reads and writes, and tells the
    others what it found.

    Args:
        folder (str): Where they lie.
        identity (dict): What makes the run what it is: a run with another
            identity is another run.
        resume (bool): Go on with what lies there.

    Raises:
        ValueError: If what lies there is of another run.
    """

    def __init__(
        self, folder: str, identity: dict[str, Any], resume: bool
    ) -> None:
        self.folder = folder
        self.content: dict[str, Any] = dict(
            identity=identity, metrics={}, units=[]
        )
        found: list[Any] = [None]
        if is_main_process():
            try:
                self._open(resume)
            except ValueError as error:
                found = [error]
            else:
                found = [self.content]
        broadcast_object_list(found)
        if isinstance(found[0], ValueError):
            raise found[0]
        self.content = found[0]

    def _open(self, resume: bool) -> None:
        """Find what lies there."""
        if not resume:
            keep_older(self.folder)
        elif osp.exists(self._path('run.json')):
            identity = self.content['identity']
            try:
                with open(self._path('run.json')) as file:
                    self.content = json.load(file)
            except ValueError as error:
                raise ValueError(
                    f'--resume: {self._path("run.json")} is broken; start a '
                    'new run without --resume'
                ) from error
            self._check(identity)
            print_log(
                f'Resumes after {len(self.content["units"])} finished '
                f'units in {self.folder}',
                'current',
            )
        else:
            print_log(
                f'Nothing to resume in {self.folder}: starts from the '
                'beginning',
                'current',
                30,
            )

    def _check(self, identity: dict[str, Any]) -> None:
        before = self.content['identity']
        other = [key for key in identity if identity[key] != before.get(key)]
        if other:
            raise ValueError(
                f'--resume: the run in {self.folder} had another '
                f'{" and ".join(other)} than this one. Give it the same, or '
                'start a new run without --resume'
            )

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics known so far, by model."""
        return self.content['metrics']

    @property
    def reports(self) -> list[UnitReport]:
        """Reports of the finished units."""
        return [UnitReport(**unit) for unit in self.content['units']]

    @property
    def types(self) -> list[Optional[str]]:
        """Types of numbers in which the finished units learned."""
        return [report.autocast for report in self.reports]

    def units(self) -> dict[str, dict[str, Tensor]]:
        """Frozen state of the finished units, by name."""
        found: list[Any] = [None]
        if is_main_process():
            found[0] = {
                unit['name']: torch.load(
                    self._path(f'{i:04d}.pth'), map_location='cpu'
                )
                for i, unit in enumerate(self.content['units'])
            }
        broadcast_object_list(found)
        return found[0]

    def add_metrics(self, name: str, metrics: dict[str, float]) -> None:
        """Remember the metrics of one model."""
        self.metrics[name] = metrics
        self._save()

    def add_unit(self, report: UnitReport, module: nn.Module) -> None:
        """Remember a frozen unit: first its state, then that it is there."""
        count = len(self.content['units'])
        if is_main_process():
            save_tensors(
                pack_extra(module.state_dict()), self._path(f'{count:04d}.pth')
            )
        self.content['units'].append(report.to_dict())
        self._save()

    def _save(self) -> None:
        if is_main_process():
            save_json(self.content, self._path('run.json'))

    def remove(self) -> None:
        """The run is over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> str:
        os.makedirs(self.folder, exist_ok=True)
        return osp.join(self.folder, name)
