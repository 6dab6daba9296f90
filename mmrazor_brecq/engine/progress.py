"""What a run has finished, kept on disk so that it can go on."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import os.path as osp
from collections.abc import Callable
from typing import Any, Optional

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


class Progress:
    """Frozen units and metrics of an unfinished run.

    In several processes the first one reads and writes, and tells the
    others what it found. Each unit's file has its hash in ``run.json``,
    which has one of itself: from a unit on that is damaged or missing the
    run is done anew.

    Args:
        folder (str): Where they lie.
        identity (dict): What makes the run what it is: a run with another
            identity is another run.
        resume (bool): Go on with what lies there.

    Raises:
        ValueError: If what lies there is of another run, or damaged.
    """

    def __init__(
        self, folder: str, identity: dict[str, Any], resume: bool
    ) -> None:
        self.folder = folder
        self.content: dict[str, Any] = dict(
            identity=identity, metrics={}, units=[], hashes=[]
        )
        self._open(resume)

    def _open(self, resume: bool) -> None:
        """Find what lies there, and tell all processes."""

        def find() -> dict[str, Any]:
            if not resume:
                keep_older(self.folder)
            elif osp.exists(self._path('run.json')):
                self._read()
            else:
                print_log(
                    f'Nothing to resume in {self.folder}: starts from the '
                    'beginning',
                    'current',
                    logging.WARNING,
                )
            os.makedirs(self.folder, exist_ok=True)
            return self.content

        self.content = in_first(find)
        set_resumable()

    def _read(self) -> None:
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
                raise ValueError('its checksum is another one')
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f'{path} is broken ({error}): {self._cure}'
            ) from error
        self.content = dict(self.content, **content)
        self._check(identity)
        if unchecked:
            print_log(
                f'{path} is of an earlier version and has no checksums: '
                'damage to it would go unnoticed',
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
        """Forget the units from the first one on whose file is not whole."""
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
                    f'{len(units) - i - 1} after it are done anew',
                    'current',
                    logging.WARNING,
                )
                del units[i:], hashes[i:]
                return
            if unchecked:
                hashes.append(found)

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
    def _cure(self) -> str:
        """What to do with what is no use; not every tool has a --resume."""
        return f'remove {self.folder!r} to start from the beginning'

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

    def units(
        self, part: Callable[[str], nn.Module]
    ) -> dict[str, dict[str, Tensor]]:
        """Frozen state of the finished units, by name.

        Args:
            part (callable): Gives a unit's module by its name.

        Raises:
            ValueError: If a file does not belong to its module.
        """
        numbers = range(len(self.content['units']))
        return in_first(lambda: dict(self._unit(i, part) for i in numbers))

    def _unit(
        self, number: int, part: Callable[[str], nn.Module]
    ) -> tuple[str, dict[str, Tensor]]:
        name, path = self.content['units'][number]['name'], _name(number)
        path = self._path(path)
        try:
            state = load_tensors(path)
            check_state(part(name), state)
        except Exception as error:  # pickle raises whatever bytes make of it
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f'{path} is no unit of this network ({first[:300]}): '
                f'{self._cure}'
            ) from error
        return name, state

    def add_metrics(self, name: str, metrics: dict[str, float]) -> None:
        """Remember the metrics of one model."""
        self.metrics[name] = metrics
        self._save()

    def add_unit(self, report: UnitReport, module: nn.Module) -> None:
        """Remember a frozen unit: first its state, then that it is there."""
        if is_main_process():
            self._check_there()
            content = tensor_bytes(pack_extra(module.state_dict()))
            write_whole(self._path(_name(len(self.content['units']))), content)
            digest = hashlib.sha256(content).hexdigest()
            self.content['hashes'].append(digest)
        self.content['units'].append(report.to_dict())
        self._save()

    def _save(self) -> None:
        if is_main_process():
            self._check_there()
            checksum = checksum_of(self.content)
            save_json(
                dict(self.content, checksum=checksum), self._path('run.json')
            )

    def _check_there(self) -> None:
        """Not to make a folder anew that lacks what was in it."""
        if not osp.isdir(self.folder):
            raise FileNotFoundError(
                errno.ENOENT, 'The folder is gone', self.folder
            )

    def remove(self) -> None:
        """The run is over."""
        remove_folder(self.folder)

    def _path(self, name: str) -> str:
        return osp.join(self.folder, name)


def in_first(find: Callable[[], Any]) -> Any:
    """Do something in the first process, and tell the others.

    Args:
        find (callable): Without arguments.

    Returns:
        Any: What it gave.

    Raises:
        ValueError, OSError: What it raised, in all processes.
    """
    found: list[Any] = [None]
    if is_main_process():
        try:
            found = [find()]
        except (ValueError, OSError) as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], (ValueError, OSError)):
        raise found[0]
    return found[0]


def _name(number: int) -> str:
    return f'{number:04d}.pth'


def _check_content(content: Any) -> None:
    """Refuse what no run has written."""
    if not isinstance(content, dict):
        raise ValueError(f'it holds {type(content).__name__}, expected a dict')
    for key, kind in dict(identity=dict, metrics=dict, units=list).items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f'its {key!r} is no {kind.__name__}')
    known = {
        **dict(identity=dict, metrics=dict, units=list),
        **dict(hashes=list, checksum=str),
    }
    for key, value in content.items():
        if not isinstance(value, known.get(key, ())):
            raise ValueError(f'its {key!r:.80} is not known')
    for metrics in content['metrics'].values():
        if not isinstance(metrics, dict) or not all(
            isinstance(value, (int, float)) for value in metrics.values()
        ):
            raise ValueError('its metrics are no numbers')
    names = [_check_report(unit) for unit in content['units']]
    if len(set(names)) < len(names):
        raise ValueError('it has a unit twice')


def _check_report(unit: Any) -> str:
    """Refuse what is no report; give its unit's name."""
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
    ):
        if not isinstance(value, kind):
            raise ValueError(f'the report of a unit has {value!r:.80}')
    if report.autocast not in (None, 'bfloat16', 'float16'):
        raise ValueError(f'a unit learned in {report.autocast!r:.80}')
    return report.name
