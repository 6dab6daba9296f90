"""Units: the parts of a network that are reconstructed one by one.

No class of block is named anywhere: where modules sit in the tree, and
which were called, says what the papers call a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Optional

from torch import nn

from ..registry import TASK_UTILS
from ..validation import Config
from .record import Call, Recording

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Unit:
    """A part of the network that is reconstructed at a time.

    Attributes:
        name (str): Name of its module in the network, '' for all of it.
        module (nn.Module): The module.
        layers (tuple[str]): Names of the layers in it, in the order of
            their calls.
        depth (int): Layers on the longest way through it: those side by
            side count once.
        joined (tuple[Unit]): The units that it joins, if it does: each of
            them keeps its door, so that what is quantized is the same
            however much is reconstructed at a time.
    """

    name: str
    module: nn.Module
    layers: tuple[str, ...]
    depth: int = 1
    joined: tuple[Unit, ...] = ()

    @property
    def parts(self) -> tuple[Unit, ...]:
        """What has a door: the units it joins, or itself."""
        return self.joined or (self,)


class Partition:
    """Cuts a network into units; subclasses choose the modules.

    Every quantizable layer that was called is in exactly one unit: the
    chosen module that holds it, or else a unit of its own.
    """

    def __call__(self, model: nn.Module, recording: Recording) -> list[Unit]:
        """Cut.

        Args:
            model (nn.Module): Before or after its layers were swapped.
            recording (Recording): A recorded pass of it.

        Returns:
            list[Unit]: In the order of their first calls.
        """
        calls = recording.by_module()
        order = {module: i for i, module in enumerate(calls)}
        names = {module: uses[0].name for module, uses in calls.items()}
        layers = [m for m in calls if recording.is_layer(m)]
        holders = [m for m in self.choose(model, recording) if m in calls]
        units: dict[nn.Module, list[nn.Module]] = {}
        holder = {x: m for m in reversed(holders) for x in m.modules()}
        for layer in layers:
            units.setdefault(holder.get(layer, layer), []).append(layer)
        return [
            Unit(
                names[unit],
                unit,
                tuple(names[layer] for layer in inside),
                _depth(
                    recording, [c for layer in inside for c in calls[layer]]
                ),
            )
            for unit, inside in sorted(
                units.items(), key=lambda item: order[item[0]]
            )
        ]

    def choose(
        self, model: nn.Module, recording: Recording
    ) -> Iterable[nn.Module]:
        """Modules that become units, none inside another."""
        raise NotImplementedError


#: How a parameter says that it takes a partition.
PartitionConfig = Annotated[dict, Config(Partition, TASK_UTILS)]


def _inside(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """What is inside of ``modules``, without themselves."""
    return {x for m in modules for x in m.modules() if x is not m}


def _depth(recording: Recording, calls: list[Call]) -> int:
    """Layers on the longest way that values take through them."""
    layers = len({call.module for call in calls})
    if layers == 1:
        return 1
    outputs = {value.storage for call in calls for value in call.outputs}
    depths: dict[int, int] = {}
    # Nothing is any depth before the first of them, or deeper after the last.
    start = min(call.steps[0] for call in calls)
    stop = max(call.steps[1] for call in calls)
    for step in recording.steps[start:stop]:
        before = {value.storage for value in step.taken}
        depth = max((depths.get(x, 0) for x in before), default=0)
        for x in {value.storage for value in step.made}:
            # What is seen otherwise, or written to, is no further layer.
            depths[x] = depth + (x in outputs and x not in before)
    # A layer that is called again and again learns once.
    return min(layers, max(depths.values()))


def _outermost(modules: list[nn.Module]) -> list[nn.Module]:
    """Those of ``modules`` that are in no other one."""
    inner = _inside(modules)
    return [m for m in modules if m not in inner]


@TASK_UTILS.register_module()
class LayerPartition(Partition):
    """Every layer is a unit."""

    def choose(
        self, model: nn.Module, recording: Recording
    ) -> Iterable[nn.Module]:
        """No module but the layers."""
        return ()


@TASK_UTILS.register_module()
class BlockPartition(Partition):
    """Residual blocks and their like, as in the paper.

    A candidate is no bare container, holds two or more layers, and sits in
    a container or directly in the backbone. A block is a candidate with no
    other candidate in it.

    Args:
        backbone (str): Name of the module that counts as the backbone; the
            whole network where it has none of that name.
    """

    def __init__(self, backbone: str = 'backbone') -> None:
        self.backbone = backbone

    def choose(
        self, model: nn.Module, recording: Recording
    ) -> Iterable[nn.Module]:
        """The blocks."""
        backbone = getattr(model, self.backbone, model)
        called: set[nn.Module] = set(recording.by_module())
        candidates = []
        for parent in model.modules():
            if parent is backbone or isinstance(parent, CONTAINERS):
                candidates += [
                    m
                    for m in parent.children()
                    if m in called
                    and not isinstance(m, CONTAINERS)
                    and sum(
                        recording.is_layer(x) and x in called
                        for x in m.modules()
                    )
                    > 1
                ]
        all_of_them = set(candidates)
        return [m for m in candidates if all_of_them.isdisjoint(_inside([m]))]


class _JointPartition(Partition):
    """Joins units of a finer partition.

    Args:
        blocks (dict): The finer partition; blocks by default.
    """

    def __init__(self, blocks: Optional[PartitionConfig] = None) -> None:
        self.blocks = TASK_UTILS.build(blocks or dict(type='BlockPartition'))

    def __call__(self, model: nn.Module, recording: Recording) -> list[Unit]:
        """Cut, and say of what each unit is made."""
        blocks = self.blocks(model, recording)
        return [
            replace(
                unit,
                joined=tuple(b for b in blocks if b.layers[0] in unit.layers),
            )
            for unit in super().__call__(model, recording)
        ]


@TASK_UTILS.register_module()
class StagePartition(_JointPartition):
    """Runs of blocks: the outermost containers that are called as one.

    Blocks that are in no such container stay units.
    """

    def choose(
        self, model: nn.Module, recording: Recording
    ) -> Iterable[nn.Module]:
        """The stages, and what blocks are left over."""
        blocks = list(self.blocks.choose(model, recording))
        stages = [
            m
            for m in recording.by_module()
            if isinstance(m, CONTAINERS)
            and not set(blocks).isdisjoint(m.modules())
        ]
        return _outermost(stages + blocks)


@TASK_UTILS.register_module()
class NetworkPartition(_JointPartition):
    """The whole network is one unit."""

    def choose(
        self, model: nn.Module, recording: Recording
    ) -> Iterable[nn.Module]:
        """The network."""
        return (model,)


@TASK_UTILS.register_module()
class PatternPartition(Partition):
    """Units by name, for networks on which the rule of blocks is wrong.

    Args:
        patterns (list[str]): Names of modules, with the wildcards of
            :mod:`fnmatch`. Of nested matches the outermost count.
        others (dict): The partition of all the rest.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        others: Optional[PartitionConfig] = None,
    ) -> None:
        self.patterns = patterns
        self.others = TASK_UTILS.build(others or dict(type='BlockPartition'))

    def choose(
        self, model: nn.Module, recording: Recording
    ) -> Iterable[nn.Module]:
        """The matches, and what the other partition finds beside them.

        Raises:
            ValueError: If a pattern matches no module that was called.
        """
        names = {
            module: uses[0].name
            for module, uses in recording.by_module().items()
        }
        chosen: list[nn.Module] = []
        for pattern in self.patterns:
            found = [m for m in names if fnmatchcase(names[m], pattern)]
            if not found:
                raise ValueError(
                    f'The pattern {pattern!r} matches no module that the '
                    'forward pass calls: change `patterns` of the '
                    '`partition`'
                )
            chosen += found
        chosen = _outermost(chosen)
        taken = {*chosen, *_inside(chosen)}
        return chosen + [
            m
            for m in self.others.choose(model, recording)
            if m not in taken and taken.isdisjoint(_inside([m]))
        ]
