"""Compare a rewritten network with the one before, on real inputs.

Whatever changes how a network computes, but not its outputs, is a list of
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
from .samples import Inputs, map_images, run_float

#: Smallest difference, relative to the largest value, that counts as a
#: mistake and not as a rounding error.
TOLERANCE = 1e-3
#: Relative size of the noise that shows how much rounding errors of the
#: inputs change an output.
NOISE = 1e-5

#: The name of the whole network.
NETWORK = ''


class Rewrite:
    """One change to a network that leaves its outputs the same.

    Args:
        name (str): The module at whose output the change is complete: all
            values from there on are the same as before.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def apply(self) -> None:
        """Change the network."""
        raise NotImplementedError

    def undo(self) -> None:
        """Restore the network, to the last bit."""
        raise NotImplementedError


class Reference:
    """The outputs of a network before it is rewritten.

    Args:
        model (nn.Module): The network, in evaluation mode.
        inputs (Tensor | Samples): Preprocessed images, N x C x H x W.
        names (iterable): Names of modules whose outputs are compared,
            besides those of the network.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, names: Iterable[str] = ()
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.names = sorted(names)
        self.outputs = self._outputs()
        # Some outputs change a lot with tiny changes of the input, such as
        # boxes that are sorted by score. Their tolerance is larger.
        noise, _ = self._compare(map_images(_add_noise, inputs))
        self.tolerances = {
            name: [max(TOLERANCE, 10 * x) for x in found]
            for name, found in noise.items()
        }

    def wrong_names(self) -> set[str]:
        """Return the modules whose outputs are others after the rewrite.

        Each output is replaced by the one before the rewrite, so that a
        difference shows only in the module that causes it. If the network
        fails, the set is empty.
        """
        try:
            found, other_calls = self._compare(self.inputs, replace=True)
        except Exception:  # `_apply_halves` finds the rewrite that fails.
            return set()
        return other_calls | {
            name for name in self.names if not self._agrees(name, found)
        }

    def matches(self) -> bool:
        """Return whether the rewritten network still gives its output."""
        try:
            result = self._run(self.inputs, lambda *_: None)
        except Exception:  # Its code may use what the rewrite removed.
            return False
        found = differences(self.outputs[NETWORK], [result])
        return self._agrees(NETWORK, {NETWORK: found})

    def _agrees(self, name: str, found: dict[str, list[float]]) -> bool:
        pairs = zip(found[name], self.tolerances[name])
        return all(difference <= tolerance for difference, tolerance in pairs)

    def _outputs(self) -> dict[str, list[Any]]:
        """Return the outputs of each module, call by call, and the network."""
        found: dict[str, list[Any]] = {name: [] for name in self.names}
        result = self._run(
            self.inputs,
            lambda name, out: found[name].append(
                map_tensors(Tensor.clone, out)
            ),
        )
        return {**found, NETWORK: [result]}

    def _compare(
        self, inputs: Inputs, replace: bool = False
    ) -> tuple[dict[str, list[float]], set[str]]:
        """Run the network and compare outputs with those before the rewrite.

        Args:
            inputs (Tensor | Samples): Preprocessed images, N x C x H x W.
            replace (bool): Whether each module's output is replaced by the
                one before the rewrite.

        Returns:
            tuple: For each name the differences of all tensors, and the
            names of modules whose number of calls changed. Their
            differences are infinite.
        """
        found: dict[str, list[float]] = {name: [] for name in self.names}
        calls = dict.fromkeys(self.names, 0)

        def compare(name: str, out: object) -> object:
            before = self.outputs[name][calls[name] : calls[name] + 1]
            calls[name] += 1
            found[name] += differences(before, [out])
            if not before or not replace:
                return None
            return map_tensors(Tensor.clone, before[0])

        result = self._run(inputs, compare)
        found[NETWORK] = differences(self.outputs[NETWORK], [result])
        other_calls = {
            name
            for name in self.names
            if calls[name] != len(self.outputs[name])
        }
        for name in other_calls:
            found[name] = [math.inf for _ in tensors(self.outputs[name])]
        return found, other_calls

    @torch.no_grad()
    def _run(
        self, inputs: Inputs, on_output: Callable[[str, object], object]
    ) -> object:
        """Run the network and return its output.

        Args:
            inputs (Tensor | Samples): Preprocessed images, N x C x H x W.
            on_output (callable): Gets name and output of each module that is
                compared, and returns another output or None.
        """
        hooks = [
            self.model.get_submodule(name).register_forward_hook(
                lambda module, args, out, name=name: on_output(name, out)
            )
            for name in self.names
        ]
        try:
            with _fixed_seed(inputs.device):
                copied = map_images(Tensor.clone, inputs)
                return map_tensors(Tensor.clone, run_float(self.model, copied))
        finally:
            for hook in hooks:
                hook.remove()


def apply_checked(
    model: nn.Module, rewrites: Sequence[Rewrite], inputs: Inputs
) -> list[Rewrite]:
    """Apply the rewrites that leave a network's outputs the same.

    Args:
        model (nn.Module): The network in evaluation mode; it is rewritten in
            place.
        rewrites (list[Rewrite]): Rewrites, of which none is applied yet.
        inputs (Tensor | Samples): Preprocessed images, N x C x H x W.

    Returns:
        list[Rewrite]: The rewrites that would change outputs. They are not
        applied.
    """
    if not rewrites:
        return []
    reference = Reference(model, inputs, {r.name for r in rewrites})
    for rewrite in rewrites:
        rewrite.apply()
    wrong = reference.wrong_names()
    for rewrite in reversed(rewrites):
        rewrite.undo()
    undone = [r for r in rewrites if r.name in wrong]
    return undone + _apply_halves(
        reference, [r for r in rewrites if r not in undone]
    )


def _apply_halves(
    reference: Reference, rewrites: Sequence[Rewrite]
) -> list[Rewrite]:
    """Apply the rewrites that are right and return the others.

    If all of them together are wrong, each half is tried on its own.
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
    first = _apply_halves(reference, rewrites[:half])
    return first + _apply_halves(reference, rewrites[half:])


