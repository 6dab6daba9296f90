"""A network has to say the same whenever it sees the same images.

Units are reconstructed from what each image gives in one pass. Whatever draws
numbers, counts its calls, looks at other images of a batch or goes another
way spoils that without a word, so it is looked for before anything is done.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..functional import preserve_random_state, tensors
from .check import warn
from .compare import TOLERANCE, differences
from .record import Recording, run_float, watched

#: A number of a tensor's content: sums of its elements, and their squares.
Digest = tuple[float, float]


class _Called(NamedTuple):
    """One call in a pass: the module's name, what it took and gave, and
    whether random numbers were drawn in it.
    """

    name: str
    taken: tuple[Digest, ...]
    given: tuple[Digest, ...]
    drew: bool


class _Pass(NamedTuple):
    """One pass: what the network gave, and its calls as they ended."""

    outputs: list[Tensor]
    calls: list[_Called]


@torch.no_grad()
def check_behavior(
    model: nn.Module, inputs: Tensor, recording: Recording
) -> None:
    """Look for what makes a network say one thing now and another then.

    Two more passes, of two images each, the second in the other order. What
    a network draws comes from a copy of the caller's random state, and
    buffers are put back.

    Args:
        model (nn.Module): In evaluation mode.
        inputs (Tensor): N x ... preprocessed inputs.
        recording (Recording): A recorded pass of them.

    Raises:
        ValueError: If modules stay in training mode, or others are called
            from pass to pass, or the network gives NaN. If outputs differ,
            or depend on the other images of a batch, or a buffer changes, or
            the images are written to, that is told in a warning.
    """
    _check_modes(model, recording)
    pair = _pair(inputs)
    buffers = {name: (x, x.clone()) for name, x in model.named_buffers()}
    kept = pair.clone()
    try:
        with preserve_random_state(inputs.device):
            first = _run(model, pair)
            if not torch.equal(pair, kept):
                warn(
                    'The forward pass writes to the images that it is given: '
                    'it gets copies of them here, and changes those of whoever'
                    ' calls it elsewhere'
                )
            _check_finite(model, first)
            second = _run(model, kept.flip(0))
            _check_way(recording, first, second)
            if any(call.drew for call in first.calls) or not _alike(
                first.outputs, second.outputs, swapped=True
            ):
                _tell_difference(model, kept, first)
    finally:
        _put_back(model, buffers)


def _check_modes(model: nn.Module, recording: Recording) -> None:
    """Refuse what :meth:`eval` does not reach, warn of what it cannot help."""
    names = {call.module: call.name for call in recording.calls}
    training = [name for m, name in names.items() if m.training]
    if training:
        raise ValueError(
            f'{_listed(training)} stays in training mode after `.eval()`: '
            'let its `train` do what that of torch.nn.Module does'
        )
    for module, name in names.items():
        statistics = getattr(module, 'running_mean', module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            statistics is None
        ):
            warn(
                f'{name} has no running statistics and normalizes each batch '
                'by its own: what an image gives depends on the images '
                'beside it, so results hold for batches of the same kind'
            )


def _pair(inputs: Tensor) -> Tensor:
    """Two images that differ; the second one is made if there is one."""
    if len(inputs) > 1:
        return inputs[:2].clone()
    other = inputs.flip(-1) if inputs.dim() > 1 else inputs
    return torch.cat([inputs, other])


def _run(model: nn.Module, images: Tensor) -> _Pass:
    calls: list[_Called] = []
    names = {module: name for name, module in model.named_modules()}
    begun: list[tuple[tuple[Digest, ...], Tensor]] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        begun.append((_digests((args, kwargs)), torch.get_rng_state()))

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        taken, chance = begun.pop()
        drew = not torch.equal(torch.get_rng_state(), chance)
        calls.append(_Called(names[module], taken, _digests(out), drew))

    with watched(names, enter, leave):
        outputs = tensors(run_float(model, images))
    return _Pass([x.detach().clone() for x in outputs], calls)


def _digests(nested: Any) -> tuple[Digest, ...]:
    return tuple(
        (float(x.sum()), float(torch.linalg.vector_norm(x)))
        for x in tensors(nested)
        if x.is_floating_point()
    )


def _check_finite(model: nn.Module, run: _Pass) -> None:
    if not any(x.isnan().any() for x in run.outputs):
        return
    first = next(
        (
            call.name
            for call in run.calls
            if _has_nan(call.given) and not _has_nan(call.taken)
        ),
        '',
    )
    raise ValueError(
        f'The network gives NaN on the first calibration images, from '
        f'{first or type(model).__name__!r} on: its weights are broken, or '
        'the images are not normalized as it wants them'
    )


def _has_nan(digests: tuple[Digest, ...]) -> bool:
    return any(value != value for pair in digests for value in pair)


def _check_way(recording: Recording, first: _Pass, second: _Pass) -> None:
    """Refuse a network that calls other modules on other images."""
    ways = [[call.name for call in run.calls] for run in (first, second)]
    recorded = {call.name for call in recording.calls}
    differ = {*recorded} ^ {*ways[0]} or {*ways[0]} ^ {*ways[1]}
    if differ or ways[0] != ways[1]:
        raise ValueError(
            'The forward pass calls other modules from one pass to the next '
            f'({_listed(differ) or "the same in another order"}): a network '
            'whose way depends on its images, on chance, or on how often it '
            'was called cannot be reconstructed unit by unit'
        )


def _alike(
    first: list[Tensor], second: list[Tensor], swapped: bool = False
) -> bool:
    """Whether two passes say the same; of images in the other order, too."""
    if [x.shape for x in first] != [x.shape for x in second]:
        return False
    return all(
        _near(x, y)
        or (swapped and x.dim() and not len(x) % 2 and _near(x, _swap(y)))
        for x, y in zip(first, second)
    )


def _swap(x: Tensor) -> Tensor:
    return x.unflatten(0, (2, -1)).flip(0).flatten(0, 1)


def _near(x: Tensor, y: Tensor) -> bool:
    return all(d <= TOLERANCE for d in differences(x, y))


def _tell_difference(model: nn.Module, images: Tensor, first: _Pass) -> None:
    """Find out why outputs differ, by the same images once more."""
    again = _run(model, images.clone())
    random = next(
        (
            a.name
            for a, b in zip(first.calls, again.calls)
            if a.drew or (a.taken == b.taken and a.given != b.given)
        ),
        None,
    )
    if random is None and _alike(first.outputs, again.outputs):
        warn(
            'What the network gives for an image depends on the images '
            'beside it, or on their order: what is learned from batches of '
            'calibration images need not hold for others'
        )
        return
    warn(
        f'{random or type(model).__name__} gives something else for the same '
        'input in each pass, such as dropout that never stops: what is '
        'learned from it is spoiled by chance. Let it be still in evaluation '
        'mode'
    )


def _put_back(
    model: nn.Module, buffers: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """Undo what the passes did to buffers, and tell which those were."""
    changed = []
    now = dict(model.named_buffers())
    for name, (buffer, content) in buffers.items():
        same = now.get(name) is buffer
        if same and _same_bits(buffer, content):
            continue
        changed.append(name)
        buffer.copy_(content)
        parent, _, child = name.rpartition('.')
        model.get_submodule(parent)._buffers[child] = buffer
    if changed:
        warn(
            f'{_listed(changed)} changes in each forward pass, in evaluation '
            'mode too: what the network says should not depend on how often '
            'it was called'
        )


def _same_bits(x: Tensor, y: Tensor) -> bool:
    return (
        torch.equal(x, y)
        or torch.equal(x.isnan(), y.isnan())
        and (torch.equal(x.nan_to_num(), y.nan_to_num()))
    )


def _listed(names: Any) -> str:
    """Some names, as many as one reads."""
    some = sorted(names)[:5]
    return ', '.join(map(repr, some)) + ' ...' * (len(names) > 5)
