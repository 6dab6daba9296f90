"""Manage the folder of a run: one run at a time, and its results."""

from __future__ import annotations

import json
import logging
import os
import os.path as osp
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from glob import escape as glob_escape
from glob import glob
from typing import Any, Optional

from mmengine.config import Config
from mmengine.logging import print_log

from ..checkpoint import (
    checksum_of,
    explain_write_errors,
    locked,
    read_quantized,
    remove_leftovers,
    unique_keys,
)
from ..config.safe import check_regular
from .differences import Changes, difference
from .folders import missing_folders, remove_empty

#: Environment variables in which launchers give a process its rank.
RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


@contextmanager
def one_run(cfg: Config, cure: str) -> Iterator[None]:
    """Return a context in which the folder of a run is locked.

    Temporary files of killed runs are removed first. Folders that were
    created for the run are removed afterwards if they are empty.

    Args:
        cfg (Config): From :func:`load_config`.
        cure (str): How to continue after an error in writing.

    Raises:
        OSError: If the disk is full, or the folder was removed or is no
            longer writable, with the cure.
        ValueError: If another run uses the folder.
    """
    folder = cfg.work_dir
    rank = int(os.environ.get(RANKS.get(cfg.launcher, ''), 0))
    # A log that cannot be written prints no traceback: the results are
    # written separately, and their errors are raised.
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        with explain_write_errors(folder, cure), ExitStack() as stack:
            if rank == 0:
                stack.callback(remove_empty, missing_folders(folder))
                os.makedirs(folder, exist_ok=True)
                stack.enter_context(
                    locked(
                        osp.join(folder, 'run.lock'),
                        'wait for it, or name another folder with --work-dir',
                    )
                )
                remove_leftovers(folder)
            yield
    finally:
        logging.raiseExceptions = before


def finished_metrics(
    checkpoint: str, report: str, identity: Mapping[str, str]
) -> Optional[dict[str, float]]:
    """Return the metrics of a run, None if it is not finished.

    Args:
        checkpoint (str): Path of its quantized checkpoint.
        report (str): Path of its report.
        identity (dict): Its identity, as in ``run.json``.
    """
    if all(made_by(path, identity) for path in (checkpoint, report)):
        return read_report(report).get('quantized')
    return None


def refuse_other_run(
    report: str, identity: Mapping[str, str], changes: Changes
) -> None:
    """Refuse to resume a finished run that was another one.

    Args:
        report (str): Path of its report. There may be none.
        identity (dict): The identity of this run.
        changes (callable): As for :func:`difference`.

    Raises:
        ValueError: If the report is of a run with another identity.
    """
    try:
        before = read_report(report).get('identity')
    except (OSError, ValueError):  # A new one is written.
        return
    # Reports of an earlier version have no identity.
    if isinstance(before, dict) and before != identity:
        raise ValueError(
            f'--resume: the run in {osp.dirname(report)} is finished, and it '
            f'{difference(identity, before, changes)}. Give it the same, or '
            'start a new run without --resume, or with another --work-dir'
        )


def earlier_reports(folder: str) -> dict[str, dict[str, Any]]:
    """Return the reports of the finished runs in a folder, by file name."""
    found = {}
    for path in sorted(glob(osp.join(glob_escape(folder), 'report*.json'))):
        try:
            found[osp.basename(path)] = read_report(path)
        except (OSError, ValueError):
            continue  # It is damaged, and stays unchanged.
    return found


def made_by(path: str, identity: Mapping[str, str]) -> bool:
    """Return whether a checkpoint or a report is of a certain run.

    A damaged file is not. It is logged, and a resumed run writes a new one.
    """
    try:
        if path.endswith('report.json'):
            found = read_report(path).get('identity')
        else:
            found = read_quantized(path)['meta'].get('identity')
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        print_log(
            f'--resume: {error}; the run writes a new one',
            'current',
            logging.WARNING,
        )
        return False
    return found == identity


def read_report(path: str) -> dict[str, Any]:
    """Return the checked content of a report."""
    check_regular(path, 'a report')
    try:
        with open(path, 'rb') as file:
            content = json.loads(file.read(), object_pairs_hook=unique_keys)
        if not isinstance(content, dict):
            raise ValueError(
                f'it contains a {type(content).__name__}, expected a dict'
            )
        # Reports of an earlier version have no checksum.
        checksum = content.pop('checksum', None)
        if checksum not in (None, checksum_of(content)):
            raise ValueError('its content does not match its checksum')
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path!r} is damaged ({error})') from error
    return content


def best_metric(cfg: Config) -> Optional[str]:
    """Return the metric by which a config saves the best checkpoint.

    Args:
        cfg (Config): Config of a run.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    names = hook.get('save_best')
    name = names[0] if isinstance(names, (list, tuple)) and names else names
    return name if isinstance(name, str) and name != 'auto' else None
