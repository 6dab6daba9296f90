"""Keep sensitivities in a file; mixed_precision.sensitivity measures them.

This module also reconstructs the uniform models that are measured, and
continues an interrupted measurement.
"""

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
from ..layers import kind_of
from ..mixed_precision import (
    Choice,
    CostModel,
    FisherError,
    LayerBits,
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

#: Type of a parameter that is a config of a cost model.
CostConfig = Annotated[dict, Config(CostModel, TASK_UTILS)]


@validated
@dataclass
class MixedPrecision(SearchSpace):
    """Config of a search, under the key ``mixed_precision``.

    Args:
        reconstructor (dict, optional): The reconstructor of the uniform
            models. By default that of the model; ``dict(type=
            'NearestRounding')`` is faster and less exact.
        partition (dict, optional): The partition of the uniform models;
            None for the units of the model, as in the paper. Layers that
            learn together compensate each other's errors, and no longer do
            so once the bits of one of them change.
        num_images (int): Calibration images on which sensitivities are
            measured.
        error (dict): Config of the measure of an error at a unit's output.
        searcher (dict): Config of the algorithm that searches the bits.
        costs (list[dict]): Cost models in addition to those of weight bytes
            and bit operations.

    Example:
        >>> mixed_precision = dict(
        ...     bits=[2, 4, 8],
        ...     num_images=256,
        ...     searcher=dict(type='ExactSearch'),
        ... )
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
        """Return the settings of a config, with defaults for missing keys.

        Raises:
            ValueError: If a key is unknown, or a value is wrong.
        """
        given = cfg.get('mixed_precision') or {}
        validate(
            given, Annotated[dict, Config(cls)], KeyPath('mixed_precision')
        )
        return cls(**given)

    @property
    def ends(self) -> tuple[int, int]:
        """The fewest and the most bits to choose from."""
        return self.bits[0], self.bits[-1]

    def identity(
        self,
        model: BRECQ,
        cfg: MMEngineConfig,
        images: CachedBatches,
        seed: int,
    ) -> dict[str, str]:
        """Return hashes of all that sensitivities depend on.

        They do not depend on the algorithm of the search.

        Args:
            model (BRECQ): A model with float weights, not yet prepared.
            cfg (Config): The config of the run.
            images (CachedBatches): Calibration images.
            seed (int): The seed of the run.
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
    """JSON file with the loss terms that are measured so far.

    ``alone`` has a value for each choice and its bits, ``pairs`` a row for
    each two choices of a unit and their bits, in nats per image.
    ``finished`` has the names of the measured units.

    Args:
        path (str): The file. A measurement in an existing file is continued.
        identity (dict[str, str]): Hashes of all that the terms depend on.

    Raises:
        ValueError: If the file is damaged, or has another identity.
    """

    def __init__(self, path: str, identity: dict[str, str]) -> None:
        self.path = path
        self.identity = identity
        self.loss = Pairwise()
        self.finished: list[str] = []
        if osp.exists(path):
            self._read()

    def _read(self) -> None:
        """Read and check an existing file."""
        try:
            check_regular(self.path, 'a JSON')
            with open(self.path, 'rb') as file:
                content = json.loads(
                    file.read(), object_pairs_hook=unique_keys
                )
            before = content['identity']
            if not isinstance(before, dict):
                raise ValueError('its identity is not a dict')
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
                'damage to it cannot be noticed',
                'current',
                logging.WARNING,
            )
        elif checksum != checksum_of(content):
            raise ValueError(
                f'{self.path!r} does not match its checksum: it is damaged '
                'or was edited. Name another one with --sensitivity, or '
                'remove it'
            )

    def _read_terms(self, content: dict[str, Any]) -> None:
        """Take the terms of a file, after checking each."""
        for name, terms in content['alone'].items():
            for bits, value in terms.items():
                checked = _check_bits(int(bits), name)
                self.loss.add(name, checked, _check_loss(value, name, least=0))
        for one, a, two, b, value in content['pairs']:
            pair = f'{one} and {two}'
            if not {one, two} <= set(self.loss.alone) or one == two:
                raise ValueError(f'{pair} have no terms in `alone`')
            both = _check_bits(a, pair), _check_bits(b, pair)
            table = self.loss.pairs.get((one, two), {})
            if both in table or (two, one) in self.loss.pairs:
                raise ValueError(f'{pair} have two rows for {a} and {b} bits')
            self.loss.add_pair((one, two), both, _check_loss(value, pair))
        self.finished = content['finished']
        if not isinstance(self.finished, list) or not all(
            isinstance(name, str) for name in self.finished
        ):
            raise ValueError('`finished` is not a list of units')
        if len(set(self.finished)) < len(self.finished):
            raise ValueError('`finished` has a unit twice')

    def check(self, choices: Sequence[Choice], bits: Sequence[int]) -> None:
        """Check that the finished units have all of their terms.

        Args:
            choices (list[Choice]): The choices that are measured.
            bits (list[int]): The bits at which they are measured.

        Raises:
            ValueError: If a term is missing, or is of an unknown choice.
        """
        done = [choice for choice in choices if choice.unit in self.finished]
        alone = {choice.name: set(bits) for choice in done}
        found = {name: set(terms) for name, terms in self.loss.alone.items()}
        pairs = {
            tuple(sorted((one.name, two.name)))
            for one, two in itertools.combinations(done, 2)
            if one.unit == two.unit
        }
        known = {tuple(sorted(pair)) for pair in self.loss.pairs}
        units = {choice.unit for choice in choices}
        all_bits = set(itertools.product(bits, bits))
        if not (
            set(self.finished) <= units
            and alone == found
            and pairs == known
            and all(set(t) == all_bits for t in self.loss.pairs.values())
        ):
            raise ValueError(
                f'{self.path!r} lacks terms of its finished units, or has '
                'terms of others: name another file with --sensitivity, or '
                'remove it'
            )

    def _folder(self, bits: int) -> str:
        """Return the folder of an unfinished uniform model."""
        name = hashlib.sha256(repr(self.identity).encode()).hexdigest()[:8]
        return f'{self.path}.progress-{name}-{bits}bits'

    def remove_progress(self, bits: Sequence[int]) -> None:
        """Remove the saved uniform models, once all is measured."""
        for one in bits:
            remove_folder(self._folder(one))

    def progress(self, bits: int) -> Progress:
        """Return the saved units of the uniform model of some bits."""
        folder = self._folder(bits)
        # A run may have been killed between its first unit and run.json.
        return Progress(folder, self.identity, osp.exists(folder))

    def add(self, unit: str, loss: Pairwise) -> None:
        """Save the terms of a measured unit."""
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


