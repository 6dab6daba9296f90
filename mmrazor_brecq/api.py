"""Quantization in a few lines, for notebooks and scripts.

model, report = mmrazor_brecq.quantize(network, images)
mmrazor_brecq.save(model, 'quantized.pth')
model = mmrazor_brecq.load(network, 'quantized.pth')
mmrazor_brecq.export_onnx(model, images, 'quantized.onnx')
model = mmrazor_brecq.finetune(model, loader, loss=F.cross_entropy)
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional, Union

import torch
from mmengine.logging import MMLogger
from mmengine.registry import Registry
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .activations import (
    MAX_ELEMENTS_FORWARD,
    CachedBatches,
    images_per_pass,
    with_samples,
)
from .algorithms import BRECQ
from .analysis import describe, divergence
from .checkpoint import (
    build_quantized,
    check_quantized,
    load_quantized,
    save_quantized,
)
from .config.load import read_config
from .config.recipe import known_parts, read_base, read_part
from .engine.batches import gather_images
from .engine.calibration import check_count
from .engine.deploy import Request, write
from .engine.fine_tuning import FineTuning, Loss, folded, train
from .engine.launch import build_model
from .engine.max_drop import MaxDrop
from .engine.memory import DEFAULT_MEMORY, Memory, activation_store
from .engine.outliers import leave_out
from .engine.quantize_within import Evaluate, quantize_within
from .engine.training import WatchingRunner
from .engine.unit_run import prepare_on
from .functional import in_grad_mode, tensors, to_normal_tensor
from .graph import (
    ImageBatches,
    Images,
    Network,
    Override,
    PartitionConfig,
    check_batch,
    copy_network,
    map_images,
    unwrap,
)
from .reconstruction import Reconstructor
from .registry import TASK_UTILS
from .report import ShownReport, UnitProgress, weight_bytes
from .targets import TargetConfig
from .validation import (
    Amount,
    Batch,
    Bits,
    Config,
    Count,
    KeyPath,
    Positive,
    Seed,
    validated,
)

#: A model that can be saved and exported.
Quantized = Annotated[
    nn.Module,
    Field(description='a quantized BRECQ, such as quantize() or load() gives'),
]
#: A path, not an empty one.
FileName = Union[Annotated[str, Field(min_length=1)], os.PathLike]


@dataclass(frozen=True, eq=False)
class _Schedule(Config):
    """Mark of an argument that takes a schedule or a reconstructor."""

    def validate(self, value: Any, key_path: KeyPath) -> Any:
        """Validate a config. The name of a schedule becomes one."""
        if isinstance(value, str) and value in known_parts('schedule'):
            value = read_part('schedule', value, key_path.path)
        return super().validate(value, key_path)

    def _names(self, registry: Registry) -> list[str]:
        return [*known_parts('schedule'), *super()._names(registry)]


#: A schedule by its name, or the config of a reconstructor.
ScheduleConfig = Annotated[dict, _Schedule(Reconstructor, TASK_UTILS)]


@in_grad_mode
@torch.random.fork_rng(devices=[])  # Leaves the caller's random state.
@validated
def quantize(
    model: Network,
    images: ImageBatches,
    weight_bits: Bits = 4,
    activation_bits: Optional[Bits] = 4,
    bit_overrides: Optional[dict[str, Override]] = None,
    reconstructor: Optional[ScheduleConfig] = None,
    partition: Optional[PartitionConfig] = None,
    batch_size: Count = 64,
    seed: Seed = 0,
    memory: Memory = DEFAULT_MEMORY,
    symmetric: Optional[bool] = None,
    quantize_shortcuts: bool = True,
    num_images: Count = 1024,
    target: Optional[TargetConfig] = None,
    max_drop: Optional[Amount] = None,
    evaluate: Optional[Evaluate] = None,
    up_to: Literal[8, 'float'] = 8,
) -> tuple[BRECQ, dict[str, Any]]:
    """Quantize a trained network.

    The first and the last layer get 8 bits unless ``bit_overrides`` says
    otherwise. A tenth of the images only validates.

    Args:
        model (nn.Module): A trained network; it is not changed.
        images (Tensor | iterable): N x C x H x W calibration images,
            preprocessed as the network expects them; or batches of them,
            such as a data loader gives. The first floating-point tensor of
            a batch has the images, labels are ignored. A network whose
            ``forward`` needs several arguments takes tuples or dicts of
            tensors, and one with an embedding integers.
        weight_bits (int): Bits of weights, 2 to 8. Weights of 8 bits are
            symmetric, as runtimes expect them.
        activation_bits (int, optional): Bits of activations, 2 to 8; None
            leaves them in float.
        bit_overrides (dict, optional): Bit widths by layer name or pattern.
        reconstructor (str | dict, optional): Name of a schedule, ``'fast'``,
            ``'default'`` or ``'best'``, or config of a reconstructor, such as
            ``dict(type='BlockReconstructor', iterations=200)``.
        partition (dict, optional): Config of the partition into units.
        batch_size (int): Images in a forward pass, fewer where images are
            large.
        seed (int): The same seed gives the same weights on the same
            machine.
        memory (str | float, optional): Memory for the activations of all
            images: a size such as ``'1GiB'``, a fraction of the free memory,
            ``'auto'`` for half of it but at most 1.5 GiB, or None for no
            limit. Activations beyond it are cached in temporary files.
        symmetric (bool, optional): Whether the zero points of weights and
            activations are 0, as TensorRT requires; by default only those
            of weights of 8 bits are.
        quantize_shortcuts (bool): Whether the shortcuts of blocks carry
            quantized tensors too, see :class:`QuantizationScheme`.
        num_images (int): Images to take from batches, at most. Of a tensor
            all are used.
        target (str | dict, optional): The device that it is for:
            ``onnxruntime``, ``openvino``, ``tensorrt``, ``example-npu``, a
            registered name, or the path of a YAML file. What the device
            cannot do is refused, or adapted where there is one choice.
        max_drop (float, optional): How much less ``evaluate`` may give for
            the quantized network than for the float one. If it is more, bits
            are given back where they buy most, in up to three attempts.
        evaluate (callable, optional): Takes a network, and returns how good
            it is, such as an accuracy in per cent; larger is better.
        up_to (int | str): The most bits that a layer gets back: 8, or
            ``'float'``.

    Returns:
        tuple[BRECQ, dict]: The quantized network, called like ``model``,
        and its report with ``units``, ``layers`` (how weights and inputs
        lie on their grids), ``divergence`` (of the output from the float
        one on held-out images, in nats), ``left_out`` (images far outside
        the others, which were not used), ``max_drop`` (the path to it, if
        there is one), ``account`` (how many layers are
        quantized, and what stays in float and why), ``weight_bytes`` and
        ``seconds``. A notebook shows it as a page, and
        ``mmrazor_brecq.report.write(report, 'report.html')`` writes that.

    Raises:
        ValueError: If there are too few images, or one is not finite, or
            they are a single one, or the network is not of float32, or
            ``memory`` is no size.

    Example:
        >>> model, report = mmrazor_brecq.quantize(resnet, images)
        >>> logits = model(images)
    """
    start = time.perf_counter()
    model = unwrap(model)
    if isinstance(model, BRECQ):
        raise ValueError('The model is quantized already: give the float one')
    if (max_drop is None) != (evaluate is None):
        raise ValueError(
            f'max_drop={max_drop} and evaluate={evaluate!r:.80}, expected '
            'both or neither: `evaluate` measures what may drop'
        )
    weight: dict[str, Any] = dict(bits=weight_bits)
    if symmetric is not None or target is None or weight_bits == 8:
        weight.update(
            symmetric=weight_bits == 8 if symmetric is None else symmetric
        )
    activation: Optional[dict[str, Any]] = None
    if activation_bits is not None:
        activation = dict(bits=activation_bits)
        if symmetric:
            activation.update(symmetric=True)
    quantization: dict[str, Any] = dict(
        weight=weight,
        activation=activation,
        bit_overrides=bit_overrides or {},
    )
    if not quantize_shortcuts:
        quantization.update(quantize_shortcuts=False)
    brecq = BRECQ(
        copy_network(model),
        quantization=quantization,
        partition=partition,
        target=target,
        reconstructor=reconstructor
        or read_part('schedule', 'default', 'reconstructor'),
    )
    images = gather_images(model, images, num_images)
    check_count(
        len(images), brecq.reconstructor.batch_size, f'{len(images)} images'
    )
    # Two batches at least: what is the same in both is of no image.
    batch_size = min(batch_size, (len(images) + 1) // 2)
    batch_size = images_per_pass(
        sum(x[0].numel() for x in tensors(images)),
        max_images=batch_size,
        max_elements=MAX_ELEMENTS_FORWARD,
    )
    if not all(
        x.isfinite().all()
        for part in images.split(batch_size)
        for x in tensors(part)
    ):
        raise ValueError('The images hold NaN or infinity')
    brecq.eval()
    parameter = next(brecq.parameters(), torch.empty(0))

    def placed(x: Tensor) -> Tensor:
        kind = parameter.dtype if x.is_floating_point() else x.dtype
        return to_normal_tensor(x).to(parameter.device, kind)

    batches = map_images(placed, images).split(batch_size)
    store = activation_store(memory, parameter.device, tempfile.gettempdir())
    rows = CachedBatches(batches, [len(batch) for batch in batches], store)
    left_out = leave_out(rows)
    rows = with_samples(brecq.architecture, rows)
    logger = MMLogger.get_current_instance()
    path: dict[str, Any] = {}
    if evaluate is None or max_drop is None:
        teacher, _ = prepare_on(brecq, rows)
        reports = []
        with UnitProgress(brecq.reports, logger) as show:
            for report in brecq.reconstruct(teacher, rows, seed):
                reports.append(report)
                show(report)
    else:
        kept, path['max_drop'] = quantize_within(
            MaxDrop(max_drop, up_to), evaluate, model, brecq, rows, seed
        )
        brecq, teacher = kept.model, kept.teacher
        reports = kept.progress.reports
    account = brecq.account.to_dict()
    found = describe(brecq, teacher, rows, reports)
    nats = divergence(brecq, teacher, rows)
    logger.info(account['summary'])
    return brecq, ShownReport(
        **found,
        **path,
        divergence=dict(quantized=nats),
        left_out=left_out,
        account=account,
        weight_bytes=weight_bytes(brecq),
        seconds=time.perf_counter() - start,
    )


@in_grad_mode
@torch.random.fork_rng(devices=[])  # Leaves the caller's random state.
@validated
def finetune(
    model: Quantized,
    loader: DataLoader,
    loss: Optional[Loss] = None,
    teacher: Optional[Network] = None,
    epochs: Count = 1,
    lr: Positive = 1e-3,
    seed: Seed = 0,
) -> BRECQ:
    """Train weights and scales of a quantized network further.

    Rounding passes gradients straight through, and scales learn (LSQ, Esser
    et al., ICLR 2020), with Adam and a rate that falls along a cosine.

    Args:
        model (BRECQ): What :func:`quantize` or :func:`load` returned; it is
            not changed.
        loader (DataLoader): Batches of images, preprocessed as the network
            expects them, or of images and labels.
        loss (callable, optional): Loss of outputs and labels, such as
            ``torch.nn.functional.cross_entropy``. A network of OpenMMLab
            has its own.
        teacher (nn.Module, optional): The float network, whose outputs are
            learned. Then labels count only if ``loss`` is given.
        epochs (int): Number of passes through the images.
        lr (float): Learning rate of the weights, in units of their scale.
        seed (int): Seeds what mmengine's runner draws.

    Returns:
        BRECQ: The network with the integers that were learned. If training
        diverged, that is said, and it has its best state before.

    Raises:
        ValueError: If there are no labels and no teacher.

    Example:
        >>> model = mmrazor_brecq.finetune(
        ...     model, loader, torch.nn.functional.cross_entropy, epochs=4
        ... )
    """
    source: Any = unwrap(model)
    check_quantized(source)
    tuning = FineTuning(
        copy.deepcopy(source),
        teacher=None if teacher is None else folded(source, teacher),
        labels=loss is not None or teacher is None,
        loss=loss,
    )
    options = read_base('fine_tuning')
    options['optim_wrapper']['type'] = 'OptimWrapper'
    options['optim_wrapper']['optimizer']['lr'] = lr
    options['param_scheduler']['T_max'] = epochs
    with tempfile.TemporaryDirectory() as folder:
        runner = WatchingRunner(
            tuning,
            folder,
            loader,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=options['optim_wrapper'],
            param_scheduler=options['param_scheduler'],
            default_hooks=dict(checkpoint=None),
            randomness=dict(seed=seed),
            log_level='WARNING',
            experiment_name=uuid.uuid4().hex,
        )
        return train(runner).quantized.eval()


@in_grad_mode
@validated
def save(model: Quantized, path: FileName) -> None:
    """Write a quantized network to a file, its weights as packed integers.

    Args:
        model (BRECQ): What :func:`quantize` returned.
        path (str): The file; a safetensors file if it ends in
            ``.safetensors``, else one of torch. An existing file is
            overwritten.

    Raises:
        ImportError: If safetensors is asked for and not installed.

    Example:
        >>> mmrazor_brecq.save(model, 'resnet18_w4a4.pth')
    """
    save_quantized(unwrap(model), {}, os.fspath(path))


@in_grad_mode
@validated
def load(network: Union[FileName, Network], path: FileName) -> BRECQ:
    """Read a quantized network.

    Args:
        network (str | nn.Module): The config of its run, or the float
            network that was quantized. Its weights do not matter, and it is
            not changed.
        path (str): A file that :func:`save` or ``tools/ptq.py`` wrote.

    Returns:
        BRECQ: The quantized network in evaluation mode.

    Raises:
        ValueError: If the file is a float checkpoint, of another network,
            or damaged; or if it names a partition or an observer that is
            not registered: import the code that registers yours first.

    Example:
        >>> model = mmrazor_brecq.load(resnet18(), 'resnet18_w4a4.pth')
    """
    path = os.fspath(path)
    if isinstance(network, nn.Module):
        return build_quantized(copy_network(network), path)
    model = build_model(read_config(os.fspath(network)))
    load_quantized(model, path)
    return model


@in_grad_mode
@validated
def export_onnx(
    model: Quantized,
    images: Images,
    path: FileName,
    target: TargetConfig = '',
    pack: bool = False,
    batch: Batch = 'dynamic',
    force: bool = False,
    **requirements: Any,
) -> dict[str, Any]:
    """Write a quantized network as an ONNX file, and prove that it agrees.

    Args:
        model (BRECQ): What :func:`quantize` or :func:`load` returned.
        images (Tensor): N x C x H x W, preprocessed. The first half
            calibrates further scales that the target needs, the second half
            is for the proof.
        path (str): The file, ``.onnx``.
        target (str | dict): As for :func:`quantize`; by default the one that
            the network was quantized for, or ``onnxruntime``.
        pack (bool): Store weights of 4 bits or fewer as INT4 or INT2.
        batch (str | int): ``'dynamic'``, or the number of images.
        force (bool): Overwrite an existing file.
        requirements (dict): Further fields of
            :class:`mmrazor_brecq.engine.deploy.Request`, such as
            ``least_agreement``.

    Returns:
        dict: The content of the JSON file beside it: agreement, layers,
        versions.

    Raises:
        FileExistsError: If the file exists, without ``force``.
        ImportError: If a package is missing.
        ValueError: If the target does not support the network, or the file
            and the network disagree; then nothing is written.

    Example:
        >>> mmrazor_brecq.export_onnx(model, images[:256], 'resnet18.onnx')
    """
    request = Request(
        target=target or None,
        pack=pack,
        batch=batch,
        output=os.fspath(path),
        force=force,
        **requirements,
    )
    check_batch(unwrap(model), images)
    images = to_normal_tensor(images).cpu()
    half = (len(images) + 1) // 2
    if batch == 'dynamic':
        batches = list(images.split(min(half, 64)))
    else:
        size = int(batch)
        batches = list(images[: len(images) // size * size].split(size))
    if len(batches) < 2:
        raise ValueError(
            f'{len(images)} images, expected two batches or more: one to '
            'calibrate on and one for the proof'
        )
    half = (len(batches) + 1) // 2
    calibration, proof = batches[:half], batches[half:]
    return write(
        unwrap(model), calibration, [(x, x) for x in proof], None, request, {}
    )
