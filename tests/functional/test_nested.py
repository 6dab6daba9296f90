from __future__ import annotations

import dataclasses
import enum
import gc
import weakref
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from mmrazor_brecq.functional import (
    at_least_float32,
    flatten,
    leaves,
    map_tensors,
    tensors,
)

ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0])


@dataclasses.dataclass
class Plain:
    logits: Any
    loss: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    logits: Any


@dataclasses.dataclass
class Slotted:
    __slots__ = ('logits', 'count')
    logits: Any
    count: int


class ModelOutput(OrderedDict):
    """A dict whose values are attributes, too, as in transformers."""

    def __init__(self, **values):
        super().__init__(values)
        self.__dict__.update(values)


class Pair(NamedTuple):
    first: Any
    second: Any


class Named(Pair):
    """A subclass of a named tuple."""


class Boxes(list):
    pass


class Sample:
    """A data sample: an object with any attributes."""

    def __init__(self, **values):
        self.__dict__.update(values)


FORMS = dict(
    tensor=ONE,
    nested=[ONE, dict(a=(TWO, None)), 'text'],
    dataclass=Plain(ONE, TWO),
    empty_field=Plain(ONE),
    frozen=Frozen([ONE, TWO]),
    slots=Slotted(ONE, 3),
    model_output=ModelOutput(logits=ONE, hidden=(TWO,)),
    named=Pair(ONE, 2),
    named_subclass=Named(ONE, TWO),
    list_subclass=Boxes([ONE, 2]),
    sample=Sample(boxes=ONE, labels=[TWO], name='cat'),
    samples=[Sample(boxes=ONE), Sample(boxes=TWO)],
    distribution=torch.distributions.Normal(ONE, TWO),
    result=torch.max(torch.eye(2), 1),
)


@pytest.mark.parametrize('form', FORMS)
def test_tensors_are_found_and_replaced(form):
    given = FORMS[form]
    before = [x.clone() for x in tensors(given)]
    doubled = map_tensors(lambda x: x * 2, given)

    assert before
    assert type(doubled) is type(given)
    for new, old, same in zip(tensors(doubled), before, tensors(given)):
        assert torch.equal(new, 2 * old)
        assert torch.equal(same, old)
    assert len(tensors(doubled)) == len(before)


def test_other_values_are_rebuilt_unchanged():
    sample = Sample(boxes=ONE, name='cat', labels=[3, TWO])
    found, rebuild = flatten(sample)
    back = rebuild(found)
    assert back is not sample and back.boxes is ONE
    assert back.name == 'cat' and back.labels == [3, TWO]


def test_a_value_that_is_item_and_attribute_counts_once():
    output = map_tensors(lambda x: x + 1, ModelOutput(logits=ONE))
    assert len(tensors(output)) == 1
    assert output['logits'] is output.logits
    assert float(output.logits) == 2


@pytest.mark.parametrize(
    'value',
    [
        None,
        3,
        'text',
        nn.Linear(2, 2),
        Sample(name='cat'),
        enum.Enum('Mode', 'tensor'),
        torch.Generator(),
        Plain,
        torch.float32,
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_without_tensors_are_not_opened(value):
    found, rebuild = flatten([value])
    assert len(found) == 1 and found[0] is value
    assert rebuild(found)[0] is value


def test_an_object_that_contains_itself_is_opened_once():
    sample = Sample(boxes=ONE)
    sample.me = sample
    assert len(tensors(sample)) == 1


def test_the_function_that_rebuilds_keeps_no_tensor_alive():
    """It would keep activations in memory."""
    inner, outer = ONE.clone(), TWO.clone()
    references = [weakref.ref(inner), weakref.ref(outer)]
    rebuild = flatten([Sample(boxes=inner), outer])[1]
    del inner, outer
    gc.collect()

    assert [ref() for ref in references] == [None, None]
    assert tensors(rebuild([ONE, TWO])) == [ONE, TWO]


def test_leaves_have_the_order_of_torch():
    nested = dict(b=ONE, a=[TWO, dict(c=1)])
    assert leaves(nested) == [ONE, TWO, 1]


def test_low_precision_tensors_become_float32_and_others_stay():
    exact = torch.ones(2, dtype=torch.float64)
    whole = torch.ones(2, dtype=torch.int64)
    low = torch.ones(2, dtype=torch.bfloat16)
    converted = at_least_float32((low, [whole, dict(x=exact)], None))

    assert converted[0].dtype == torch.float32 and converted[2] is None
    assert converted[1][0] is whole and converted[1][1]['x'] is exact