def _check_bits(bits: object, name: str) -> int:
    """Return the bits of a choice, if a quantizer may have them."""
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ValueError(f'{bits!r:.80} bits of {name}, expected 2 to 8')
    return bits


def _check_loss(value: Any, name: str, least: float = -math.inf) -> float:
    """Return the loss of a choice, if it is finite and not too small."""
    fits = type(value) in (int, float) and math.isfinite(value)
    if not fits or value < least:
        expected = 'a finite number' + ('' if least < 0 else ', 0 or more')
        raise ValueError(f'{value!r:.80} for {name}, expected {expected}')
    return float(value)


@dataclass
class Space:
    """Choices of bits in a model, before anything is measured.

    Attributes:
        settings (MixedPrecision): The settings, as far as the target of the
            model allows them.
        model (BRECQ): The model, prepared with its config.
        choices (list[Choice]): The choices.
        shape (ModelShape): The shapes on which costs depend.
    """

    settings: MixedPrecision
    model: BRECQ
    choices: list[Choice]
    shape: ModelShape

    @property
    def bits(self) -> LayerBits:
        """Bits of the weights and the inputs of each layer in the config."""
        floats = self.model.scheme.activation is None
        return {
            name: (weight, None if floats else activation)
            for name, (weight, activation) in self.model.bits.items()
        }


