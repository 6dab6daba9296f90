"""Save the finished units of a run, so that it can be resumed."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import os.path as osp
from collections.abc import Callable
from typing import Any, Optional, TypeVar

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from torch import Tensor, nn

from .._interrupt import set_resumable
from ..checkpoint import (
    check_state,
    checksum_of,
    keep_older,
    load_tensors,
    remove_folder,
    save_json,
    tensor_bytes,
    unique_keys,
    write_whole,
)
from ..config.safe import check_regular
from ..functional import pack_extra
from ..reconstruction import UnitReport
from .differences import Changes, difference

T = TypeVar('T')


class Progress:
    """Frozen units and metrics of an unfinished run, in a folder.

    With several processes the first one reads and writes, and sends the
    others what it read. ``run.json`` has a checksum of itself and the hash
    of each unit's file. If the file of a unit is damaged or missing, this
    unit and all after it are reconstructed again.

    Args:
        folder (str): The folder of the files.
        identity (dict): Hashes of the config, the checkpoint and the
            calibration images. A run with other hashes is another run.
        resume (bool): Whether to continue the run in the folder. If not,
            the folder is renamed and kept.
        changes (callable): As for :func:`difference`.

    Raises:
        ValueError: If the run in the folder is another one, or its
            ``run.json`` is damaged.
    """

    def __init__(
        self,
        folder: str,
        identity: dict[str, str],
        resume: bool,
        changes: Changes = list,
    ) -> None:
        self.folder, self.changes = folder, changes
        self.content: dict[str, Any] = dict(
            identity=identity, metrics={}, units=[], hashes=[]
        )
        self._open(resume)

    def _open(self, resume: bool) -> None:
        """Read the folder in the first process, and send it to the others."""

        def find() -> dict[str, Any]:
            if not resume:
                keep_older(self.folder)
            elif osp.exists(self._path('run.json')):
                self._read()
            else:
                print_log(
                    f'Nothing to resume in {self.folder}: the run starts from '
                    'the beginning',
                    'current',
                    logging.WARNING,
                )
            os.makedirs(self.folder, exist_ok=True)
            return self.content

        self.content = in_first(find)
        set_resumable()

    def _read(self) -> None:
        """Read and check ``run.json``."""
        identity, path = self.content['identity'], self._path('run.json')
        try:
            check_regular(path, 'a JSON')
            with open(path, 'rb') as file:
                content = json.loads(
                    file.read(), object_pairs_hook=unique_keys
                )
            _check_content(content)
            unchecked = 'checksum' not in content
            if not unchecked and content.pop('checksum') != checksum_of(
                content
            ):
                raise ValueError('its content does not match its checksum')
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f'{path} is broken ({error}): {self._cure}'
            ) from error
        self.content = dict(self.content, **content)
        self._check(identity)
        if unchecked:
            print_log(
                f'{path} is of an earlier version and has no checksums: '
                'damage to it cannot be noticed',
                'current',
                logging.WARNING,
            )
            self.content['hashes'] = []
        self._drop_damaged(unchecked)
        print_log(
            f'Resumes after {len(self.content["units"])} finished '
            f'units in {self.folder}',
            'current',
        )

    def _drop_damaged(self, unchecked: bool) -> None:
        """Drop the first unit whose file is damaged, and all after it."""
        units, hashes = self.content['units'], self.content['hashes']
        for i in range(len(units)):
            path = self._path(_name(i))
            try:
                check_regular(path, 'a unit')
                with open(path, 'rb') as file:
                    found = hashlib.sha256(file.read()).hexdigest()
                fits = unchecked or i < len(hashes) and found == hashes[i]
                problem = 'is damaged'
            except (OSError, ValueError) as error:
                why = getattr(error, 'strerror', 'no regular file')
                fits, problem = False, f'cannot be read ({why})'
            if not fits:
                print_log(
                    f'{path} {problem}: the unit '
                    f'{units[i]["name"] or "network"!r} and the '
                    f'{len(units) - i - 1} after it are reconstructed again',
                    'current',
                    logging.WARNING,
                )
                del units[i:], hashes[i:]
                return
            if unchecked:
                hashes.append(found)

    def _check(self, identity: dict[str, str]) -> None:
        """Refuse to resume a run of another identity."""
        before = self.content['identity']
        if any(identity[key] != before.get(key) for key in identity):
            raise ValueError(
                f'--resume: the run in {self.folder} '
                f'{difference(identity, before, self.changes)}. Give it the '
                'same, or start a new run without --resume'
            )

    @property
    def _cure(self) -> str:
        """Advice about a damaged file. Not every tool has --resume."""
        return f'remove {self.folder!r} to start from the beginning'

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics measured so far, by the name of the model."""
        return self.content['metrics']

    @property
    def reports(self) -> list[UnitReport]:
        """Reports of the finished units."""
        return [UnitReport(**unit) for unit in self.content['units']]

    @property
    def types(self) -> list[Optional[str]]:
        """Low-precision type of each finished unit, None if it had none."""
        return [report.autocast for report in self.reports]

    def units(
        self, part: Callable[[str], nn.Module]
    ) -> dict[str, dict[str, Tensor]]:
        """Return the frozen states of the finished units, by name.

        Args:
            part (callable): Returns the module of a unit by its name.

        Raises:
            ValueError: If a file does not fit its module.
        """
        indices = range(len(self.content['units']))
        return in_first(lambda: dict(self._unit(i, part) for i in indices))

    def _unit(
        self, index: int, part: Callable[[str], nn.Module]
    ) -> tuple[str, dict[str, Tensor]]:
        """Return the name and the checked state of a finished unit."""
        name = self.content['units'][index]['name']
        path = self._path(_name(index))
        try:
            state = load_tensors(path)
            check_state(part(name), state)
        except Exception as error:  # Damaged pickles raise any exception.
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f'{path} is no unit of this network ({first[:300]}): '
                f'{self._cure}'
            ) from error
        return name, state

    def take(self, other: Progress, count: int) -> None:
        """Take over the first finished units of another run.

        Args:
            other (Progress): The other run, of the same units so far.
            count (int): Number of units.
        """
        if is_main_process():
            for i in range(count):
                with open(other._path(_name(i)), 'rb') as file:
                    write_whole(self._path(_name(i)), file.read())
        for key in ('units', 'hashes'):
            self.content[key] = other.content[key][:count]
        self._save()

    def add_metrics(self, name: str, metrics: dict[str, float]) -> None:
        """Save the metrics of a model."""
        self.metrics[name] = metrics
        self._save()

    def add_unit(self, report: UnitReport, module: nn.Module) -> None:
        """Save a frozen unit: first its state, then its entry in run.json."""
        if is_main_process():
            self._check_there()
            content = tensor_bytes(pack_extra(module.state_dict()))
            write_whole(self._path(_name(len(self.content['units']))), content)
            digest = hashlib.sha256(content).hexdigest()
            self.content['hashes'].append(digest)
        self.content['units'].append(report.to_dict())
        self._save()

    def _save(self) -> None:
        """Write ``run.json`` with its checksum."""
        if is_main_process():
            self._check_there()
            checksum = checksum_of(self.content)
            save_json(
                dict(self.content, checksum=checksum), self._path('run.json')
            )

    def _check_there(self) -> None:
        """Refuse to create a removed folder again, without its old files."""
        if not osp.isdir(self.folder):
            raise FileNotFoundError(
                errno.ENOENT, 'The folder was removed', self.folder
            )

    def remove(self) -> None:
        """Remove the folder, once the run is finished."""
        remove_folder(self.folder)

    def _path(self, name: str) -> str:
        return osp.join(self.folder, name)


