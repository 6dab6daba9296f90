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
    """Keeps its values under keys and as attributes, as some hubs do."""

    def __init__(self, **values):
        super().__init__(values)
        self.__dict__.update(values)


class Pair(NamedTuple):
    first: Any
    second: Any


class Named(Pair):
    """A named tuple with methods of its own."""


class Boxes(list):
    pass


class Sample:
    """A data sample: an object that holds what it was given."""

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
def test_tensors_are_found_and_put_back(form):
    given = FORMS[form]
    before = [x.clone() for x in tensors(given)]
    doubled = map_tensors(lambda x: x * 2, given)

    assert before
    assert type(doubled) is type(given)
    for new, old, same in zip(tensors(doubled), before, tensors(given)):
        assert torch.equal(new, 2 * old)
        assert torch.equal(same, old)
    assert len(tensors(doubled)) == len(before)


def test_what_is_no_tensor_comes_back_as_it_was():
    sample = Sample(boxes=ONE, name='cat', labels=[3, TWO])
    found, rebuild = flatten(sample)
    back = rebuild(found)
    assert back is not sample and back.boxes is ONE
    assert back.name == 'cat' and back.labels == [3, TWO]


def test_a_value_under_a_key_and_an_attribute_is_one():
    output = map_tensors(lambda x: x + 1, ModelOutput(logits=ONE))
    assert len(tensors(output)) == 1
    assert output['logits'] is output.logits
    assert float(output.logits) == 2


@pytest.mark.parametrize(
    'thing',
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
    ids=lambda thing: type(thing).__name__,
)
def test_what_holds_no_activations_is_left_alone(thing):
    found, rebuild = flatten([thing])
    assert len(found) == 1 and found[0] is thing
    assert rebuild(found)[0] is thing


def test_an_object_that_holds_itself_ends():
    sample = Sample(boxes=ONE)
    sample.me = sample
    assert len(tensors(sample)) == 1


def test_what_rebuilds_holds_no_tensor():
    """Else activations would stay in memory."""
    inner, outer = ONE.clone(), TWO.clone()
    held = [weakref.ref(inner), weakref.ref(outer)]
    rebuild = flatten([Sample(boxes=inner), outer])[1]
    del inner, outer
    gc.collect()

    assert [ref() for ref in held] == [None, None]
    assert tensors(rebuild([ONE, TWO])) == [ONE, TWO]


def test_order_is_that_of_torch():
    nested = dict(b=ONE, a=[TWO, dict(c=1)])
    assert leaves(nested) == [ONE, TWO, 1]


def test_short_numbers_become_wide_and_others_stay():
    exact = torch.ones(2, dtype=torch.float64)
    whole = torch.ones(2, dtype=torch.int64)
    short = torch.ones(2, dtype=torch.bfloat16)
    wide = at_least_float32((short, [whole, dict(x=exact)], None))

    assert wide[0].dtype == torch.float32 and wide[2] is None
    assert wide[1][0] is whole and wide[1][1]['x'] is exact