def find_space(
    model: BRECQ, settings: MixedPrecision, example: Tensor
) -> Space:
    """Find the choices of bits in a model.

    Args:
        model (BRECQ): A model with float weights. It is not changed but for
            its scheme, which becomes what its target allows.
        settings (MixedPrecision): The kinds and bits to choose from.
        example (Tensor): One preprocessed image, 1 x C x H x W.

    Returns:
        Space: The choices, and the shapes of the model.
    """
    prepared = copy_network(model)
    prepared.prepare(example)
    target = model.target
    kinds = {
        name: kind_of(prepared.architecture.get_submodule(name))
        for name in prepared.bits
    }
    if target is not None:
        model.scheme, model.target = prepared.scheme, None
        settings = settings.on_target(target, kinds)
    ends = {b: uniform(model, b, settings.kinds) for b in settings.ends}
    for end in ends.values():
        end.prepare(example)
    choices = find_choices(ends, settings.kinds)
    if target is not None:
        settings = settings.limited(target, choices, kinds)
    shape = model_shape(prepared.architecture, example)
    return Space(settings, prepared, choices, shape)


def sensitivities(
    model: BRECQ,
    settings: MixedPrecision,
    images: CachedBatches,
    space: Space,
    file: SensitivityFile,
    seed: int,
    logger: logging.Logger,
) -> None:
    """Measure the sensitivities that are not in a file yet.

    First a uniform model is reconstructed for each number of bits, then the
    units are measured. After an interruption, both continue after the last
    finished unit.

    Args:
        model (BRECQ): A model with float weights. It is not changed.
        settings (MixedPrecision): The bits and the error to measure.
        images (CachedBatches): Preprocessed calibration images.
        space (Space): The choices in the model.
        file (SensitivityFile): The file of the sensitivities.
        seed (int): Seed of all random draws.
        logger (logging.Logger): Logger of a line for each unit.
    """
    choices = space.choices
    units = list(dict.fromkeys(choice.unit for choice in choices))
    file.check(choices, settings.bits)
    if set(units) <= set(file.finished):
        file.remove_progress(settings.bits)
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
            space.model.units,
            models,
            choices,
            images.first(settings.num_images),
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
    file.remove_progress(settings.bits)


def uniform_models(
    model: BRECQ,
    settings: MixedPrecision,
    images: CachedBatches,
    file: SensitivityFile,
    seed: int,
    logger: logging.Logger,
) -> tuple[dict[int, BRECQ], nn.Module]:
    """Reconstruct a uniform model for each number of bits.

    In a uniform model the layers that have a choice all have the same bits.

    Args:
        model (BRECQ): As for :func:`sensitivities`, like all others.
        settings (MixedPrecision): The bits, and the reconstructor.
        images (CachedBatches): Preprocessed calibration images.
        file (SensitivityFile): The file beside which units are saved.
        seed (int): Seed of all random draws.
        logger (logging.Logger): Logger of a line for each unit.

    Returns:
        tuple[dict[int, BRECQ], nn.Module]: Frozen models by their bits, and
        the folded float network.
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
            teacher,
            images,
            seed,
            reconstructor,
            file.progress(bits),
            logger,
        )
    return models, teacher


def _reconstruct(
    model: BRECQ,
    teacher: nn.Module,
    images: CachedBatches,
    seed: int,
    reconstructor: OnFloatInputs,
    progress: Progress,
    logger: logging.Logger,
) -> None:
    """Reconstruct the units that no earlier run has finished."""
    modules = {unit.name: unit.module for unit in model.units}
    done = progress.units(modules.__getitem__)
    if set(done) == set(modules):
        for name, state in done.items():
            modules[name].load_state_dict(state)
        return
    with UnitProgress(len(modules), logger) as show:
        for report in progress.reports:
            show(report)
        reconstructor.autocast.resume(progress.types)
        for report in model.reconstruct(
            teacher, images, seed, reconstructor, done=done
        ):
            progress.add_unit(report, modules[report.name])
            show(report)
