"""Sensitivities of a run: measured once, kept in a file, gone on with."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os.path as osp
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Optional

import torch
from mmengine.config import Config as MMEngineConfig
from mmengine.logging import print_log
from torch import Tensor, nn

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..checkpoint import (
    checksum_of,
    fingerprint,
    remove_folder,
    save_json,
    unique_keys,
)
from ..config.safe import check_regular
from ..graph import PartitionConfig, copy_network
from ..mixed_precision import (
    Choice,
    CostModel,
    FisherError,
    ModelShape,
    OnFloatInputs,
    Pairwise,
    SearcherConfig,
    SearchSpace,
    find_choices,
    measure,
    model_shape,
    uniform,
)
from ..reconstruction import ReconstructorConfig
from ..registry import TASK_UTILS
from ..report import UnitProgress
from ..validation import Config, Count, KeyPath, validate, validated
from .calibration import fingerprint_images
from .progress import Progress

#: How a parameter says that it takes a cost model.
CostConfig = Annotated[dict, Config(CostModel, TASK_UTILS)]


@validated
@dataclass
class MixedPrecision(SearchSpace):
    """What a config says under ``mixed_precision``.

    Args:
        reconstructor (dict, optional): How the weights of each width come
            about; the model's own by default, ``dict(type=
            'NearestRounding')`` for a quick look.
        partition (dict, optional): What is reconstructed at a time; the
            model's own units if None, as in the paper. Layers of a unit
            that learned together make up for each other's errors, which
            they do no more once one of them is swapped.
        num_images (int): Calibration images that sensitivity is measured
            on.
        error (dict): What an error at a unit's output means.
        searcher (dict): How the widths are searched.
        costs (list[dict]): Cost models beside those of weight bytes and bit
            operations.
    """

    reconstructor: Optional[ReconstructorConfig] = None
    partition: Optional[PartitionConfig] = field(
        default_factory=lambda: dict(type='LayerPartition')
    )
    num_images: Count = 256
    error: Annotated[dict, Config(FisherError, TASK_UTILS)] = field(
        default_factory=lambda: dict(type='FisherError')
    )
    searcher: SearcherConfig = field(
        default_factory=lambda: dict(type='ExactSearch')
    )
    costs: Sequence[CostConfig] = ()

    @classmethod
    def of(cls, cfg: MMEngineConfig) -> MixedPrecision:
        """What a config says, and the defaults for all else.

        Raises:
            ValueError: If it has a key too many, or a wrong value.
        """
        given = cfg.get('mixed_precision') or {}
        validate(
            given, Annotated[dict, Config(cls)], KeyPath('mixed_precision')
        )
        return cls(**given)

    @property
    def ends(self) -> tuple[int, int]:
        """The narrowest and the widest width."""
        return self.bits[0], self.bits[-1]

    def identity(
        self, model: BRECQ, cfg: Any, images: CachedBatches, seed: int
    ) -> dict[str, str]:
        """What sensitivities depend on; how widths are searched is not.

        Args:
            model (BRECQ): With float weights, not yet prepared.
            cfg (Config): Of the run.
            images (CachedBatches): Calibration images.
            seed (int): Of the run.
        """
        parts = [
            model.scheme.to_dict(),
            cfg.model.get('partition'),
            self.reconstructor or cfg.model.get('reconstructor'),
            self.partition,
            self.bits,
            sorted(self.kinds),
            self.num_images,
            self.error,
            seed,
        ]
        text = json.dumps(parts, sort_keys=True, default=dict)
        return dict(
            checkpoint=fingerprint(model.architecture),
            config=hashlib.sha256(text.encode()).hexdigest(),
            calibration=fingerprint_images(images),
        )


class SensitivityFile:
    """The loss as far as it is measured, in a JSON file.

    ``alone`` has a number for each choice and width, ``pairs`` a row for
    each two choices of a unit and their widths, in nats an image;
    ``finished`` names the units that are measured.

    Args:
        path (str): The file; what lies there is gone on with.
        identity (dict[str, str]): What the numbers depend on.

    Raises:
        ValueError: If the file is broken, or has another identity.
    """

    def __init__(self, path: str, identity: dict[str, str]) -> None:
        self.path = path
        self.identity = identity
        self.loss = Pairwise()
        self.finished: list[str] = []
        if osp.exists(path):
            self._read()

    def _read(self) -> None:
        try:
            check_regular(self.path, 'a JSON')
            with open(self.path, 'rb') as file:
                content = json.loads(
                    file.read(), object_pairs_hook=unique_keys
                )
            before = content['identity']
            if not isinstance(before, dict):
                raise ValueError('its identity is no dict')
            self._read_terms(content)
        except (
            *(KeyError, TypeError, ValueError),
            *(AttributeError, RecursionError),
        ) as error:
            raise ValueError(
                f'{self.path!r} is no file of sensitivities ({error}): name '
                'another one with --sensitivity, or remove it'
            ) from error
        other = [k for k, v in self.identity.items() if before.get(k) != v]
        if other:
            raise ValueError(
                f'The sensitivities in {self.path!r} were measured with '
                f'another {" and ".join(other)}: name a new file with '
                '--sensitivity, or use what they were measured with'
            )
        checksum = content.pop('checksum', None)
        if checksum is None:
            print_log(
                f'{self.path} is of an earlier version and has no checksum: '
                'damage to it would go unnoticed',
                'current',
                logging.WARNING,
            )
        elif checksum != checksum_of(content):
            raise ValueError(
                f'{self.path!r} is not what its checksum says: it is damaged '
                'or was edited. Name another one with --sensitivity, or '
                'remove it'
            )

    def _read_terms(self, content: dict[str, Any]) -> None:
        """Take the numbers, if they are such."""
        for name, terms in content['alone'].items():
            for bits, value in terms.items():
                width = _width(int(bits), name)
                self.loss.add(name, width, _loss(value, name, least=0))
        for one, a, two, b, value in content['pairs']:
            pair = f'{one} and {two}'
            if not {one, two} <= set(self.loss.alone) or one == two:
                raise ValueError(f'{pair} have no terms of their own')
            widths = _width(a, pair), _width(b, pair)
            table = self.loss.pairs.get((one, two), {})
            if widths in table or (two, one) in self.loss.pairs:
                raise ValueError(f'{pair} have two rows for {a} and {b} bits')
            self.loss.add_pair((one, two), widths, _loss(value, pair))
        self.finished = content['finished']
        if not isinstance(self.finished, list) or not all(
            isinstance(name, str) for name in self.finished
        ):
            raise ValueError('`finished` is no list of units')
        if len(set(self.finished)) < len(self.finished):
            raise ValueError('`finished` has a unit twice')

    def check(self, choices: Sequence[Choice], widths: Sequence[int]) -> None:
        """See that the units that are finished have all of their terms.

        Args:
            choices (list[Choice]): What is measured.
            widths (list[int]): At which widths.

        Raises:
            ValueError: If one has not, or there is a term of no choice.
        """
        done = [choice for choice in choices if choice.unit in self.finished]
        alone = {choice.name: set(widths) for choice in done}
        found = {name: set(terms) for name, terms in self.loss.alone.items()}
        pairs = {
            tuple(sorted((one.name, two.name)))
            for one, two in itertools.combinations(done, 2)
            if one.unit == two.unit
        }
        known = {tuple(sorted(pair)) for pair in self.loss.pairs}
        units = {choice.unit for choice in choices}
        whole = set(itertools.product(widths, widths))
        if not (
            set(self.finished) <= units
            and alone == found
            and pairs == known
            and all(set(t) == whole for t in self.loss.pairs.values())
        ):
            raise ValueError(
                f'{self.path!r} lacks terms of the units that it says are '
                'measured, or has some of others: name another file with '
                '--sensitivity, or remove it'
            )

    def _folder(self, bits: int) -> str:
        name = hashlib.sha256(repr(self.identity).encode()).hexdigest()[:8]
        return f'{self.path}.progress-{name}-{bits}bits'

    def forget(self, widths: Sequence[int]) -> None:
        """Remove what was kept until all was measured."""
        for bits in widths:
            remove_folder(self._folder(bits))

    def progress(self, bits: int) -> Progress:
        """Where the model of one width is kept until all is measured."""
        folder = self._folder(bits)
        # A run may have been killed between its first unit and run.json.
        return Progress(folder, self.identity, osp.exists(folder))

    def add(self, unit: str, loss: Pairwise) -> None:
        """Remember a unit."""
        self.loss.update(loss)
        self.finished.append(unit)
        content = dict(
            identity=self.identity,
            finished=self.finished,
            alone={
                name: {str(bits): value for bits, value in terms.items()}
                for name, terms in self.loss.alone.items()
            },
            pairs=[
                [one, a, two, b, value]
                for (one, two), table in self.loss.pairs.items()
                for (a, b), value in table.items()
            ],
        )
        checksum = checksum_of(content)
        save_json(dict(content, checksum=checksum), self.path)


def _width(bits: Any, whose: str) -> int:
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ValueError(f'{bits!r:.80} bits of {whose}, expected 2 to 8')
    return bits


def _loss(value: Any, whose: str, least: float = -math.inf) -> float:
    fits = type(value) in (int, float) and math.isfinite(value)
    if not fits or value < least:
        expected = 'a finite number' + ('' if least < 0 else ', 0 or more')
        raise ValueError(f'{value!r:.80} for {whose}, expected {expected}')
    return float(value)


@dataclass
class Space:
    """What there is to search in a model; nothing of it is measured.

    Attributes:
        model (BRECQ): Prepared as its config says.
        choices (list[Choice]): What there is to choose.
        shape (ModelShape): What costs depend on.
    """

    model: BRECQ
    choices: list[Choice]
    shape: ModelShape

    @property
    def bits(self) -> dict[str, tuple[int, Optional[int]]]:
        """Bit widths of the config, of weight and input of every layer."""
        floats = self.model.scheme.activation is None
        return {
            name: (weight, None if floats else activation)
            for name, (weight, activation) in self.model.bits.items()
        }


def find_space(
    model: BRECQ, settings: MixedPrecision, example: Tensor
) -> Space:
    """Find what there is to search.

    Args:
        model (BRECQ): With float weights; it stays as it is.
        settings (MixedPrecision): What may be chosen.
        example (Tensor): One preprocessed image, 1 x C x H x W.
    """
    prepared = copy_network(model)
    prepared.prepare(example)
    ends = {b: uniform(model, b, settings.kinds) for b in settings.ends}
    for end in ends.values():
        end.prepare(example)
    choices = find_choices(ends, settings.kinds)
    shape = model_shape(prepared.architecture, example)
    return Space(prepared, choices, shape)


def sensitivities(
    model: BRECQ,
    settings: MixedPrecision,
    images: CachedBatches,
    found: Space,
    file: SensitivityFile,
    seed: int,
    logger: logging.Logger,
) -> None:
    """Measure what is not in the file yet.

    First the model is reconstructed once for each width, then the units
    are measured. A run that is killed goes on after the last unit of
    either.

    Args:
        model (BRECQ): With float weights; it stays as it is.
        settings (MixedPrecision): What to measure.
        images (CachedBatches): Preprocessed calibration images.
        found (Space): What there is to choose in the model.
        file (SensitivityFile): Where the numbers go.
        seed (int): Of all randomness.
        logger (logging.Logger): Takes a line for every unit.
    """
    choices = found.choices
    units = list(dict.fromkeys(choice.unit for choice in choices))
    file.check(choices, settings.bits)
    if set(units) <= set(file.finished):
        file.forget(settings.bits)
        return
    models, teacher = uniform_models(
        model, settings, images, file, seed, logger
    )
    done = list(file.finished)
    with UnitProgress(len(units), logger, 'measure') as show:
        for unit in done:
            show.advance(f'{unit or "network"}: was measured before')
        for unit, loss in measure(
            teacher,
            found.model.units,
            models,
            choices,
            _first(images, settings.num_images),
            TASK_UTILS.build(settings.error),
            seed,
            done,
        ):
            file.add(unit, loss)
            name, most = max(
                ((n, max(terms.values())) for n, terms in loss.alone.items()),
                key=lambda pair: pair[1],
            )
            show.advance(
                f'{unit or "network"}: at most {most:.3g} nats, by {name}'
            )
    file.forget(settings.bits)


def uniform_models(
    model: BRECQ,
    settings: MixedPrecision,
    images: CachedBatches,
    file: SensitivityFile,
    seed: int,
    logger: logging.Logger,
) -> tuple[dict[int, BRECQ], nn.Module]:
    """The model with all its layers at one width, for every width.

    Takes what :func:`sensitivities` takes, but for ``found``.

    Returns:
        tuple[dict[int, BRECQ], nn.Module]: Frozen models by their width,
        and the folded float network.
    """
    reconstructor = OnFloatInputs(
        TASK_UTILS.build(settings.reconstructor)
        if settings.reconstructor
        else model.reconstructor
    )
    models: dict[int, BRECQ] = {}
    for bits in settings.bits:
        logger.info(f'All layers at {bits} bits')
        models[bits] = uniform(model, bits, settings.kinds, settings.partition)
        teacher = models[bits].prepare(images.batch(0)[:1])
        _reconstruct(
            models[bits],
            file.progress(bits),
            logger,
            teacher=teacher,
            images=images,
            seed=seed,
            reconstructor=reconstructor,
        )
    return models, teacher


def _reconstruct(
    model: BRECQ, progress: Progress, logger: logging.Logger, **how: Any
) -> None:
    """Reconstruct what an earlier run has not."""
    modules = {unit.name: unit.module for unit in model.units}
    done = progress.units(modules.__getitem__)
    if set(done) == set(modules):
        for name, state in done.items():
            modules[name].load_state_dict(state)
        return
    with UnitProgress(len(modules), logger) as show:
        for report in progress.reports:
            show(report)
        how['reconstructor'].autocast.resume(progress.types)
        for report in model.reconstruct(done=done, **how):
            progress.add_unit(report, modules[report.name])
            show(report)


def _first(images: CachedBatches, count: int) -> CachedBatches:
    """The first images."""
    index = torch.arange(min(count, len(images)))
    sizes = [len(part) for part in index.split(images.sizes[0])]
    batches = (images.take(part) for part in index.split(images.sizes[0]))
    return CachedBatches(batches, sizes, images.store)