def in_first(function: Callable[[], T]) -> T:
    """Call a function in the first process, and send its result to all.

    Args:
        function (callable): A function without arguments.

    Returns:
        object: Its result, in every process.

    Raises:
        ValueError, OSError: The error that it raised, in every process.
    """
    result: list[Any] = [None]
    if is_main_process():
        try:
            result = [function()]
        except (ValueError, OSError) as error:
            result = [error]
    broadcast_object_list(result)
    if isinstance(result[0], (ValueError, OSError)):
        raise result[0]
    return result[0]


def _name(index: int) -> str:
    """Return the file name of a unit."""
    return f'{index:04d}.pth'


def _check_content(content: object) -> None:
    """Check that the content of ``run.json`` has the form that runs write."""
    if not isinstance(content, dict):
        raise ValueError(
            f'it contains a {type(content).__name__}, expected a dict'
        )
    required = dict(identity=dict, metrics=dict, units=list)
    for key, kind in required.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f'its {key!r} is no {kind.__name__}')
    known = dict(required, hashes=list, checksum=str)
    for key, value in content.items():
        if not isinstance(value, known.get(key, ())):
            raise ValueError(f'its {key!r:.80} is unknown')
    for metrics in content['metrics'].values():
        if not isinstance(metrics, dict) or not all(
            isinstance(value, (int, float)) for value in metrics.values()
        ):
            raise ValueError('its metrics are not all numbers')
    names = [_check_report(unit) for unit in content['units']]
    if len(set(names)) < len(names):
        raise ValueError('it has a unit twice')


def _check_report(unit: dict[str, Any]) -> str:
    """Check the report of a unit, and return the name of the unit."""
    report = UnitReport(**unit)  # A TypeError if it has other keys.
    for value, kind in (
        (report.name, str),
        (report.layers, list),
        (report.bits, dict),
        (report.before, (int, float)),
        (report.after, (int, float)),
        (report.accepted, bool),
        (report.iterations, int),
        (report.seconds, (int, float)),
        (report.note, str),
        (report.losses, list),
        (report.histograms, dict),
    ):
        if not isinstance(value, kind):
            raise ValueError(f'the report of a unit has {value!r:.80}')
    if report.autocast not in (None, 'bfloat16', 'float16'):
        raise ValueError(f'a unit learned in {report.autocast!r:.80}')
    return report.name