def differences(expected: object, found: object) -> list[float]:
    """Return how much tensors differ, relative to the largest value.

    Args:
        expected (Any): Tensors in any structure.
        found (Any): Likewise.

    Returns:
        list[float]: One difference for each expected tensor: 0 for tensors
        of integers, infinite where the shape is another one.
    """
    before, after = tensors(expected), tensors(found)
    if len(before) != len(after):
        return [math.inf for _ in before]
    return [_difference(x, y) for x, y in zip(before, after)]


def _difference(x: Tensor, y: Tensor) -> float:
    if x.shape != y.shape:
        return math.inf
    if not x.is_floating_point() or torch.equal(x, y):
        return 0.0
    x, y = x.nan_to_num(), y.nan_to_num()
    return float((x - y).abs().max() / x.abs().max().clamp(min=1e-30))


def relative_difference(
    model: nn.Module, other: nn.Module, inputs: Inputs
) -> float:
    """Return the largest difference of two networks' outputs.

    It is relative to the largest output of the first network.
    """
    with torch.no_grad():
        outputs = run_float(model, inputs), run_float(other, inputs)
    return max(differences(*outputs), default=0.0)


@contextmanager
def _fixed_seed(device: torch.device) -> Iterator[None]:
    """Let a network draw the same random numbers in each pass."""
    with preserve_random_state(device):
        torch.manual_seed(0)
        yield


def _add_noise(inputs: Tensor) -> Tensor:
    if not inputs.is_floating_point():
        return inputs
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(inputs.shape, generator=generator).to(inputs)
    return inputs + NOISE * inputs.abs().max() * noise
