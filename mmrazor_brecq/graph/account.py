"""List what of a network is quantized, and what stays in float and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Optional, Union

from torch import Tensor, nn

from ..layers import MatrixProduct, is_quantizable
from .product_uses import constant_memory
from .record import Recording, memory_of

#: Operations that layers are made of, by their names in ATen.
PRODUCTS = re.compile(r'conv|mm|mv|dot|linear|lstm|gru|rnn|attention|embed')

#: Operations that multiply matrices, or have such products inside.
MATRIX_PRODUCTS = re.compile(r'^(b?mm|(b?add)b?mm|matmul|dot|mv)$|attention')

#: Number of names that one sentence lists.
SHOWN = 10

#: For each weight, the operations that use it, each with the module whose
#: own code runs it.
Uses = dict[str, list[tuple[str, str]]]


@dataclass
class Account:
    """List of what is quantized in a network, and what is not.

    Attributes:
        quantized (list[str]): Names of the quantized layers.
        layers (int): Number of all convolutions and linear layers.
        quantized_products (list[str]): Names of the quantized products of
            activations.
        activation_products (int): Number of all products of activations.
        left_float (dict[str, str]): Layers that stay in float, and other
            weights of two or more dimensions, each with the reason.
        products (list[str]): Those of ``left_float`` that are layers or
            operands of matrix products, convolutions and the like. Weights
            that are only added or multiplied by element are not among them.
    """

    quantized: list[str]
    layers: int
    left_float: dict[str, str] = field(default_factory=dict)
    products: list[str] = field(default_factory=list)
    quantized_products: list[str] = field(default_factory=list)
    activation_products: int = 0

    def __str__(self) -> str:
        text = f'{len(self.quantized)} of {self.layers} layers'
        if self.activation_products:
            text += (
                f' and {len(self.quantized_products)} of '
                f'{self.activation_products} products of activations'
            )
        text += ' quantized'
        if not self.left_float:
            return text
        left = [
            f'{name} ({reason})' for name, reason in self.left_float.items()
        ]
        more = f' and {len(left) - SHOWN} more' if len(left) > SHOWN else ''
        names = ', '.join(left[:SHOWN])
        return f'{text}; {len(left)} left in float: {names}{more}'

    def to_dict(self) -> dict[str, Union[str, int, dict[str, str]]]:
        """Return the account as plain Python, for reports."""
        return dict(
            summary=str(self),
            quantized=len(self.quantized),
            layers=self.layers,
            quantized_products=len(self.quantized_products),
            products=self.activation_products,
            left_float=self.left_float,
        )

    def _add(self, name: str, reason: str, product: bool) -> None:
        self.left_float.setdefault(name, reason)
        if product and name not in self.products:
            self.products.append(name)


def take_account(model: nn.Module, recording: Recording) -> Account:
    """Find out which weights will be quantized.

    Args:
        model (nn.Module): The float network.
        recording (Recording): A recorded pass of it.

    Returns:
        Account: The quantized layers, and all other weights with reasons.
    """
    calls = recording.by_module()
    layers = [m for m in model.modules() if is_quantizable(m)]
    quantized = [m for m in calls if recording.has_weight(m)]
    account = Account([calls[m][0].name for m in quantized], len(layers))
    for module, reason in recording.unfit.items():
        account._add(calls[module][0].name, reason, True)
    _add_products(account, model, recording)
    all_uses = _find_uses(model, recording)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        path, _, key = name.rpartition('.')
        module = model.get_submodule(path)
        layer = is_quantizable(module) and key == 'weight'
        if value.dim() < 2 or (layer and module in calls):
            continue
        uses = all_uses.get(name, [])
        product = layer or any(PRODUCTS.search(op) for op, _ in uses)
        if product or isinstance(value, nn.Parameter):
            reason = _reason(module, layer, value, uses)
            names_module = layer or (
                not is_quantizable(module) and _torch_class(module)
            )
            account._add(path if names_module else name, reason, product)
    return account


def _add_products(
    account: Account, model: nn.Module, recording: Recording
) -> None:
    """Add the products of activations, with a reason for those in float."""
    found = {
        uses[0].name: module
        for module, uses in recording.by_module().items()
        if isinstance(module, MatrixProduct)
    }
    account.quantized_products = [
        name for name, module in found.items() if recording.is_layer(module)
    ]
    left = dict(_products_left(model, recording))
    for name, reason in left.items():
        account._add(name, reason, True)
    account.activation_products = len(found) + len(left)


def _products_left(
    model: nn.Module, recording: Recording
) -> Iterator[tuple[str, str]]:
    """Yield products of activations that no layer computes.

    Yields:
        tuple[str, str]: A name, and why it stays in float.
    """
    taken: set[int] = set()
    pairs = zip(recording.products, constant_memory(model, recording))
    for use, constant in pairs:
        taken.update(range(*use.span))
        small = use.shapes[0][-1] == 1
        if use.weight is None and not any(constant) and not small:
            name = f'{use.call.name}.product_{use.place}'.lstrip('.')
            yield name, 'a product of activations in code that stays as it is'
    layers = {
        call.name
        for call in recording.calls
        if is_quantizable(call.module)
        or isinstance(call.module, MatrixProduct)
    }
    counts: Counter[str] = Counter()
    constant_now = {memory_of(x) for x in model.parameters()}
    constant_now |= {memory_of(x) for x in model.buffers()}
    for i, operation in enumerate(recording.operations):
        inputs = [x.storage in constant_now for x in operation.inputs]
        outputs = {x.storage for x in operation.outputs}
        if all(inputs):
            constant_now |= outputs
            continue
        constant_now -= outputs
        own = operation.caller not in layers and i not in taken
        if own and MATRIX_PRODUCTS.search(operation.name):
            if any(inputs):  # A product with a constant.
                continue
            place = f'{operation.caller}.{operation.name}'.lstrip('.')
            counts[place] += 1
            number = f'_{counts[place]}' if counts[place] > 1 else ''
            yield place + number, _why_closed(operation.name)


def _why_closed(operation: str) -> str:
    """Return why an operation was not opened into its products."""
    if 'attention' in operation:
        return (
            f'inside {operation}, a fused kernel that cannot be opened: use '
            "the network's plain attention, such as fused_attn=False or "
            "attn_implementation='eager'"
        )
    return f'a product of activations by {operation}, which is not known here'


def _reason(
    module: nn.Module,
    layer: bool,
    value: Tensor,
    uses: list[tuple[str, str]],
) -> str:
    """Return why a weight is not quantized.

    Args:
        module (nn.Module): The module that has the weight.
        layer (bool): Whether it is the weight of a convolution or a linear
            layer.
        value (Tensor): The weight.
        uses (list): The operations that use it.
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return 'a transposed convolution, which is not supported'
    users = ', '.join(
        f'{op} in {caller or "the network itself"}'
        for op, caller in dict.fromkeys(uses)
    )
    if layer:
        return 'not called in the forward pass' + (
            f' (its weight is: by {users})' if users else ''
        )
    kind = None if is_quantizable(module) else _torch_class(module)
    if kind is not None:
        return f'of type {kind.__name__}, which is not supported'
    noun = 'parameter' if isinstance(value, nn.Parameter) else 'buffer'
    if not users:
        return f'a {noun} that the forward pass does not use'
    return f'a {noun} outside of the layers, used by {users}'


