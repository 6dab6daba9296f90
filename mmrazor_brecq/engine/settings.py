"""Check the keys of a config against declared types."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Optional

from mmengine.config import Config as MMEngineConfig
from pydantic import Field

from ..algorithms import BRECQ
from ..registry import LOOPS, MODELS
from ..validation import Config, KeyPath, Seed, validate
from .calibration import Loader
from .ptq_loop import PTQLoop
from .sensitivity_run import MixedPrecision


@dataclass
class Randomness:
    """Value of ``randomness``, as for mmengine's runner."""

    seed: Optional[Seed] = None
    diff_rank_seed: bool = False
    deterministic: bool = False


LoopConfig = Annotated[
    dict,
    Config(
        PTQLoop,
        LOOPS,
        excluded=('runner', 'dataloader', 'evaluator'),
    ),
]


@dataclass
class Settings:
    """Keys of a config that are checked before anything is built.

    A config may have other keys, for mmengine or for its own use.
    """

    model: Annotated[dict, Config(BRECQ, MODELS)]
    test_cfg: Optional[LoopConfig] = None
    test_dataloader: Optional[Annotated[dict, Config(Loader)]] = None
    mixed_precision: Optional[Annotated[dict, Config(MixedPrecision)]] = None
    randomness: Optional[Annotated[dict, Config(Randomness)]] = None
    work_dir: Optional[Annotated[str, Field(min_length=1)]] = None
    launcher: Optional[str] = None
    default_scope: Optional[str] = None
    custom_hooks: Optional[list[object]] = None


def check_settings(cfg: MMEngineConfig) -> None:
    """Check the keys of a config.

    Args:
        cfg (Config): A complete config, with the changes of the command
            line.

    Raises:
        ValueError: If a key is unknown or missing, or a value is wrong. The
            message has the key, from the outermost one down.
    """
    names = {field.name for field in fields(Settings)}
    given = {key: cfg[key] for key in cfg if key in names}
    loop = given.get('test_cfg') or {}
    if not str(loop.get('type')).endswith(PTQLoop.__name__):
        given.pop('test_cfg', None)  # Another loop has other keys.
    validate(given, Annotated[dict, Config(Settings)], KeyPath())
