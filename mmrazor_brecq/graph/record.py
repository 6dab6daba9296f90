"""Record one forward pass: which tensor goes into which module.

Nothing is traced or rewritten, so any Python between the modules works.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ..functional import tensors
from ..layers import is_layer, is_quantizable
from .product_uses import ProductUse, UseRecorder
from .samples import Inputs, has_samples, run_float

#: Why a layer is not quantized that could be.
LEFT_FLOAT = 'left in float by `bit_overrides`'


class Value(NamedTuple):
    """The state of a tensor at one moment of the pass.

    Two values are equal if they are the same tensor object and nothing was
    written to it in between.

    Attributes:
        tensor (int): Identifier of the tensor object.
        version (int): Number of writes to it so far.
        storage (int): Identifier of its memory, see :func:`memory_of`.
        dims (int): Number of its dimensions.
    """

    tensor: int
    version: int
    storage: int
    dims: int

    @classmethod
    def of(cls, tensor: Tensor, write_counts: Counter[int]) -> Value:
        """Return the present state of a tensor.

        Args:
            tensor (Tensor): The tensor.
            write_counts (Counter): Number of writes to each memory that were
                recorded. They stand in for the version of tensors that are
                made in inference mode, which have none.
        """
        memory = memory_of(tensor)
        if tensor.is_inference():
            version = write_counts[memory]
        else:
            version = tensor._version
        return cls(tensor._cdata, version, memory, tensor.dim())

    def same_memory(self, other: Value) -> bool:
        """Return whether both use the same memory with the same content."""
        return (self.storage, self.version) == (other.storage, other.version)


def memory_of(tensor: Tensor) -> int:
    """Return an identifier of a tensor's memory, the same for its views."""
    # Not the address: freed memory passes its address on to other tensors.
    return tensor.untyped_storage()._cdata


@dataclass
class Call:
    """One call of one module.

    Attributes:
        name (str): The module's name, '' for the whole network.
        module (nn.Module): The module.
        inputs (tuple[Value]): Tensors among its arguments, flattened.
        outputs (tuple[Value]): Tensors that it returned, flattened.
        span (tuple[int, int]): Index of the first operation in the call, and
            of the first one after it.
    """

    name: str
    module: nn.Module
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] = ()
    span: tuple[int, int] = (0, 0)


class Operation(NamedTuple):
    """One operation of the pass.

    Attributes:
        name (str): Its name in ATen, such as ``convolution``.
        caller (str): Name of the module whose own code runs it.
        inputs (tuple[Value]): The tensors that it computes with.
        outputs (tuple[Value]): The tensors that it returns.
    """

    name: str
    caller: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass
class Recording:
    """One recorded forward pass.

    Attributes:
        inputs (Tensor | Samples): The network's input.
        calls (list[Call]): All calls, in the order in which they began.
        users (dict): For each value, the modules whose own code computes
            with it.
        operations (list[Operation]): All operations, in order.
        given_samples (set): Modules that are given data samples.
        products (list[ProductUse]): Matrix products that modules compute
            in their own code, in order, those of layers left out.
        unfit (dict): Layers that are called but cannot be quantized, each
            with the reason.
        references (list): Weak references to all tensors. They keep the
            identifiers of freed tensors from being used again, but not
            their memory from being freed.
        write_counts (Counter): Number of writes to each memory.
    """

    inputs: Inputs
    calls: list[Call] = field(default_factory=list)
    users: dict[Value, set[nn.Module]] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    given_samples: set[nn.Module] = field(default_factory=set)
    products: list[ProductUse] = field(default_factory=list)
    unfit: dict[nn.Module, str] = field(default_factory=dict)
    references: list[object] = field(default_factory=list, repr=False)
    write_counts: Counter[int] = field(default_factory=Counter, repr=False)
    _readers: dict[int, set[nn.Module]] = field(
        default_factory=dict, repr=False
    )

    def by_module(self) -> dict[nn.Module, list[Call]]:
        """Return the calls of each module."""
        calls: dict[nn.Module, list[Call]] = {}
        for call in self.calls:
            calls.setdefault(call.module, []).append(call)
        return calls

    def is_layer(self, module: nn.Module) -> bool:
        """Return whether a module is a layer that can be quantized.

        Products of activations are layers, too, without a weight.
        """
        return is_layer(module) and module not in self.unfit

    def has_weight(self, module: nn.Module) -> bool:
        """Return whether a module is a layer with a weight."""
        return self.is_layer(module) and is_quantizable(module)

    def could_be_layer(self, module: nn.Module) -> bool:
        """Return whether a module is a layer, or would be if it were not
        left in float.
        """
        return is_layer(module) and (
            self.unfit.get(module, LEFT_FLOAT) == LEFT_FLOAT
        )

    def readers(self, tensor: Tensor) -> set[nn.Module]:
        """Return the modules whose own code computes with a tensor of the
        network, or with a view of it.
        """
        if not self._readers:
            for value, users in self.users.items():
                self._readers.setdefault(value.storage, set()).update(users)
        return self._readers.get(memory_of(tensor), set())

    def values(self, nested: object) -> tuple[Value, ...]:
        """Return the values of the tensors in nested arguments.

        No tensor that is made later equals them.
        """
        found = tensors(nested)
        for tensor in found:
            # A weak reference keeps an empty shell of the tensor alive, and
            # with it the identifier.
            self.references += (
                torch._C._WeakTensorRef(tensor),  # type: ignore[attr-defined]
                StorageWeakRef(tensor.untyped_storage()),
            )
        return tuple(Value.of(x, self.write_counts) for x in found)


