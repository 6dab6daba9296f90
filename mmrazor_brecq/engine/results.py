"""What a run leaves in its folder, and whether a run is done."""

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
from .runners import missing_folders, remove_empty

#: Where launchers tell a process its number, before it has met the others.
RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


@contextmanager
def one_run(cfg: Config, cure: str) -> Iterator[None]:
    """Within it a run has its folder for itself.

    What killed runs have left there half written is removed, and a full
    disk, or a folder that is gone, is told in one message. Folders that
    were not there before are gone again if nothing came to lie in them.

    Args:
        cfg (Config): From :func:`load_config`.
        cure (str): How to go on after such a message.

    Raises:
        OSError: With that message.
        ValueError: If another run is at work in the folder.
    """
    folder = cfg.work_dir
    rank = int(os.environ.get(RANKS.get(cfg.launcher, ''), 0))
    # A log that cannot be written is no reason to show a traceback: what
    # matters is written elsewhere, and fails for itself.
    loud, logging.raiseExceptions = logging.raiseExceptions, False
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
        logging.raiseExceptions = loud


def finished_metrics(
    checkpoint: str, report: str, identity: Mapping[str, str]
) -> Optional[dict[str, float]]:
    """Metrics of a run that is done, if it is.

    Args:
        checkpoint (str): Its quantized checkpoint.
        report (str): Its report.
        identity (dict): Of the run.
    """
    if all(made_by(path, identity) for path in (checkpoint, report)):
        return _read_report(report).get('quantized')
    return None


def earlier_reports(folder: str) -> dict[str, dict[str, Any]]:
    """Return the reports of runs that have ended in a folder, by name."""
    found = {}
    for path in sorted(glob(osp.join(glob_escape(folder), 'report*.json'))):
        try:
            found[osp.basename(path)] = _read_report(path)
        except (OSError, ValueError):
            continue  # It tells nothing, and is left as it is.
    return found


def made_by(path: str, identity: Mapping[str, str]) -> bool:
    """Whether a checkpoint or a report is whole, and of a certain run.

    One that is there and not whole is told of: a run that goes on makes it
    anew.
    """
    try:
        if path.endswith('report.json'):
            found = _read_report(path).get('identity')
        else:
            found = read_quantized(path)['meta'].get('identity')
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        print_log(
            f'--resume: {error}; the run makes it anew',
            'current',
            logging.WARNING,
        )
        return False
    return found == identity


def _read_report(path: str) -> dict[str, Any]:
    check_regular(path, 'a report')
    try:
        with open(path, 'rb') as file:
            content = json.loads(file.read(), object_pairs_hook=unique_keys)
        if not isinstance(content, dict):
            raise ValueError(f'it holds {type(content).__name__}, no dict')
        # Those of an earlier version have none.
        checksum = content.pop('checksum', None)
        if checksum not in (None, checksum_of(content)):
            raise ValueError('its checksum is another one')
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path!r} is damaged ({error})') from error
    return content
