"""What of a network is quantized, what stays in float, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Optional

from torch import Tensor, nn

from ..layers import is_quantizable
from .record import Recording, memory_of

#: Operations, by their names in ATen, that layers are made of.
PRODUCTS = re.compile(r'conv|mm|mv|dot|linear|lstm|gru|rnn|attention|embed')

#: Names in a sentence.
SHOWN = 10

Uses = dict[str, list[tuple[str, str]]]


@dataclass
class Account:
    """What of a network is quantized.

    Attributes:
        quantized (list[str]): Names of the layers that are.
        layers (int): Convolutions and linear layers in all.
        left_float (dict[str, str]): Layers and other weights of two
            dimensions or more that are not, and what they are instead.
        products (list[str]): Of these, the layers, and what enters matrix
            products, convolutions and their like; not what is only added.
    """

    quantized: list[str]
    layers: int
    left_float: dict[str, str] = field(default_factory=dict)
    products: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f'{len(self.quantized)} of {self.layers} layers quantized'
        if not self.left_float:
            return text
        left = [f'{name} ({why})' for name, why in self.left_float.items()]
        more = f' and {len(left) - SHOWN} more' if len(left) > SHOWN else ''
        names = ', '.join(left[:SHOWN])
        return f'{text}; {len(left)} left in float: {names}{more}'

    def to_dict(self) -> dict[str, Any]:
        """For reports, as plain Python."""
        return dict(
            summary=str(self),
            quantized=len(self.quantized),
            layers=self.layers,
            left_float=self.left_float,
        )

    def _add(self, name: str, what: str, product: bool) -> None:
        self.left_float.setdefault(name, what)
        if product and name not in self.products:
            self.products.append(name)


def take_account(model: nn.Module, recording: Recording) -> Account:
    """See which weights the operations of a pass take.

    Args:
        model (nn.Module): The float network.
        recording (Recording): A recorded pass of it.
    """
    calls = recording.by_module()
    layers = [m for m in model.modules() if is_quantizable(m)]
    quantized = [m for m in calls if recording.is_layer(m)]
    account = Account([calls[m][0].name for m in quantized], len(layers))
    for module, what in recording.unfit.items():
        account._add(calls[module][0].name, what, True)
    uses = _uses(model, recording)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        path, _, key = name.rpartition('.')
        module = model.get_submodule(path)
        layer = is_quantizable(module) and key == 'weight'
        if value.dim() < 2 or (layer and module in calls):
            continue
        used = uses.get(name, [])
        product = layer or any(PRODUCTS.search(op) for op, _ in used)
        if product or isinstance(value, nn.Parameter):
            whole = layer or (not is_quantizable(module) and _kind(module))
            what = _what(module, layer, value, used)
            account._add(path if whole else name, what, product)
    return account


def _what(
    module: nn.Module,
    layer: bool,
    value: Tensor,
    used: list[tuple[str, str]],
) -> str:
    """What a weight is instead of one that is quantized."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return 'a transposed convolution, which is not supported'
    user = ', '.join(
        f'{op} in {caller or "the network itself"}'
        for op, caller in dict.fromkeys(used)
    )
    if layer:
        return 'not called in the forward pass' + (
            f' (its weight is: by {user})' if user else ''
        )
    kind = None if is_quantizable(module) else _kind(module)
    if kind is not None:
        return f'of type {kind.__name__}, which is not supported'
    noun = 'parameter' if isinstance(value, nn.Parameter) else 'buffer'
    if not user:
        return f'a {noun} that the forward pass does not use'
    return f'a {noun} outside of the layers, used by {user}'


def _kind(module: nn.Module) -> Optional[type]:
    """The class of torch that a module is of, if that has weights."""
    for cls in type(module).__mro__:
        if cls.__module__.startswith('torch.nn.modules.'):
            plain = cls is nn.Module or cls.__module__.endswith('.container')
            return None if plain else cls
    return None


def _uses(model: nn.Module, recording: Recording) -> Uses:
    """The operations that take weights together with activations.

    What is computed from weights alone counts as these weights.

    Returns:
        dict: By the weight's name, the operations and the modules whose own
        code they are in.
    """
    constant: dict[int, Any] = {
        memory_of(value): {name}
        for name, value in [
            *model.named_buffers(),
            *model.named_parameters(),  # A mask counts as what it masks.
        ]
    }
    parameters = {name for name, _ in model.named_parameters()}
    uses: Uses = {}
    for step in recording.steps:
        before = [constant.get(value.storage) for value in step.taken]
        sources = set().union(*(names or () for names in before))
        sources = sources & parameters or sources
        alone = None not in before
        used = not alone or PRODUCTS.search(step.op)
        for name in sources if used else ():
            uses.setdefault(name, []).append((step.op, step.caller))
        for value in step.made:
            if alone:
                constant[value.storage] = sources
            else:
                constant.pop(value.storage, None)
    return uses
