"""Cut a network into units, which are reconstructed one by one.

No class of block is named here. A block is recognized by its position in
the tree of modules and by its calls in a recorded pass.
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
    """Part of a network that is reconstructed at a time.

    Attributes:
        name (str): Name of its module, '' for the whole network.
        module (nn.Module): The module.
        layers (tuple[str]): Names of its layers, in the order of their
            calls.
        depth (int): Number of layers on the longest path through it.
            Parallel layers count once.
        joined (tuple[Unit]): The smaller units that it consists of, if any.
            Each of them keeps its door, so that the same tensors are
            quantized whatever the size of the units.

    Example:
        >>> unit = Unit('layer1.0', block, ('layer1.0.conv1',))
        >>> unit.parts == (unit,)
        True
    """

    name: str
    module: nn.Module
    layers: tuple[str, ...]
    depth: int = 1
    joined: tuple[Unit, ...] = ()

    @property
    def parts(self) -> tuple[Unit, ...]:
        """Return the units that have a door: the joined ones, or itself."""
        return self.joined or (self,)


class Partition:
    """Rule that cuts a network into units; subclasses choose the modules.

    Every quantizable layer that is called is in exactly one unit: that of
    the chosen module around it, or else a unit of its own.
    """

    def __call__(self, model: nn.Module, recording: Recording) -> list[Unit]:
        """Cut a network into units.

        Args:
            model (nn.Module): The network, float or quantized.
            recording (Recording): A recorded pass of it.

        Returns:
            list[Unit]: The units, in the order of their first calls.
        """
        calls = recording.by_module()
        order = {module: i for i, module in enumerate(calls)}
        names = {module: uses[0].name for module, uses in calls.items()}
        layers = [m for m in calls if recording.is_layer(m)]
        chosen = [m for m in self.choose(model, recording) if m in calls]
        # A layer that is in several chosen modules belongs to the first.
        parent = {x: m for m in reversed(chosen) for x in m.modules()}
        units: dict[nn.Module, list[nn.Module]] = {}
        for layer in layers:
            units.setdefault(parent.get(layer, layer), []).append(layer)
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
        """Return the modules that become units, none inside another."""
        raise NotImplementedError


#: Type of an argument that takes the config of a partition.
PartitionConfig = Annotated[dict, Config(Partition, TASK_UTILS)]


def _inside(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Return all modules inside ``modules``, without themselves."""
    return {x for m in modules for x in m.modules() if x is not m}


def _depth(recording: Recording, calls: list[Call]) -> int:
    """Return the number of layers on the longest path through some calls.

    Args:
        recording (Recording): The recorded pass.
        calls (list[Call]): Calls of layers.
    """
    layers = len({call.module for call in calls})
    if layers == 1:
        return 1
    outputs = {value.storage for call in calls for value in call.outputs}
    # Number of layers before the content of each memory.
    depths: dict[int, int] = {}
    # Only the operations from the first to the last call can change a depth.
    start = min(call.span[0] for call in calls)
    stop = max(call.span[1] for call in calls)
    for operation in recording.operations[start:stop]:
        before = {value.storage for value in operation.inputs}
        depth = max((depths.get(x, 0) for x in before), default=0)
        for x in {value.storage for value in operation.outputs}:
            # A view, or a write in place, is no further layer.
            depths[x] = depth + (x in outputs and x not in before)
    # A layer that is called several times learns once.
    return min(layers, max(depths.values()))


def _outermost(modules: list[nn.Module]) -> list[nn.Module]:
    """Return those of ``modules`` that are inside no other one."""
    inner = _inside(modules)
    return [m for m in modules if m not in inner]


@TASK_UTILS.register_module()
class LayerPartition(Partition):
    """Partition in which every layer is a unit.

    Example:
        >>> model = dict(partition='LayerPartition')
    """

    def choose(
        self, model: nn.Module, recording: Recording
    ) -> Iterable[nn.Module]:
        """Return no modules: then each layer is a unit of its own."""
        return ()


