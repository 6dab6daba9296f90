"""What a run leaves beside its model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmengine.device import get_device
from mmengine.dist import get_world_size
from torch.utils.data import DataLoader

from .._requirements import installed_versions
from ..activations import Store
from ..report import weight_bytes
from ..version import __version__
from .accuracy_control import Attempt
from .image_set import ImageSet
from .usage import peak_memory_mb


def run_report(
    kept: Attempt, store: Store, calibration: ImageSet
) -> dict[str, Any]:
    """Return what can be said of a run when it ends.

    Args:
        kept (Attempt): The model, its metrics and what it was prepared with.
        store (Store): Where activations were cached.
        calibration (ImageSet): The calibration images.
    """
    return dict(
        **kept.progress.metrics,
        peak_memory_mb=round(peak_memory_mb()),
        activations_mb=dict(
            budget=None if store.budget is None else _mb(store.budget),
            held=_mb(store.peak_bytes),
            spilled=_mb(store.spilled_bytes),
        ),
        processes=get_world_size(),
        account=kept.model.account.to_dict(),
        widened=kept.widened,
        weight_bytes=weight_bytes(kept.model),
        left_out=calibration.left_out,
        unreadable=calibration.unreadable,
        versions=dict(mmrazor_brecq=__version__, **installed_versions()),
        device=get_device(),
    )


def class_names(loaders: Iterable[DataLoader]) -> list[str]:
    """Return the names of the classes, none if no data set knows them."""
    for loader in loaders:
        found = getattr(loader.dataset, 'metainfo', {}).get('classes')
        if found:
            return list(found)
    return []


def _mb(size: int) -> int:
    """Return bytes in MiB, rounded."""
    return round(size / 2**20)