class _OperationRecorder(TorchDispatchMode):
    """Records each operation, for the module whose code runs it.

    Args:
        recording (Recording): Where they are recorded.
        stack (list[Call]): The calls that have begun and not ended.
    """

    def __init__(self, recording: Recording, stack: list[Call]) -> None:
        super().__init__()
        self.recording = recording
        self.stack = stack

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Optional[Mapping[str, object]] = None,
    ) -> object:
        inputs = self.recording.values((args, kwargs))
        for value in inputs:
            users = self.recording.users.setdefault(value, set())
            users.update(call.module for call in self.stack[-1:])
        out = func(*args, **kwargs or {})
        if func._schema.is_mutable:
            self._count_writes(func, args)
        name = func.overloadpacket.__name__
        caller = self.stack[-1].name if self.stack else ''
        outputs = self.recording.values(out)
        self.recording.operations.append(
            Operation(name, caller, inputs, outputs)
        )
        return out

    def _count_writes(self, func: OpOverload, args: Sequence[object]) -> None:
        for argument, x in zip(func._schema.arguments, args):
            if argument.alias_info and argument.alias_info.is_write:
                for tensor in tensors(x):
                    self.recording.write_counts[memory_of(tensor)] += 1


@contextmanager
def watched(
    modules: Iterable[nn.Module],
    enter: Callable[..., None],
    leave: Callable[..., None],
) -> Iterator[None]:
    """Call functions before and after each call of some modules.

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
def record(model: nn.Module, inputs: Inputs) -> Recording:
    """Run the network once and record which tensor goes where.

    Args:
        model (nn.Module): The network, in evaluation mode.
        inputs (Tensor | Samples): Preprocessed images, N x C x H x W.

    Returns:
        Recording: All calls and operations of the pass.
    """
    recording = Recording(inputs)
    stack: list[Call] = []
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        call = Call(names[module], module, recording.values((args, kwargs)))
        if has_samples((*args, *kwargs.values())):
            recording.given_samples.add(module)
        start = len(recording.operations)
        call.span = (start, start)
        recording.calls.append(call)
        stack.append(call)

    def leave(
        module: nn.Module, args: tuple, kwargs: dict, out: object
    ) -> None:
        call = stack.pop()
        call.outputs = recording.values(out)
        call.span = (call.span[0], len(recording.operations))

    parameters = {memory_of(x) for x in model.parameters()}
    with (
        watched(names, enter, leave),
        _OperationRecorder(recording, stack),
        UseRecorder(recording, stack, parameters),
    ):
        run_float(model, inputs)
    for module in recording.by_module():
        if is_quantizable(module):
            reason = _reason_unfit(module, recording)
            if reason:
                recording.unfit[module] = reason
    return recording


def _reason_unfit(layer: nn.Module, recording: Recording) -> str:
    """Return why a layer cannot be quantized, '' if it can."""
    weight = layer._parameters.get('weight')
    if weight is None:
        return 'a layer whose weight is not a parameter of its own'
    if layer not in recording.readers(weight):
        return 'a layer whose forward pass does not use its own weight'
    return ''