@TASK_UTILS.register_module()
class BlockPartition(Partition):
    """Partition into residual blocks and the like, as in the paper.

    A candidate has two or more layers, is not itself a container such as
    ``nn.Sequential``, and its parent is a container or the backbone. A block
    is a candidate with no other candidate inside.

    Beside the backbone, a module is a block, too, if layers in it are called
    more than once in a pass, and the module itself is not: a head whose
    layers are shared by all levels of a pyramid learns on all of them.

    Args:
        backbone (str): Name of the module that is the backbone. A network
            without a module of this name is its own backbone.

    Example:
        >>> model = dict(
        ...     partition=dict(type='BlockPartition', backbone='encoder')
        ... )
    """

    def __init__(self, backbone: str = 'backbone') -> None:
        self.backbone = backbone

    def choose(
        self, model: nn.Module, recording: Recording
    ) -> Iterable[nn.Module]:
        """Return the blocks."""
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
        found = set(candidates)
        blocks = [m for m in candidates if found.isdisjoint(_inside([m]))]
        if backbone is model:
            return blocks
        return blocks + _sharing(recording, [backbone, *blocks])


def _sharing(
    recording: Recording, taken: Sequence[nn.Module]
) -> list[nn.Module]:
    """Return the modules around layers that are called more than once.

    Of the modules around such a layer it is the innermost one that is called
    once. It is not the network, and nothing that is taken is inside it.

    Args:
        recording (Recording): A recorded pass.
        taken (list[nn.Module]): Modules that hold no other unit.
    """
    calls = recording.by_module()
    by_name = {uses[0].name: module for module, uses in calls.items()}
    inside = _inside(taken)
    found: dict[nn.Module, None] = {}
    for module, uses in calls.items():
        if len(uses) == 1 or not recording.is_layer(module):
            continue
        name = uses[0].name
        while name := name.rpartition('.')[0]:
            around = by_name.get(name)
            if around is not None and len(calls[around]) == 1:
                break
        if name and module not in inside and module not in taken:
            around = by_name[name]
            if not {*taken} & {*around.modules()}:
                found[around] = None
    return _outermost(list(found))


class _JointPartition(Partition):
    """Partition that joins the units of a finer one.

    Args:
        blocks (dict): Config of the finer partition, by default
            ``BlockPartition``.
    """

    def __init__(self, blocks: Optional[PartitionConfig] = None) -> None:
        self.blocks = TASK_UTILS.build(blocks or dict(type='BlockPartition'))

    def __call__(self, model: nn.Module, recording: Recording) -> list[Unit]:
        """Cut a network into units, each with the units that it joins."""
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
    """Partition into stages: the outermost containers that are called.

    Blocks that are in no such container stay units.

    Example:
        >>> model = dict(partition='StagePartition')
    """

    def choose(
        self, model: nn.Module, recording: Recording
    ) -> Iterable[nn.Module]:
        """Return the stages, and the blocks outside of them."""
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
    """Partition in which the whole network is one unit.

    Example:
        >>> model = dict(partition='NetworkPartition')
    """

    def choose(
        self, model: nn.Module, recording: Recording
    ) -> Iterable[nn.Module]:
        """Return the network."""
        return (model,)


@TASK_UTILS.register_module()
class PatternPartition(Partition):
    """Partition by name, for networks whose blocks are not recognized.

    Args:
        patterns (list[str]): Names of modules, with the wildcards of
            :mod:`fnmatch`. Of nested matches the outermost ones count.
        others (dict): Config of the partition of all other layers, by
            default ``BlockPartition``.

    Example:
        >>> partition = dict(
        ...     type='PatternPartition', patterns=['stages.*.*']
        ... )
        >>> model = dict(partition=partition)
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
        """Return the matches, and the units of the other partition.

        Raises:
            ValueError: If a pattern matches no module that is called.
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
