"""Runners that overwrite nothing of what an earlier run left."""

from __future__ import annotations

import os.path as osp
from pprint import pformat

from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.runner import Runner

from ..checkpoint import keep_older, write_whole


class RunOwner(Runner):
    """Makes a folder its own: its config lies there when it is over.

    One that is there and says something else is moved aside.
    """

    @master_only
    def dump_config(self) -> None:
        """Write the config into the folder of the run."""
        path = osp.join(self.work_dir, self.config_name)
        text = config_text(self.cfg)
        if osp.exists(path):
            with open(path) as file:
                if file.read() == text:
                    return
            keep_older(path)
        write_whole(path, text)

    @property
    def config_name(self) -> str:
        """Name of the config's file."""
        return osp.basename(self.cfg.filename or f'{self.timestamp}.py')


def config_text(cfg: Config) -> str:
    """What a config's file has to say, its keys in their order.

    mmengine sorts them, and later entries of ``bit_overrides`` win.

    Args:
        cfg (Config): Of plain values.
    """
    if not (cfg.filename or '.py').endswith('.py'):
        return cfg.dump()
    return (
        '\n'.join(
            f'{key} = {pformat(value, width=79, sort_dicts=False)}'
            for key, value in cfg.to_dict().items()
        )
        + '\n'
    )


class RunVisitor(RunOwner):
    """Looks at a run, as evaluation and searches do.

    What it changed of the config goes beside its own log.
    """

    @master_only
    def dump_config(self) -> None:
        """Write the config beside the log."""
        path = osp.join(self.log_dir, self.config_name)
        with open(path, 'w') as file:
            file.write(config_text(self.cfg))
