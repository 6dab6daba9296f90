"""One recorded forward pass: which tensor went into which module.

Nothing is traced or rewritten, so any Python between the modules works.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ..functional import tensors
from ..layers import is_quantizable


class Value(NamedTuple):
    """What a tensor was at one moment.

    Two values are equal if they are the same object with nothing written
    to it in between.
    """

    tensor: int
    version: int
    storage: int
    dims: int

    @classmethod
    def of(cls, tensor: Tensor, written: Counter[int]) -> Value:
        """Return what a tensor is now.

        Args:
            tensor (Tensor): The tensor.
            written (Counter): Writes to each memory that were seen: tensors
                of inference mode do not count them.
        """
        memory = memory_of(tensor)
        counts = not tensor.is_inference()
        version = tensor._version if counts else written[memory]
        return cls(tensor._cdata, version, memory, tensor.dim())

    def views(self, other: Value) -> bool:
        """Whether both show the same memory with the same content."""
        return (self.storage, self.version) == (other.storage, other.version)


def memory_of(tensor: Tensor) -> int:
    """A number of the memory that a tensor is in, that of its views too."""
    # No address: what is freed leaves that to others.
    return tensor.untyped_storage()._cdata


@dataclass
class Call:
    """One call of one module.

    Attributes:
        name (str): The module's name, '' for the whole network.
        module (nn.Module): The module.
        inputs (tuple[Value]): Tensors among its arguments, flattened.
        outputs (tuple[Value]): Tensors that it returned, flattened.
        steps (tuple[int, int]): Number of the first operation in it, and of
            the first one after it.
    """

    name: str
    module: nn.Module
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] = ()
    steps: tuple[int, int] = (0, 0)


class Step(NamedTuple):
    """One operation.

    Attributes:
        made (tuple[Value]): What it gave.
        taken (tuple[Value]): What it computed with.
        op (str): Its name in ATen, such as ``convolution``.
        caller (str): Name of the module whose own code it is in.
    """

    made: tuple[Value, ...]
    taken: tuple[Value, ...]
    op: str
    caller: str


@dataclass
class Recording:
    """One forward pass.

    Attributes:
        inputs (Tensor): What the network was given.
        calls (list[Call]): In the order of their beginning.
        users (dict): The modules whose own code computes with a value.
        steps (list[Step]): Every operation, in order.
        unfit (dict): Convolutions and linear layers that are called and
            cannot be quantized, and what they are that they cannot.
        kept (list): The places of all tensors, which no other takes as long
            as the pass is known; what they held is free.
        written (Counter): How often each memory was written to.
    """

    inputs: Tensor
    calls: list[Call] = field(default_factory=list)
    users: dict[Value, set[nn.Module]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    unfit: dict[nn.Module, str] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list, repr=False)
    written: Counter[int] = field(default_factory=Counter, repr=False)
    _readers: dict[int, set[nn.Module]] = field(
        default_factory=dict, repr=False
    )

    def by_module(self) -> dict[nn.Module, list[Call]]:
        """The calls of every module."""
        calls: dict[nn.Module, list[Call]] = {}
        for call in self.calls:
            calls.setdefault(call.module, []).append(call)
        return calls

    def is_layer(self, module: nn.Module) -> bool:
        """Whether it is a layer that can be quantized."""
        return is_quantizable(module) and module not in self.unfit

    def readers(self, tensor: Tensor) -> set[nn.Module]:
        """The modules whose own code computes with a tensor of the network,
        or with a view of it.
        """
        if not self._readers:
            for value, users in self.users.items():
                self._readers.setdefault(value.storage, set()).update(users)
        return self._readers.get(memory_of(tensor), set())

    def values(self, nested: Any) -> tuple[Value, ...]:
        """The tensors in nested arguments; no later one will equal them."""
        found = tensors(nested)
        for tensor in found:
            # Of weak references both live on as empty shells.
            self.kept += (
                torch._C._WeakTensorRef(tensor),  # type: ignore[attr-defined]
                StorageWeakRef(tensor.untyped_storage()),
            )
        return tuple(Value.of(x, self.written) for x in found)


class _Operations(TorchDispatchMode):
    """Notes which tensors the module that runs computes with, and to what."""

    def __init__(self, recording: Recording, stack: list[Call]) -> None:
        super().__init__()
        self.recording = recording
        self.stack = stack

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        taken = self.recording.values((args, kwargs))
        for value in taken:
            users = self.recording.users.setdefault(value, set())
            users.update(call.module for call in self.stack[-1:])
        out = func(*args, **kwargs or {})
        if func._schema.is_mutable:
            self._count_writes(func, args)
        op = func.overloadpacket.__name__
        caller = self.stack[-1].name if self.stack else ''
        made = self.recording.values(out)
        self.recording.steps.append(Step(made, taken, op, caller))
        return out

    def _count_writes(self, func: Any, args: Any) -> None:
        for argument, x in zip(func._schema.arguments, args):
            if argument.alias_info and argument.alias_info.is_write:
                for tensor in tensors(x):
                    self.recording.written[memory_of(tensor)] += 1


def run_float(model: nn.Module, inputs: Tensor) -> Any:
    """The network's plain output, without post-processing.

    Args:
        model (nn.Module): A model of OpenMMLab, called with
            ``mode='tensor'``, or any other module.
        inputs (Tensor): N x ... preprocessed inputs.
    """
    if isinstance(model, BaseModel):
        return model(inputs, mode='tensor')
    return model(inputs)


@contextmanager
def watched(
    modules: Iterable[nn.Module],
    enter: Callable[..., None],
    leave: Callable[..., None],
) -> Iterator[None]:
    """Within it, tell of each call of some modules.

    Args:
        modules (iterable): The modules.
        enter (callable): Gets module, arguments and keyword arguments.
        leave (callable): Gets the same, and the output.
    """
    hooks = []
    for module in modules:
        hooks += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True),
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def record(model: nn.Module, inputs: Tensor) -> Recording:
    """Run the model once and note which tensor goes where.

    Args:
        model (nn.Module): In evaluation mode.
        inputs (Tensor): N x ... preprocessed inputs.

    Returns:
        Trace: All calls.
    """
    recording = Recording(inputs)
    stack: list[Call] = []
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(names[module], module, recording.values((args, kwargs)))
        call.steps = (len(recording.steps), len(recording.steps))
        recording.calls.append(call)
        stack.append(call)

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        call = stack.pop()
        call.outputs = recording.values(out)
        call.steps = (call.steps[0], len(recording.steps))

    with watched(names, enter, leave), _Operations(recording, stack):
        run_float(model, inputs)
    for module in recording.by_module():
        if is_quantizable(module) and (what := _obstacle(module, recording)):
            recording.unfit[module] = what
    return recording


def _obstacle(layer: nn.Module, recording: Recording) -> str:
    """What a layer is that it cannot be quantized, if anything."""
    weight = layer._parameters.get('weight')
    if weight is None:
        return 'a layer whose weight is not a parameter of its own'
    if layer not in recording.readers(weight):
        return 'a layer whose forward pass does not use its own weight'
    return ''
