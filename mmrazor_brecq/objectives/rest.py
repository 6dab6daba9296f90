"""What a float network makes of another output of one of its units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import Nested, map_tensors
from ..graph import Inputs, Unit, run_float
from .gradients import real_outputs
from .last_layers import last_layers
from .stand_in import first_calls_return


class _Pass(NamedTuple):
    """What can be compared of a forward pass.

    Attributes:
        features (list[list[Tensor]]): For each of the last layers the real
            inputs of all its calls.
        outputs (list[Tensor]): The real outputs of the network.
    """

    features: list[list[Tensor]]
    outputs: list[Tensor]

    def compared(self, at_outputs: bool) -> list[Tensor]:
        """Return the outputs, or all features."""
        return self.outputs if at_outputs else sum(self.features, [])


class _View(NamedTuple):
    """How the network is run to see what a unit's output makes of it.

    Attributes:
        at_outputs (bool): Whether outputs are compared, not features.
        unread (list[str]): Names of units that need not run before it.
    """

    at_outputs: bool
    unread: list[str]


class RestOfNetwork:
    """The float network behind each of its units.

    It runs on the images themselves, with the output of one unit given, so
    what goes past that unit is there, too. Units before it do not run if
    nothing behind it reads them.

    Args:
        teacher (nn.Module): The float network, in evaluation mode. Its
            parameters require no gradient.
        units (list[Unit]): Units that a gradient of the outputs reaches.
        images (CachedBatches): All preprocessed images.
    """

    def __init__(
        self, teacher: nn.Module, units: Sequence[Unit], images: CachedBatches
    ) -> None:
        self.teacher = teacher
        self.images = images
        self._views: dict[str, _View] = {}
        #: Features, and outputs, of the float network for all images.
        self._goals: dict[bool, CachedBatches] = {}
        few = [images.take(torch.arange(n) % len(images)) for n in (1, 2)]
        with torch.no_grad():
            outputs = real_outputs(run_float(teacher, few[0]))
            found = [self._first_outputs(units, inputs) for inputs in few]
        #: Outputs of each unit for these images, in the order of execution.
        self._examples = {
            name: CachedBatches([x[name] for x in found], [1, 2])
            for name in found[0]
        }
        before = last_layers(teacher, few[0], len(outputs))
        self.layers = list(
            dict.fromkeys(x for x in before if x and not [*x.children()])
        )
        #: For each output the index of the last layer before it, if any.
        self.layer_of = [
            self.layers.index(x) if x in self.layers else None for x in before
        ]

    def _first_outputs(
        self, units: Sequence[Unit], inputs: Inputs
    ) -> dict[str, Nested]:
        """Return the output of each unit's first call, in their order."""
        found: dict[str, Nested] = {}

        def note(name: str, module: nn.Module, _: Any, out: Nested) -> None:
            if name not in found:
                # A copy, because the rest of the network may write to it.
                found[name] = map_tensors(Tensor.clone, out)

        with ExitStack() as stack:
            for name in [unit.name for unit in units]:
                module = self.teacher.get_submodule(name)
                hook = module.register_forward_hook(partial(note, name))
                stack.callback(hook.remove)
            run_float(self.teacher, inputs)
        return found

    def prepare(self, name: str) -> None:
        """Examine, by one image, what is behind a unit."""
        image = self.images.take(torch.arange(1))
        output = map_tensors(
            lambda x: x.requires_grad_(x.is_floating_point()),
            self._examples[name].take(torch.arange(1)),
        )
        with torch.enable_grad():
            found = self._run(image, {name: output})
        at_outputs = not self._seen_by_features(found)
        if not at_outputs and self._goal(False).mixes_images:
            at_outputs = True
        names = list(self._examples)
        before = names[: names.index(name)]
        if before and not self._are_unread(before, name, found, at_outputs):
            before = []
        self._views[name] = _View(at_outputs, before)

    def _seen_by_features(self, found: _Pass) -> bool:
        """Return whether outputs depend on the unit through features alone.

        Args:
            found (_Pass): A pass in which the unit's output, and what
                depends on it, requires a gradient.
        """
        with torch.no_grad():
            every = self._run(self.images.take(torch.arange(1)), {})
        if [*map(len, found.features)] != [*map(len, every.features)]:
            return False  # A last layer is in the unit itself.
        through = {
            i
            for i, features in enumerate(found.features)
            if any(x.requires_grad for x in features)
        }
        return all(
            i in through
            for i, out in zip(self.layer_of, found.outputs)
            if out.requires_grad
        )

    def _are_unread(
        self, before: Sequence[str], name: str, found: _Pass, at_outputs: bool
    ) -> bool:
        """Return whether a pass is the same with zeros from units before.

        Args:
            before (list[str]): Names of these units.
            name (str): The unit whose output is that of the float network.
            found (_Pass): A pass in which units before it have run.
            at_outputs (bool): What is compared.
        """
        one = torch.arange(1)
        given = {name: self._examples[name].take(one)}
        try:
            with torch.no_grad():
                other = self._run(
                    self.images.take(one), {**self._zeros(before, 1), **given}
                )
        except Exception:  # Zeros are nothing that the network expects.
            return False
        ours, theirs = (x.compared(at_outputs) for x in (found, other))
        return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))

    def _zeros(self, names: Iterable[str], images: int) -> dict[str, Nested]:
        """Return zeros in the form of units' outputs for some images."""
        index = torch.zeros(images, dtype=torch.long)
        return {
            name: map_tensors(
                torch.zeros_like, self._examples[name].take(index)
            )
            for name in names
        }

    def _run(self, inputs: Inputs, given: dict[str, Nested]) -> _Pass:
        """Run the network, the first outputs of some units given by name."""
        features: list[list[Tensor]] = [[] for _ in self.layers]
        with ExitStack() as stack:
            for layer, found in zip(self.layers, features):
                hook = layer.register_forward_pre_hook(
                    lambda module, args, kwargs, found=found: found.extend(
                        real_outputs((args, kwargs))
                    ),
                    with_kwargs=True,
                )
                stack.callback(hook.remove)
            get = self.teacher.get_submodule
            stack.enter_context(
                first_calls_return({get(k): out for k, out in given.items()})
            )
            outputs = real_outputs(run_float(self.teacher, inputs))
        return _Pass(features, outputs)

    def _goal(self, at_outputs: bool) -> CachedBatches:
        """Return features or outputs of the float network, computed once."""
        if at_outputs not in self._goals:
            with torch.no_grad():
                self._goals[at_outputs] = CachedBatches(
                    (
                        self._run(batch, {}).compared(at_outputs)
                        for batch in self.images.split()
                    ),
                    self.images.sizes,
                    self.images.store,
                )
        return self._goals[at_outputs]

    def compares_outputs(self, name: str) -> bool:
        """Return whether a unit's errors are compared at the outputs."""
        return self._views[name].at_outputs

    def __call__(
        self, name: str, output: Nested, index: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what becomes of a unit's output, and what it should be.

        Args:
            name (str): A unit that :meth:`prepare` was called for.
            output (Any): Its output for N images. Gradients come back to it.
            index (Tensor): Indices of the N images.

        Returns:
            tuple[list[Tensor], list[Tensor]]: Features before the last
            layers, or outputs of the network, and those of the float one.
        """
        view = self._views[name]
        given = {**self._zeros(view.unread, len(index)), name: output}
        found = self._run(self.images.take(index), given)
        goals = self._goal(view.at_outputs).take(index)
        return found.compared(view.at_outputs), goals
