"""A rewritten network is held against the one before, on real inputs.

Whatever changes how a network computes, but not what, is a list of
:class:`Rewrite`, and goes through :func:`apply_checked`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable

import torch
from torch import Tensor, nn

from ..functional import map_tensors, preserve_random_state, tensors
from .record import run_float

#: Least difference, relative to the largest value, that tells a mistake
#: from rounding errors; and how far inputs are shaken to see what rounding
#: errors make of an output.
TOLERANCE, SHAKEN = 1e-3, 1e-5

#: The name of the whole network.
NETWORK = ''


class Rewrite:
    """One change to a network that leaves its outputs as they were.

    Args:
        name (str): The module at which the change is over: from its output
            on, all values are what they were.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def apply(self) -> None:
        """Change the network."""
        raise NotImplementedError

    def undo(self) -> None:
        """Put back what was there, to the last bit."""
        raise NotImplementedError


class Reference:
    """What a network gives before it is rewritten.

    Args:
        model (nn.Module): In evaluation mode. It is rewritten in place.
        inputs (Tensor): N x ... preprocessed inputs.
        places (list[str]): Modules whose outputs are kept, besides those of
            the network.
    """

    def __init__(
        self, model: nn.Module, inputs: Tensor, places: Iterable[str] = ()
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.places = sorted(places)
        self.outputs = self._outputs()
        shaken, _ = self._compare(_shake(inputs))
        # Where a network takes what is near for something else, such as
        # boxes that it sorts, a difference tells of no mistake.
        self.tolerances = {
            name: [max(TOLERANCE, 10 * noise) for noise in found]
            for name, found in shaken.items()
        }

    def wrong_places(self) -> set[str]:
        """Places where the rewritten network gives something else.

        Each output is replaced by the one before the rewriting, so that a
        difference shows where it is made and nowhere else.
        """
        try:
            found, other = self._compare(self.inputs, replace=True)
        except Exception:  # What broke it shows when the parts are tried.
            return set()
        return other | {n for n in self.places if not self._agrees(n, found)}

    def matches(self) -> bool:
        """Whether the rewritten network runs, and gives the same."""
        try:
            result = self._run(self.inputs, lambda *_: None)
        except Exception:  # Its own code may look at what is not there now.
            return False
        found = differences(self.outputs[NETWORK], [result])
        return self._agrees(NETWORK, {NETWORK: found})

    def _agrees(self, name: str, found: dict[str, list[float]]) -> bool:
        pairs = zip(found[name], self.tolerances[name])
        return all(difference <= most for difference, most in pairs)

    def _outputs(self) -> dict[str, list[Any]]:
        """What the places give in each of their calls, and the network."""
        found: dict[str, list[Any]] = {name: [] for name in self.places}
        result = self._run(
            self.inputs,
            lambda name, out: found[name].append(
                map_tensors(Tensor.clone, out)
            ),
        )
        return {**found, NETWORK: [result]}

    def _compare(
        self, inputs: Tensor, replace: bool = False
    ) -> tuple[dict[str, list[float]], set[str]]:
        """How far outputs are from those that are kept, as they come.

        Args:
            inputs (Tensor): What the network is given.
            replace (bool): Whether each output is replaced by that before.

        Returns:
            tuple: By name the differences of all tensors, and the places
            that are called more or less often; all their differences are
            infinite.
        """
        found: dict[str, list[float]] = {name: [] for name in self.places}
        calls = dict.fromkeys(self.places, 0)

        def look(name: str, out: Any) -> Any:
            before = self.outputs[name][calls[name] : calls[name] + 1]
            calls[name] += 1
            found[name] += differences(before, [out])
            keep = before and replace
            return map_tensors(Tensor.clone, before[0]) if keep else None

        result = self._run(inputs, look)
        found[NETWORK] = differences(self.outputs[NETWORK], [result])
        other = {n for n in self.places if calls[n] != len(self.outputs[n])}
        for name in other:
            found[name] = [math.inf for _ in tensors(self.outputs[name])]
        return found, other

    @torch.no_grad()
    def _run(self, inputs: Tensor, look: Callable[[str, Any], Any]) -> Any:
        """The network's output; ``look`` gets those of the places, and what
        it returns takes their place.
        """
        hooks = [
            self.model.get_submodule(name).register_forward_hook(
                lambda module, args, out, name=name: look(name, out)
            )
            for name in self.places
        ]
        try:
            with _same_draws(inputs.device):
                return map_tensors(
                    Tensor.clone, run_float(self.model, inputs.clone())
                )
        finally:
            for hook in hooks:
                hook.remove()


def apply_checked(
    model: nn.Module, rewrites: Sequence[Rewrite], inputs: Tensor
) -> list[Rewrite]:
    """Apply rewrites, but for those that change what a network gives.

    Args:
        model (nn.Module): In evaluation mode; rewritten in place.
        rewrites (list[Rewrite]): None of them applied yet.
        inputs (Tensor): N x ... preprocessed inputs, real ones.

    Returns:
        list[Rewrite]: Those that are left undone.
    """
    if not rewrites:
        return []
    reference = Reference(model, inputs, {r.name for r in rewrites})
    for rewrite in rewrites:
        rewrite.apply()
    wrong = reference.wrong_places()
    for rewrite in reversed(rewrites):
        rewrite.undo()
    undone = [r for r in rewrites if r.name in wrong]
    return undone + _settle(
        reference, [r for r in rewrites if r not in undone]
    )


def _settle(
    reference: Reference, rewrites: Sequence[Rewrite]
) -> list[Rewrite]:
    """Apply the rewrites that can stay, and give the others.

    Where all of them together are wrong, each half is tried.
    """
    for rewrite in rewrites:
        rewrite.apply()
    if not rewrites or reference.matches():
        return []
    for rewrite in reversed(rewrites):
        rewrite.undo()
    if len(rewrites) == 1:
        return [*rewrites]
    half = len(rewrites) // 2
    first = _settle(reference, rewrites[:half])
    return first + _settle(reference, rewrites[half:])


def differences(expected: Any, found: Any) -> list[float]:
    """How far tensors are from others, relative to the largest value.

    Args:
        expected (Any): Nested tensors.
        found (Any): Likewise.

    Returns:
        list[float]: One for each tensor that is expected: 0 for those of
        whole numbers, and infinite where the form is another one.
    """
    ours, theirs = tensors(expected), tensors(found)
    if len(ours) != len(theirs):
        return [math.inf for _ in ours]
    return [_distance(x, y) for x, y in zip(ours, theirs)]


def _distance(x: Tensor, y: Tensor) -> float:
    if x.shape != y.shape:
        return math.inf
    if not x.is_floating_point() or torch.equal(x, y):
        return 0.0
    x, y = x.nan_to_num(), y.nan_to_num()
    return float((x - y).abs().max() / x.abs().max().clamp(min=1e-30))


def relative_difference(
    model: nn.Module, other: nn.Module, inputs: Tensor
) -> float:
    """Largest difference of two networks' outputs, relative to the largest
    output of the first.
    """
    with torch.no_grad():
        outputs = run_float(model, inputs), run_float(other, inputs)
    return max(differences(*outputs), default=0.0)


@contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """Within it a network that draws numbers draws the same every time."""
    with preserve_random_state(device):
        torch.manual_seed(0)
        yield


def _shake(inputs: Tensor) -> Tensor:
    if not inputs.is_floating_point():
        return inputs
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(inputs.shape, generator=generator).to(inputs)
    return inputs + SHAKEN * inputs.abs().max() * noise
