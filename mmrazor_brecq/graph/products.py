"""Make layers of the matrix products in modules' own code."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Optional, Union, cast

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..layers import (
    TAKEN,
    MatrixProduct,
    ProductOwner,
    Taken,
    mix_in,
)
from .compare import Rewrite, apply_checked
from .product_uses import ProductUse, constant_memory
from .record import Recording, memory_of

#: What takes a product: a new child, or a layer that is there already.
Child = Union[MatrixProduct, nn.Linear]


@dataclass
class _Plan:
    """What takes the products of one module.

    Attributes:
        children (dict[str, nn.Module]): New children, by name.
        taken (dict[int, Taken]): What takes each product, by its place.
        biases (dict): For linear layers that are there already, the bias
            that the code adds in place of theirs, None for none.
        unused (dict): Parameters that nothing else reads any more: by name,
            the module that has it, and its key there.
    """

    children: dict[str, Child] = field(default_factory=dict)
    taken: dict[int, Taken] = field(default_factory=dict)
    biases: dict[str, Optional[Tensor]] = field(default_factory=dict)
    unused: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)


class TakeProducts(Rewrite):
    """Rewrite that lets children compute the products of a module.

    Args:
        name (str): Name of the module.
        owner (nn.Module): The module.
        plan (_Plan): Its children.
    """

    def __init__(self, name: str, owner: nn.Module, plan: _Plan) -> None:
        super().__init__(name)
        self.owner = owner
        self.plan = plan
        self.owner_class = type(owner)
        self.parameters: dict[str, nn.Parameter] = {}
        self.biases: dict[str, Optional[nn.Parameter]] = {}

    def apply(self) -> None:
        """Add the children, and hand the products to them."""
        owner, plan = self.owner, self.plan
        for name, child in plan.children.items():
            owner.add_module(name, child.eval())
        for name, bias in plan.biases.items():
            layer = cast(nn.Linear, owner.get_submodule(name))
            self.biases[name] = layer.bias
            value = (
                None if bias is None else nn.Parameter(bias.detach().clone())
            )
            layer.register_parameter('bias', value)
        for name, (module, key) in plan.unused.items():
            # The code still passes it on, and may look at its shape.
            before = cast(nn.Parameter, module._parameters.pop(key))
            self.parameters[name] = before
            vars(module)[key] = before.detach().new_zeros(()).expand_as(before)
        vars(owner)[TAKEN] = plan.taken
        mix_in(ProductOwner, owner)

    def undo(self) -> None:
        """Restore the module."""
        owner, plan = self.owner, self.plan
        owner.__class__ = self.owner_class
        del vars(owner)[TAKEN]
        for name, (module, key) in plan.unused.items():
            del vars(module)[key]
            module._parameters[key] = self.parameters[name]
        for name, bias in self.biases.items():
            cast(nn.Linear, owner.get_submodule(name)).bias = bias  # type: ignore[assignment]
        for name in plan.children:
            del owner._modules[name]


def show_products(
    network: nn.Module,
    recording: Recording,
    state: Optional[Iterable[str]] = None,
) -> bool:
    """Make layers of products of activations, and of linear functions.

    A product of two activations becomes a :class:`MatrixProduct`. A linear
    function with a parameter becomes a call of the layer whose weight that
    is, or of a new one.

    Args:
        network (nn.Module): The network; it is changed in place.
        recording (Recording): A recorded pass of it.
        state (iterable[str], optional): Keys of a quantized state, which
            then decides what becomes a layer; nothing is compared.

    Returns:
        bool: Whether something changed, so that another pass shows more.
    """
    rewrites: list[TakeProducts] = [
        TakeProducts(name, owner, plan)
        for name, (owner, plan) in _plans(network, recording).items()
    ]
    if state is not None:
        keys = {*state}
        for rewrite in rewrites:
            _restrict(rewrite.name, rewrite.plan, keys)
        rewrites = [r for r in rewrites if r.plan.taken]
        for rewrite in rewrites:
            rewrite.apply()
        return bool(rewrites)
    undone = apply_checked(network, rewrites, recording.inputs)
    for wrong in undone:
        print_log(
            f'{wrong.name or type(network).__name__}: its matrix products '
            'stay in float, as computing them one by one changes the output '
            'of the network',
            'current',
            logging.WARNING,
        )
    return len(undone) < len(rewrites)


def _restrict(name: str, plan: _Plan, state: set[str]) -> None:
    """Leave only children that a quantized state has."""

    def is_there(child: str) -> bool:
        path = f'{name}.{child}'.lstrip('.')
        if isinstance(plan.children.get(child), MatrixProduct):
            sides = 'left', 'right'
            return any(f'{path}.{s}_quantizer.scale' in state for s in sides)
        if child in plan.children:
            return f'{path}.weight' in state
        return f'{path}.weight_quantizer.scale' in state

    plan.taken = {i: t for i, t in plan.taken.items() if is_there(t.child)}
    there = {taken.child for taken in plan.taken.values()}
    plan.children = {c: m for c, m in plan.children.items() if c in there}
    plan.biases = {c: b for c, b in plan.biases.items() if c in there}
    plan.unused = {k: v for k, v in plan.unused.items() if k not in state}


def _plans(
    network: nn.Module, recording: Recording
) -> dict[str, tuple[nn.Module, _Plan]]:
    """Return the modules whose products become layers, by name."""
    places: dict[nn.Module, dict[int, list[ProductUse]]] = {}
    constant = dict(
        zip(map(id, recording.products), constant_memory(network, recording))
    )
    for use in recording.products:
        places.setdefault(use.call.module, {}).setdefault(
            use.place, []
        ).append(use)
    parameters = _Parameters(network)
    plans = {}
    for module, uses in places.items():
        if 'forward' in vars(module) or isinstance(module, ProductOwner):
            continue
        name = recording.by_module()[module][0].name
        plan = _Plan()
        for index, same in sorted(uses.items()):
            if any(constant[id(use)][0] for use in same):
                continue
            if all(use.weight is not None for use in same):
                parameters.plan_linear(plan, name, module, index, same)
            elif not any(constant[id(use)][1] for use in same):
                _plan_product(plan, module, index, same)
        if plan.taken:
            plan.unused = parameters.unused(plan, uses, recording)
            plans[name] = module, plan
    return plans


def _plan_product(
    plan: _Plan, module: nn.Module, index: int, uses: list[ProductUse]
) -> None:
    """Plan a product of two activations."""
    if uses[0].shapes[0][-1] == 1:  # Each element is multiplied by one.
        return
    left, right = (_heads([use.shapes[i] for use in uses]) for i in (0, 1))
    products = [
        c for c in plan.children.values() if isinstance(c, MatrixProduct)
    ]
    name = _free_name(module, plan, f'product_{len(products)}')
    plan.children[name] = MatrixProduct((left, right))
    plan.taken[index] = Taken(name, False)


def _heads(shapes: list[torch.Size]) -> int:
    """Return the number of heads of an operand, 1 where it has none.

    Heads are the last of the dimensions that a product runs over, where
    there is one more for the images. They have to be as many in all calls.
    """
    found = {shape[-3] if len(shape) > 3 else 1 for shape in shapes}
    return found.pop() if len(found) == 1 else 1


def _free_name(module: nn.Module, plan: _Plan, name: str) -> str:
    """Return a name that no attribute of the module has."""
    while hasattr(module, name) or name in plan.children:
        name += '_'
    return name


class _Parameters:
    """The parameters of a network, by their memory.

    Args:
        network (nn.Module): The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.places = {
            memory_of(value): (path, module, key)
            for path, module in network.named_modules()
            for key, value in module._parameters.items()
            if value is not None
        }

    def plan_linear(
        self,
        plan: _Plan,
        name: str,
        module: nn.Module,
        index: int,
        uses: list[ProductUse],
    ) -> None:
        """Plan a linear function whose weight is a parameter."""
        weight, bias = cast(Tensor, uses[0].weight), uses[0].bias
        place = self.places.get(memory_of(weight))
        if place is None or not all(
            _same_view(use.weight, weight) for use in uses
        ):
            return
        path, owner, key = place
        whole = _same_view(weight, owner._parameters[key])
        inside = f'{path}.'.startswith(f'{name}.') or not name
        if isinstance(owner, nn.Linear) and key == 'weight' and whole:
            if inside and path != name:
                child = path[len(name) :].lstrip('.')
                plan.taken[index] = Taken(child, True)
                if bias is not owner.bias and not _same_view(bias, owner.bias):
                    plan.biases[child] = bias
                return
        outputs, inputs = weight.shape
        layer = nn.Linear(inputs, outputs, bias=bias is not None)
        layer = layer.to(weight).eval()
        layer.weight.data = weight.detach().clone().contiguous()
        if bias is not None:
            layer.bias.data = bias.detach().clone()
        layer.requires_grad_(False)
        stem = key.removesuffix('_weight') if '_' in key else 'linear'
        if not whole or stem == 'linear':
            stem = f'{stem}_{len(plan.taken)}'
        child = _free_name(module, plan, stem)
        plan.children[child] = layer
        plan.taken[index] = Taken(child, True)

    def unused(
        self,
        plan: _Plan,
        uses: dict[int, list[ProductUse]],
        recording: Recording,
    ) -> dict[str, tuple[nn.Module, str]]:
        """Return the parameters that only new layers use, by name."""
        new = {
            index
            for index, taken in plan.taken.items()
            if taken.linear and taken.child in plan.children
        }
        inside = {
            i for index in new for use in uses[index] for i in range(*use.span)
        }
        read: set[int] = set()
        elsewhere: set[int] = set()
        for i, operation in enumerate(recording.operations):
            outputs = {x.storage for x in operation.outputs}
            for x in operation.inputs:
                if x.storage in self.places and x.storage not in outputs:
                    (read if i in inside else elsewhere).add(x.storage)
        found = [self.places[memory] for memory in read - elsewhere]
        return {
            f'{path}.{key}'.lstrip('.'): (module, key)
            for path, module, key in found
        }


def _same_view(x: Optional[Tensor], y: Optional[Tensor]) -> bool:
    """Return whether two tensors are the same view of the same memory."""
    if x is None or y is None or memory_of(x) != memory_of(y):
        return False
    views = [(v.shape, v.stride(), v.storage_offset()) for v in (x, y)]
    return views[0] == views[1]
