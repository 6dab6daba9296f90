"""BRECQ: post-training quantization by block reconstruction."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Optional, Union

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS as MMENGINE_MODELS
from pydantic import Field
from torch import Tensor, nn

from ..activations import (
    MAX_ELEMENTS_BACKWARD,
    CachedBatches,
    Stream,
    images_per_pass,
    with_samples,
)
from ..functional import (
    in_grad_mode,
    tensors,
    unpack_extra,
)
from ..graph import (
    Account,
    Arguments,
    Equalize,
    Inputs,
    Network,
    PartitionConfig,
    QuantizationConfig,
    QuantizationScheme,
    Samples,
    Unit,
    check_behavior,
    check_bits,
    check_layers,
    check_overrides,
    copy_network,
    equalized_as,
    example_of,
    fold_batch_norm,
    input_quantizers,
    leave_float,
    narrow,
    prepare,
    rotate,
    rotate_as,
    run_float,
    suit,
    unwrap_parts,
    without_unseen,
)
from ..reconstruction import (
    WHOLE,
    LayerQuantizers,
    Reconstructor,
    ReconstructorConfig,
    UnitData,
    UnitReport,
    equalize,
    far_from_zero,
    widen,
)
from ..registry import MODELS, TASK_UTILS
from ..runtime.allocator import reuse_freed_memory
from ..runtime.attention import no_fast_path
from ..runtime.distributed import process_generator
from ..targets import Description, TargetConfig
from ..validation import KeyPath, validate
from .recorded import keep_form, recorded

#: Buffer that says what a network takes, where it is not images alone.
INPUT_FORM = 'input_form'


@MODELS.register_module()
class BRECQ(BaseModel):
    """A trained network whose weights and activations become integers.

    Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by
    Block Reconstruction", ICLR 2021.

    A new instance computes like the float network. :meth:`prepare` adds
    quantizers to its layers, and :meth:`reconstruct` fits them unit by
    unit. Loading a quantized ``state_dict`` does both.

    Args:
        architecture (dict | nn.Module): The trained network, or its config.
        quantization (dict): Fields of :class:`QuantizationScheme`.
        partition (dict): How the network is cut into units.
        reconstructor (dict): How a unit is reconstructed.
        held_out (float): Fraction of the calibration images that only
            validate, between 0 and 1.
        wide_activations (bool): Whether :meth:`widen` gives 16 bits to the
            few activations whose 8 bits alone spoil the output.
        center_biases (bool): Whether biases make up for the mean error of
            rounded weights, where images are far from zero and it helps.
        equalize_norms (bool): Whether :meth:`equalize` gives the channels of
            norms that only layers read the same ranges.
        rotate (bool): Whether :meth:`rotate_channels` mixes the channels of
            residual streams and of heads, so that none is an outlier.
        data_preprocessor (dict, optional): Passed to the architecture.
        init_cfg (dict, optional): As in mmengine.
        target (str | dict, optional): The device that it is for: a known
            name, such as ``tensorrt``, the path of a YAML file, or fields
            of :class:`mmrazor_brecq.targets.Description`. What the device
            cannot do is refused by :meth:`prepare`, or adapted where there
            is one choice.

    Example:
        >>> model = dict(
        ...     type='mmrazor_brecq.BRECQ',
        ...     architecture=dict(type='mmcls.ImageClassifier', ...),
        ...     quantization=dict(weight=dict(bits=4)),
        ... )
    """

    #: Which layers are quantized, and which are not and why.
    account: Account
    input_shape: Tensor

    def __init__(
        self,
        architecture: Union[dict, Network],
        quantization: Optional[QuantizationConfig] = None,
        partition: Optional[PartitionConfig] = None,
        reconstructor: Optional[ReconstructorConfig] = None,
        held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        wide_activations: bool = True,
        center_biases: bool = True,
        equalize_norms: bool = True,
        rotate: bool = False,
        data_preprocessor: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
        target: Optional[TargetConfig] = None,
    ) -> None:
        if isinstance(architecture, dict):
            if data_preprocessor is not None:
                architecture = dict(
                    dict(data_preprocessor=data_preprocessor), **architecture
                )
            built = MMENGINE_MODELS.build(architecture)
            key = KeyPath('architecture', type(self).__name__)
            architecture = validate(built, Network, key)
        network: Any = architecture
        network = unwrap_parts(network)
        super().__init__(init_cfg=init_cfg)
        if isinstance(network, BaseModel):
            self.data_preprocessor = network.data_preprocessor
        self.architecture: nn.Module = network
        self.scheme = QuantizationScheme(**quantization or {})
        self.target: Optional[Description] = target
        #: Names of the settings that the user gave.
        self.given = frozenset(quantization or {})
        check_overrides(self.scheme, self.architecture)
        self.partition_cfg = partition or dict(type='BlockPartition')
        self.partition = TASK_UTILS.build(self.partition_cfg)
        self.reconstructor = TASK_UTILS.build(
            reconstructor or dict(type='BlockReconstructor')
        )
        self.held_out = held_out
        self.wide_activations = wide_activations
        self.center_biases = center_biases
        self.equalize_norms = equalize_norms
        self.rotate = rotate
        self.units: list[Unit] = []
        #: Whether the network is given data samples beside images.
        self.takes_samples = False
        self.bits: dict[str, Any] = {}
        self._register_load_state_dict_pre_hook(self._before_load)
        self.register_load_state_dict_post_hook(_note_wide_bits)

    @property
    def prepared(self) -> bool:
        """Return whether the layers have quantizers."""
        return bool(self.units)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network.

        Args:
            args (tuple): What the network takes: of mmengine's ``BaseModel``
                ``inputs``, N x ... preprocessed inputs, ``data_samples``, and
                ``mode``, by default ``tensor``.
            kwargs (dict): Likewise.
        """
        with no_fast_path():
            if isinstance(self.architecture, BaseModel):
                if len(args) < 3:
                    kwargs.setdefault('mode', 'tensor')
                return self.architecture(*args, **kwargs)
            # Who calls a BaseModel names what other networks do not have.
            names = inspect.signature(self.architecture.forward).parameters
            if 'inputs' in kwargs and 'inputs' not in names:
                args = kwargs.pop('inputs'), *args
            for name in {'mode', 'data_samples'} - {*names}:
                kwargs.pop(name, None)
            return self.architecture(*args, **kwargs)

    @in_grad_mode
    @no_fast_path()
    def prepare(
        self,
        example: Inputs,
        state: Optional[Mapping[str, Tensor]] = None,
    ) -> nn.Module:
        """Fold batch norms, swap the layers and place the quantizers.

        Args:
            example (Tensor | Samples | Arguments): N x ... preprocessed
                inputs. One forward pass records how the modules are
                connected, others compare the folded network with the
                original. If the network needs data samples and there are
                none, each says that the image fills the tensor.
            state (dict, optional): State of the quantized architecture that
                will be loaded. It then decides what is folded and
                quantized, and the values of the example do not matter.

        Returns:
            nn.Module: The folded float network, a copy.

        Raises:
            RuntimeError: If the model is prepared already.
            ValueError: If the network has nothing to quantize or a weight
                that is not finite, if a weight is computed from something
                that is not constant, or if the network takes another path
                in a second pass.
        """
        if self.prepared:
            raise RuntimeError(
                'The model is quantized already: build it again '
                'from its config and float checkpoint'
            )
        network = self.architecture
        example, recording = recorded(network, example, state)
        scheme = self.scheme
        if state is not None:
            scheme = without_unseen(scheme, recording)
        elif self.target is not None:
            scheme = suit(scheme, self.target, recording, self.given)
            self.scheme = scheme
        leave_float(recording, scheme)
        kept_norms = None if state is None else keep_form(recording, state)
        self.account = check_layers(network, recording)
        if state is None:
            check_behavior(network, example, recording)
        fold_batch_norm(network, recording, kept_norms)
        teacher = copy_network(network).requires_grad_(False)
        if state is not None:
            rotate_as(teacher, example, state)
            for rewrite in equalized_as(teacher, recording, state):
                rewrite.apply()
        units = self.partition(network, recording)
        for unit in units:
            if unit.module in recording.given_samples:
                raise ValueError(
                    f'The unit {unit.name or type(network).__name__!r} is '
                    'given data samples, of which each belongs to one image: '
                    'choose a `partition` with smaller units, such as '
                    'BlockPartition'
                )
        self.takes_samples = isinstance(example, Samples)
        self.bits = prepare(network, recording, units, scheme)
        if state is None and self.target is not None:
            check_bits(network, self.target)
        self.units = units
        shape = torch.tensor(
            example.shape[1:], dtype=torch.int64, device=example.device
        )
        self.register_buffer('input_shape', shape)
        if isinstance(example, Arguments):
            form = example.form().to(example.device)
            self.register_buffer(INPUT_FORM, form)
        self.requires_grad_(False)
        return teacher

    @no_fast_path()
    def rotate_channels(
        self, teacher: nn.Module, images: CachedBatches
    ) -> list[str]:
        """Mix channels by orthogonal matrices.

        What writes to a residual stream, and what reads it, takes the matrix
        into its weights, and so do the layers around the values of each head
        of attention. It comes before :meth:`equalize`; the outputs of both
        networks stay the same.

        Args:
            teacher (nn.Module): What :meth:`prepare` returned; it is changed
                in place, as the model is.
            images (CachedBatches): Preprocessed calibration images.

        Returns:
            list[str]: Names of the modules that read rotated channels.
        """
        if not self.rotate:
            return []
        if self.takes_samples:
            images = with_samples(teacher, images)
        done = rotate(teacher, images.take(torch.arange(1)))
        for rotation in done:
            rotation.on(self.architecture).apply()
        return [name for rotation in done for name in rotation.reads]

    @no_fast_path()
    def equalize(self, teacher: nn.Module, images: CachedBatches) -> list[str]:
        """Give the channels that layers read from norms the same ranges.

        It moves them from the norm into the weights of these layers, before
        scales are chosen; the outputs of both networks stay the same.

        Args:
            teacher (nn.Module): What :meth:`prepare` returned; it is changed
                in place, as the model is.
            images (CachedBatches): Preprocessed calibration images.

        Returns:
            list[str]: Names of the norms.
        """
        if not self.equalize_norms:
            return []
        if self.takes_samples:
            images = with_samples(teacher, images)
        done = equalize(
            teacher, images, lambda name: self._quantizers(teacher, name)
        )
        for rewrite in done:
            Equalize(
                self.architecture,
                rewrite.read,
                rewrite.factor,
                rewrite.offset,
            ).apply()
        return [rewrite.read.name for rewrite in done]

    def _quantizers(
        self, teacher: nn.Module, name: str
    ) -> Optional[LayerQuantizers]:
        """Return new quantizers of a layer, None if its input is float."""
        weight_bits, bits = self.bits[name]
        found = self.scheme.activation_quantizer(bits)
        if found is None:
            return None
        layer = teacher.get_submodule(name)
        return LayerQuantizers(
            self.scheme.weight_quantizer(layer, weight_bits), found
        )

    @no_fast_path()
    def widen(self, images: CachedBatches) -> dict[str, float]:
        """Give 16 bits to the few activations that 8 bits do not resolve.

        Args:
            images (CachedBatches): Preprocessed calibration images.

        Returns:
            dict[str, float]: As :func:`mmrazor_brecq.reconstruction.widen`;
            empty if the model is not to do so.
        """
        if not self.wide_activations:
            return {}
        if self.takes_samples:
            images = with_samples(self.architecture, images)
        kept = narrow(self.architecture, self.target) if self.target else ()
        found = widen(self.architecture, images, kept)
        _note_wide_bits(self)
        for name, error in found.items():
            print_log(
                f'{name}: with 8 bits, this activation alone moves the '
                f"network's output by {error:.0%} of its variance; it has 16 "
                'now (`model.wide_activations=False` keeps 8)',
                'current',
            )
        return found

    @in_grad_mode
    def reconstruct(
        self,
        teacher: nn.Module,
        images: Union[CachedBatches, Sequence[Tensor]],
        seed: int = 0,
        reconstructor: Optional[Reconstructor] = None,
        done: Optional[Mapping[str, dict[str, Tensor]]] = None,
    ) -> Iterator[UnitReport]:
        """Reconstruct unit by unit, in the order of execution.

        Args:
            teacher (nn.Module): What :meth:`prepare` returned.
            images (CachedBatches | list[Tensor]): Preprocessed calibration
                images, batch by batch, with data samples if the network
                needs them; activations are cached in the store
                of ``CachedBatches``. In several processes, those of this
                one.
            seed (int): Seeds a separate generator for each unit, so that a
                run can resume after any unit.
            reconstructor (Reconstructor, optional): Used instead of the
                configured one.
            done (dict, optional): Frozen states of the units that an
                earlier run finished, by name.

        Yields:
            UnitReport: One for each unit that is reconstructed, as soon as
            its weights are integers.
        """
        reconstructor = reconstructor or self.reconstructor
        done = done or {}
        if not isinstance(images, CachedBatches):
            images = CachedBatches(images, [len(batch) for batch in images])
        if self.takes_samples:
            images = with_samples(teacher, images)
        held_out = self.held_out_of(len(images))
        with reuse_freed_memory(), no_fast_path():
            reconstructor.objective.watch(
                teacher,
                [unit for unit in self.units if unit.name not in done],
                images,
                process_generator(seed),
            )
            size = images_per_pass(images.elements, 16, MAX_ELEMENTS_BACKWARD)
            reconstructor.autocast.measure(
                lambda x: tensors(run_float(teacher, x)),
                teacher.parameters(),
                images.take(torch.arange(min(len(images), size))),
            )
            yield from self._reconstruct_units(
                teacher, images, held_out, seed, reconstructor, done
            )
            reconstructor.objective.finish()
            if WHOLE in done:
                self.architecture.load_state_dict(unpack_extra(done[WHOLE]))
            elif reconstructor.refiner is not None:
                yield reconstructor.refiner(
                    self.architecture, teacher, images, held_out, seed
                )

    def _reconstruct_units(
        self,
        teacher: nn.Module,
        images: CachedBatches,
        held_out: int,
        seed: int,
        reconstructor: Reconstructor,
        done: Mapping[str, dict[str, Tensor]],
    ) -> Iterator[UnitReport]:
        """Run student and teacher from unit to unit, side by side."""
        numbers = {unit.name: i for i, unit in enumerate(self.units)}
        centers = self.center_biases and far_from_zero(images)
        teacher_units = [
            replace(unit, module=teacher.get_submodule(unit.name))
            for unit in self.units
        ]
        holder = nn.ModuleDict(dict(teacher=teacher))
        finished: set[str] = set()
        with (
            Stream(self, 'architecture', self.units, images) as student,
            Stream(holder, 'teacher', teacher_units, images) as original,
        ):
            reached, reached_by_teacher = student.advance(), original.advance()
            while reached is not None and reached_by_teacher is not None:
                start = time.perf_counter()
                images.store.release_freed_memory()
                name, inputs = reached
                _, float_inputs = reached_by_teacher
                if not finished:  # So far both networks are the same.
                    inputs = float_inputs
                del reached, reached_by_teacher
                number = numbers[name]
                unit = self.units[number]
                if self.takes_samples and float_inputs.mixes_images:
                    raise ValueError(
                        f'The unit {name!r} is given a tensor whose first '
                        'dimension is not that of the images, so no image '
                        'can be taken out of it: leave its layers in float, '
                        f"`bit_overrides={{'{name}*': None}}`"
                    )
                targets = CachedBatches(
                    original.run(teacher_units[number].module),
                    images.sizes,
                    images.store,
                )
                images.store.release_freed_memory()
                if name in done and name not in finished:
                    unit.module.load_state_dict(unpack_extra(done[name]))
                elif name not in finished:
                    data = UnitData(
                        inputs, float_inputs, targets, held_out, centers
                    )
                    generator = process_generator(
                        seed * len(numbers) + number + 1
                    )
                    report = reconstructor(unit, data, generator)
                    del data
                    report.bits = {n: self.bits[n] for n in unit.layers}
                    report.seconds = time.perf_counter() - start
                    yield report
                finished.add(name)
                del inputs, float_inputs
                reached = student.advance(student.run(unit.module))
                reached_by_teacher = original.advance(targets.split())
        if missed := sorted(set(numbers) - finished):
            raise RuntimeError(
                f'The forward pass never reached the units {missed}'
            )

    def held_out_of(self, images: int) -> int:
        """Return how many of so many images only validate: 1 or more."""
        return max(1, min(round(images * self.held_out), images - 1))

    @property
    def reports(self) -> int:
        """Number of reports that :meth:`reconstruct` will yield."""
        return len(self.units) + (self.reconstructor.refiner is not None)

    def part(self, name: str) -> nn.Module:
        """Return the module that a report of :meth:`reconstruct` describes.

        Args:
            name (str): The report's name.
        """
        if name == WHOLE:
            return self.architecture
        # Not by its name in the network: a stream replaces it there.
        return next(u.module for u in self.units if u.name == name)

    def _before_load(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        """Accept a quantized checkpoint, or one of the architecture alone."""
        if prefix + 'input_shape' in state_dict:
            if not self.prepared:
                shape = state_dict[prefix + 'input_shape']
                device = next(self.parameters()).device
                start = prefix + 'architecture.'
                form = state_dict.get(prefix + INPUT_FORM)
                self.prepare(
                    example_of(shape, form, device),
                    {
                        key.removeprefix(start): value
                        for key, value in state_dict.items()
                        if key.startswith(start)
                    },
                )
        elif not any(
            k.startswith(prefix + 'architecture.') for k in state_dict
        ):
            for key in list(state_dict):
                state_dict[f'{prefix}architecture.{key}'] = state_dict.pop(key)
        state_dict.update(unpack_extra(state_dict))


def _note_wide_bits(model: BRECQ, *args: Any) -> None:
    """Note the bits of activations that a run has widened."""
    for found in input_quantizers(model.architecture):
        bits = found.quantizer.grid.bits
        for layer in found.layers if bits > 8 else ():
            model.bits[layer] = (model.bits[layer][0], bits)
