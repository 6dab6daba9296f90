"""What a run has finished, kept on disk so that it can go on."""

from __future__ import annotations

import json
import os
import os.path as osp
import shutil
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..reconstruction import UnitReport
from .files import keep_older, save_json, save_tensors


class Progress:
    """Frozen units and metrics of an unfinished run.

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
        if not resume:
            keep_older(folder)
        elif osp.exists(self._path('run.json')):
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
                f'units in {folder}',
                'current',
            )
        else:
            print_log(
                f'Nothing to resume in {folder}: starts from the beginning',
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

    def units(self) -> dict[str, dict[str, Tensor]]:
        """Frozen state of the finished units, by name."""
        return {
            unit['name']: torch.load(self._path(f'{i:04d}.pth'))
            for i, unit in enumerate(self.content['units'])
        }

    def add_metrics(self, name: str, metrics: dict[str, float]) -> None:
        """Remember the metrics of one model."""
        self.metrics[name] = metrics
        save_json(self.content, self._path('run.json'))

    def add_unit(self, report: UnitReport, module: nn.Module) -> None:
        """Remember a frozen unit: first its state, then that it is there."""
        count = len(self.content['units'])
        save_tensors(module.state_dict(), self._path(f'{count:04d}.pth'))
        self.content['units'].append(report.to_dict())
        save_json(self.content, self._path('run.json'))

    def remove(self) -> None:
        """The run is over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> str:
        os.makedirs(self.folder, exist_ok=True)
        return osp.join(self.folder, name)
