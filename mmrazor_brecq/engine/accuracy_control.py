"""Quantize again, with more bits, until a model loses little accuracy."""

from __future__ import annotations

import hashlib
import logging
import math
import os.path as osp
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Optional

from mmengine.config import Config as MMEngineConfig
from torch import nn

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..checkpoint import fingerprint
from ..config.recipe import read_part
from ..graph import QuantizationScheme, copy_network
from ..mixed_precision import (
    BitOperations,
    BitSearch,
    GiveBack,
    LayerBits,
    WeightBytes,
)
from ..reconstruction import WHOLE
from ..targets import FLOAT
from .max_drop import MaxDrop, Yardstick
from .progress import Progress
from .sensitivity_run import (
    MixedPrecision,
    SensitivityFile,
    find_space,
    sensitivities,
)
from .unit_run import prepare_on

#: Models that are reconstructed after the first one, at most.
MOST_ATTEMPTS = 3
#: Bit widths that may be given back, beside those to begin with.
WIDTHS = (3, 4, 6, 8)
#: Images on which sensitivities are measured, unless the config says.
IMAGES = 64


@dataclass
class Attempt:
    """A model that is quantized with some bits.

    Attributes:
        model (BRECQ): The model, prepared.
        teacher (nn.Module): Its float network.
        progress (Progress): Its finished units and metrics.
        widened (dict): As of :meth:`BRECQ.widen`.
        scheme (QuantizationScheme, optional): The settings that it was
            prepared with; None for those of the config.
        reused (int): Number of units taken from an attempt before.
        changed (dict): Bits of the layers that got more.
        value (float): The metric.
        drop (float): Points that were lost.
        predicted (float, optional): Predicted loss, in nats an image.
    """

    model: BRECQ
    teacher: nn.Module
    progress: Progress
    widened: dict[str, float] = field(default_factory=dict)
    scheme: Optional[QuantizationScheme] = None
    reused: int = 0
    changed: dict[str, Any] = field(default_factory=dict)
    value: float = math.nan
    drop: float = math.inf
    predicted: Optional[float] = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as an entry of a report."""
        return dict(
            value=self.value,
            drop=self.drop,
            changed=self.changed,
            units=len(self.model.units),
            reused=self.reused,
            predicted=self.predicted,
        )


class AccuracyControl:
    """Gives bits back to a model until it loses no more than is allowed.

    After the first model come at most ``MOST_ATTEMPTS`` others. Each has the
    cheapest bits that are predicted to suffice, as an integer program finds
    them; the last one has all of them. Units are reconstructed from the first
    on whose bits changed: those before it see the same inputs as before.

    Args:
        target (MaxDrop): What is allowed.
        original (BRECQ): The float model, not prepared. It is not changed.
        images (CachedBatches): Calibration images.
        settings (MixedPrecision): How sensitivities are measured.
        folder (str): Folder of unfinished work.
        identity (dict): Hashes of all that the run depends on.
        seed (int): Seed of all randomness.
        logger (logging.Logger): Logger.
        resume (bool): Whether to continue what is in the folder.
    """

    def __init__(
        self,
        target: MaxDrop,
        original: BRECQ,
        images: CachedBatches,
        settings: Optional[MixedPrecision],
        folder: str,
        identity: dict[str, str],
        seed: int,
        logger: logging.Logger,
        resume: bool = False,
    ) -> None:
        self.target, self.original, self.images = target, original, images
        self.settings = settings or MixedPrecision(
            reconstructor=read_part('schedule', 'fast', 'schedule'),
            num_images=IMAGES,
        )
        self.folder, self.identity, self.seed = folder, identity, seed
        self.logger, self.resume = logger, resume
        self.attempts: list[Attempt] = []
        self.before: LayerBits = {}

    def __call__(
        self, first: Attempt, learn: Callable[[Attempt], None]
    ) -> Attempt:
        """Return the first attempt that loses little enough, or the best.

        Args:
            first (Attempt): The quantized model, with its ``value``.
            learn (callable): Reconstructs an attempt, and sets its
                ``value`` and ``drop``.
        """
        self.attempts = [first]
        if self.met:
            return first
        give_back = self._give_back()
        while not self.met and len(self.attempts) <= MOST_ATTEMPTS:
            if give_back is None or give_back.exhausted:
                break
            give_back.give(
                self.target.points,
                self.attempts[-1].drop,
                last=len(self.attempts) == MOST_ATTEMPTS,
            )
            self.attempts.append(self._attempt(give_back))
            learn(self.attempts[-1])
        if not self.met:
            return min(self.attempts, key=lambda attempt: attempt.drop)
        return self.attempts[-1]

    @property
    def met(self) -> bool:
        """Whether the last attempt loses no more than is allowed."""
        return self.attempts[-1].drop <= self.target.points

    def report(self, yardstick: Yardstick, kept: Attempt) -> dict[str, Any]:
        """Return the path as an entry of a report."""
        return dict(
            points=self.target.points,
            up_to=self.target.up_to,
            metric=yardstick.metric,
            float=yardstick.best,
            met=kept.drop <= self.target.points,
            attempts=[attempt.to_dict() for attempt in self.attempts],
            kept=self.attempts.index(kept),
        )

    def fresh(self, attempt: Attempt) -> tuple[BRECQ, nn.Module]:
        """Return an attempt's model, prepared anew, and its teacher."""
        model = copy_network(self.original)
        model.scheme = attempt.scheme or model.scheme
        teacher, _ = prepare_on(model, self.images)
        return model, teacher

    def _give_back(self) -> Optional[GiveBack]:
        """Return what chooses bits; None if there is nothing to choose."""
        start = self._start()
        kinds: Any = [kind for kind, bits in start.items() if bits < 8]
        if self.target.up_to == 'float':
            kinds = list(start)
        least = min(start.values())
        widths = {*start.values(), *(b for b in WIDTHS if b > least), 8}
        if not kinds or len(widths) < 2:
            return None
        settings = replace(self.settings, bits=sorted(widths), kinds=kinds)
        source = copy_network(self.original)  # Its scheme suits its target.
        try:
            space = find_space(source, settings, self.images.batch(0)[:1])
        except ValueError as error:  # Overrides decide all bits.
            self.logger.warning(str(error))
            return None
        self.before, settings = space.bits, space.settings
        self.logger.info(
            'The accuracy falls further than is allowed: measures how '
            f'sensitive {len(space.choices)} weights and activations are, '
            f'at {", ".join(map(str, settings.bits))} bits'
        )
        file = SensitivityFile(
            osp.join(self.folder, 'sensitivity.json'), self.identity
        )
        sensitivities(
            source,
            settings,
            self.images,
            space,
            file,
            self.seed,
            self.logger,
        )
        search = BitSearch(
            settings,
            space.shape,
            space.bits,
            space.choices,
            file.loss,
            [WeightBytes(), BitOperations()],
            settings.searcher,
        )
        return GiveBack(search, start, self.target.up_to == 'float')

    def _start(self) -> dict[str, int]:
        """Return the bits of the config, of what is quantized."""
        scheme = self.attempts[0].model.scheme
        found = dict(weight=scheme.weight.get('bits', 8))
        if scheme.activation is not None:
            found['activation'] = scheme.activation.get('bits', 8)
        return found

    def _attempt(self, give_back: GiveBack) -> Attempt:
        """Prepare a model with the bits that were chosen."""
        bits = give_back.layer_bits
        changed = {
            name: pair
            for name, pair in bits.items()
            if pair != self.before[name]
        }
        overrides = {name: _override(*pair) for name, pair in changed.items()}
        model = copy_network(self.original)
        scheme = model.scheme
        model.scheme = replace(
            scheme, bit_overrides={**scheme.bit_overrides, **overrides}
        )
        scheme = model.scheme  # A target may change it.
        teacher, widened = prepare_on(model, self.images)
        number = len(self.attempts) + 1
        folder = osp.join(self.folder, f'attempt{number}')
        text = repr(sorted(overrides.items()))
        digest = hashlib.sha256(text.encode()).hexdigest()
        progress = Progress(
            folder,
            dict(self.identity, bits=digest),
            # A run may have been killed before its first unit.
            self.resume and osp.exists(osp.join(folder, 'run.json')),
        )
        source, reused = max(
            (
                (a.progress, _unchanged(a, model, teacher))
                for a in self.attempts
            ),
            key=lambda pair: pair[1],
        )
        if not progress.reports:
            progress.take(source, reused)
        self.logger.info(
            f'Layers with more bits: {len(changed)}. Reconstructs from unit '
            f'{reused + 1} of {len(model.units)} on, the first one that '
            'changed, for all after it see other inputs'
        )
        return Attempt(
            model,
            teacher,
            progress,
            widened,
            scheme,
            reused,
            {name: list(pair) for name, pair in changed.items()},
            predicted=give_back.predicted,
        )


