"""Check that a network gives the same output for the same images.

Units are reconstructed from what one pass gives for each image. A network
that draws random numbers, counts its calls, mixes the images of a batch, or
calls other modules from pass to pass would silently spoil the result. So
this is checked before anything is done.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..functional import preserve_random_state, tensors
from .check import warn
from .compare import TOLERANCE, differences
from .record import Recording, watched
from .samples import Inputs, images_of, map_images, run_float

#: Sum and norm of a tensor's elements, to tell whether two tensors are equal.
Digest = tuple[float, float]


class _CallDigest(NamedTuple):
    """One call of a module in a pass.

    Attributes:
        name (str): The module's name.
        inputs (tuple[Digest]): Digests of the tensors among its arguments.
        outputs (tuple[Digest]): Digests of the tensors that it returned.
        random (bool): Whether random numbers were drawn in the call.
    """

    name: str
    inputs: tuple[Digest, ...]
    outputs: tuple[Digest, ...]
    random: bool


class _Pass(NamedTuple):
    """One pass: the network's outputs, and its calls as they ended."""

    outputs: list[Tensor]
    calls: list[_CallDigest]


@torch.no_grad()
def check_behavior(
    model: nn.Module, inputs: Inputs, recording: Recording
) -> None:
    """Check that a network does the same in each pass.

    Two images pass the network twice, the second time in reverse order.
    Random numbers are drawn from a copy of the caller's random state, and
    buffers are restored.

    A warning names outputs that differ or that depend on the other images
    of a batch, buffers that change, and a network that writes to its input.

    Args:
        model (nn.Module): The network, in evaluation mode.
        inputs (Tensor | Samples): Preprocessed images, N x C x H x W.
        recording (Recording): A recorded pass of them.

    Raises:
        ValueError: If modules stay in training mode, if the modules that are
            called change from pass to pass, or if the network gives NaN.
    """
    _check_modes(model, recording)
    pair = _two_images(inputs)
    buffers = {name: (x, x.clone()) for name, x in model.named_buffers()}
    original = map_images(Tensor.clone, pair)
    try:
        with preserve_random_state(inputs.device):
            first = _run(model, pair)
            if not torch.equal(images_of(pair), images_of(original)):
                warn(
                    'The forward pass writes to the images that it is given: '
                    'copies are used here, but other callers find their '
                    'images changed'
                )
            _check_finite(model, first)
            second = _run(model, original[[1, 0]])
            _check_same_calls(model, recording, first, second)
            if any(call.random for call in first.calls) or not _same_outputs(
                first.outputs, second.outputs, swapped=True
            ):
                _warn_of_difference(model, original, first)
    finally:
        _restore_buffers(model, buffers)


def _check_modes(model: nn.Module, recording: Recording) -> None:
    """Refuse modules in training mode, and warn of batch statistics."""
    names = {call.module: call.name for call in recording.calls}
    training = [name for m, name in names.items() if m.training]
    if training:
        raise ValueError(
            f'{_first_names(training)} stays in training mode after '
            '`.eval()`: let its `train` do what that of torch.nn.Module does'
        )
    for module, name in names.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.running_mean is None
        ):
            warn(
                f'{name} has no running statistics and normalizes each batch '
                'by its own: the output for an image depends on the other '
                'images of the batch, so results hold for batches of the '
                'same kind'
            )


def _two_images(inputs: Inputs) -> Inputs:
    """Return the first two images, or the only one and its mirror image."""
    if len(inputs) > 1:
        return map_images(Tensor.clone, inputs[:2])
    return map_images(_second_mirrored, inputs[[0, 0]])


def _second_mirrored(pair: Tensor) -> Tensor:
    first, other = pair.split(1)
    return torch.cat([first, other.flip(-1) if pair.dim() > 1 else other])


def _run(model: nn.Module, images: Inputs) -> _Pass:
    """Run the network and return its outputs and the digests of its calls."""
    calls: list[_CallDigest] = []
    names = {module: name for name, module in model.named_modules()}
    begun: list[tuple[tuple[Digest, ...], Tensor]] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        begun.append((_digests((args, kwargs)), torch.get_rng_state()))

    def leave(
        module: nn.Module, args: tuple, kwargs: dict, out: object
    ) -> None:
        inputs, state = begun.pop()
        random = not torch.equal(torch.get_rng_state(), state)
        calls.append(_CallDigest(names[module], inputs, _digests(out), random))

    with watched(names, enter, leave):
        outputs = tensors(run_float(model, images))
    return _Pass([x.detach().clone() for x in outputs], calls)


def _digests(nested: object) -> tuple[Digest, ...]:
    return tuple(
        (float(x.sum()), float(torch.linalg.vector_norm(x)))
        for x in tensors(nested)
        if x.is_floating_point()
    )


