"""What mmengine's runner needs to train on any device, safely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner

from .._terminal import limit
from .loaders import build_dataloader


@OPTIM_WRAPPERS.register_module(force=True)
class AutocastOptimWrapper(OptimWrapper):
    """Optimizer wrapper that runs the forward pass in bfloat16.

    Unlike mmengine's own, it asks for no accelerator.
    """

    @contextmanager
    def optim_context(self, model: Any) -> Iterator[None]:
        """Return the context of a forward pass."""
        device = next(model.parameters()).device.type
        with (
            super().optim_context(model),
            torch.autocast(device, dtype=torch.bfloat16),
        ):
            yield


class WatchingRunner(Runner):
    """Runner that names images that cannot be read."""

    build_dataloader = staticmethod(build_dataloader)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build a logger whose terminal shows what the user asked for."""
        logger = super().build_logger(*args, **kwargs)
        limit(logger)
        return logger


class PlainCheckpoint(Hook):
    """Hook that leaves objects of Python out of checkpoints.

    Torch refuses to load them, since they may run code.
    """

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the numbers of mmengine's message hub, and nothing else."""
        known = checkpoint['message_hub']['runtime_info']
        known = {
            key: value.item() if isinstance(value, np.generic) else value
            for key, value in known.items()
        }
        checkpoint['message_hub'] = dict(
            log_scalars={}, runtime_info=known, resumed_keys={}
        )