def _unchanged(attempt: Attempt, model: BRECQ, teacher: nn.Module) -> int:
    """Return how many of the first units are the same in a new model."""
    layers = {unit.name: list(unit.layers) for unit in model.units}
    before = attempt.model.bits

    def same(name: str, inside: list[str]) -> bool:
        if layers.get(name) != inside or any(
            tuple(before[layer]) != tuple(model.bits[layer])
            for layer in inside
        ):
            return False
        # Equalized ranges depend on bits, too.
        parts = (x.get_submodule(name) for x in (attempt.teacher, teacher))
        return len(set(map(fingerprint, parts))) == 1

    reports = (r for r in attempt.progress.reports if r.name != WHOLE)
    return len(list(takewhile(lambda r: same(r.name, r.layers), reports)))


def _override(weight: Optional[int], activation: Optional[int]) -> Any:
    """Return the bits of a layer as a value of ``bit_overrides``."""
    if FLOAT in (weight, activation if weight is None else weight):
        return None
    given = dict(weight=weight, activation=activation)
    return {kind: bits for kind, bits in given.items() if bits is not None}


def given_settings(cfg: MMEngineConfig) -> Optional[MixedPrecision]:
    """Return ``mixed_precision`` of a config; None if it has no such key."""
    return MixedPrecision.of(cfg) if cfg.get('mixed_precision') else None