def _check_finite(model: nn.Module, run: _Pass) -> None:
    """Refuse a network that gives NaN, and name the first module to do so."""
    if not any(x.isnan().any() for x in run.outputs):
        return
    first = next(
        (
            call.name
            for call in run.calls
            if _has_nan(call.outputs) and not _has_nan(call.inputs)
        ),
        '',
    )
    raise ValueError(
        f'The network gives NaN on the first calibration images, from '
        f'{first or type(model).__name__!r} on: its weights are broken, or '
        'the images are not normalized as the network expects'
    )


def _has_nan(digests: tuple[Digest, ...]) -> bool:
    return any(value != value for pair in digests for value in pair)


def _check_same_calls(
    model: nn.Module, recording: Recording, first: _Pass, second: _Pass
) -> None:
    """Refuse a network whose passes call different modules.

    What is inside a module without weights may differ: it is as good as
    Python between modules, such as the pooling of regions level by level.
    """
    inside = {
        f'{name}.{child}'
        for name, module in model.named_modules()
        if not {**module.state_dict()}
        for child, _ in module.named_modules()
    }
    names = [
        [call.name for call in calls if call.name not in inside]
        for calls in (first.calls, second.calls, recording.calls)
    ]
    recorded = {*names.pop()}
    differ = {*recorded} ^ {*names[0]} or {*names[0]} ^ {*names[1]}
    if differ or names[0] != names[1]:
        raise ValueError(
            'The forward pass calls other modules from one pass to the next '
            f'({_first_names(differ) or "the same in another order"}): a '
            'network cannot be reconstructed unit by unit if the modules '
            'that it calls depend on its images, on chance, or on the number '
            'of its calls'
        )


def _same_outputs(
    first: list[Tensor], second: list[Tensor], swapped: bool = False
) -> bool:
    """Return whether the outputs of two passes are the same.

    Args:
        first (list[Tensor]): Outputs of one pass.
        second (list[Tensor]): Outputs of the other pass.
        swapped (bool): Whether its two images were in reverse order: then
            outputs may be, too.
    """
    if [x.shape for x in first] != [x.shape for x in second]:
        return False
    return all(
        _close(x, y)
        or (swapped and x.dim() and not len(x) % 2 and _close(x, _swap(y)))
        for x, y in zip(first, second)
    )


def _swap(x: Tensor) -> Tensor:
    """Return the output with its first and second half exchanged."""
    return x.unflatten(0, (2, -1)).flip(0).flatten(0, 1)


def _close(x: Tensor, y: Tensor) -> bool:
    return all(d <= TOLERANCE for d in differences(x, y))


def _warn_of_difference(
    model: nn.Module, images: Inputs, first: _Pass
) -> None:
    """Run the same images again and warn of the reason for a difference."""
    again = _run(model, map_images(Tensor.clone, images))
    random = next(
        (
            a.name
            for a, b in zip(first.calls, again.calls)
            if a.random or (a.inputs == b.inputs and a.outputs != b.outputs)
        ),
        None,
    )
    if random is None and _same_outputs(first.outputs, again.outputs):
        warn(
            "The network's output for an image depends on the images beside "
            'it, or on their order: what is learned from batches of '
            'calibration images need not hold for other batches'
        )
        return
    warn(
        f'{random or type(model).__name__} gives something else for the same '
        'input in each pass, such as dropout that never stops, and what is '
        'learned from it is unreliable: turn this off in evaluation mode'
    )


def _restore_buffers(
    model: nn.Module, buffers: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """Restore the buffers that the passes changed, and warn of them."""
    changed = []
    now = dict(model.named_buffers())
    for name, (buffer, content) in buffers.items():
        if now.get(name) is buffer and _same_bits(buffer, content):
            continue
        changed.append(name)
        buffer.copy_(content)
        parent, _, child = name.rpartition('.')
        model.get_submodule(parent)._buffers[child] = buffer
    if changed:
        warn(
            f'{_first_names(changed)} changes in each forward pass, in '
            "evaluation mode too: the network's output should not depend on "
            'the number of its calls'
        )


def _same_bits(x: Tensor, y: Tensor) -> bool:
    """Return whether two tensors are equal, NaN being equal to NaN."""
    return (
        torch.equal(x, y)
        or torch.equal(x.isnan(), y.isnan())
        and (torch.equal(x.nan_to_num(), y.nan_to_num()))
    )


def _first_names(names: Collection[str]) -> str:
    """Return the first five names in a sentence."""
    more = ' ...' if len(names) > 5 else ''
    return ', '.join(map(repr, sorted(names)[:5])) + more