def _torch_class(module: nn.Module) -> Optional[type]:
    """Return torch's own class of a module, None if that has no weights."""
    for cls in type(module).__mro__:
        if cls.__module__.startswith('torch.nn.modules.'):
            plain = cls is nn.Module or cls.__module__.endswith('.container')
            return None if plain else cls
    return None


def _find_uses(model: nn.Module, recording: Recording) -> Uses:
    """Find the operations that combine weights with activations.

    A tensor that is computed from weights alone stands for these weights.

    Returns:
        dict: For each name of a weight, the operations and the modules whose
        own code runs them.
    """
    # Names of the weights that the content of each memory comes from.
    sources_of: dict[int, set[str]] = {
        memory_of(value): {name}
        for name, value in [
            *model.named_buffers(),
            *model.named_parameters(),
        ]
    }
    parameters = {name for name, _ in model.named_parameters()}
    uses: Uses = {}
    for operation in recording.operations:
        found = [sources_of.get(value.storage) for value in operation.inputs]
        sources = set().union(*(names or () for names in found))
        # A mask or another buffer counts as the parameter it is applied to.
        sources = sources & parameters or sources
        only_weights = None not in found
        if not only_weights or PRODUCTS.search(operation.name):
            for name in sources:
                uses.setdefault(name, []).append(
                    (operation.name, operation.caller)
                )
        for value in operation.outputs:
            if only_weights:
                sources_of[value.storage] = sources
            else:
                sources_of.pop(value.storage, None)
    return uses
