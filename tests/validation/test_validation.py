"""Arguments are validated by the annotations of their constructor."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union

import numpy as np
import pytest
from pydantic import AfterValidator, Field

from mmrazor_brecq.objectives import MSE, FisherLowRank
from mmrazor_brecq.quantizers import LpObserver, WeightQuantizer
from mmrazor_brecq.reconstruction import BlockReconstructor, NetworkRefiner
from mmrazor_brecq.registry import MODELS, TASK_UTILS
from mmrazor_brecq.validation import (
    Config,
    Count,
    Fraction,
    KeyPath,
    Seed,
    option,
    validate,
    validated,
)

if TYPE_CHECKING:
    from somewhere import Unknown

KEY = KeyPath('top.key', 'Owner')


def _even(value):
    if value % 2:
        raise ValueError('an even number')
    return value


@pytest.mark.parametrize(
    ('hint', 'values'),
    [
        (int, [0, -3, np.int64(2)]),
        (float, [0.5, 1, np.float32(0.5), float('inf')]),
        (bool, [True, np.bool_(False)]),
        (str, ['', 'a']),
        (Any, [None, object()]),
        (Count, [1, 10**9]),
        (Seed, [0, 2**32 - 1]),
        (Fraction, [0, 1, 0.5]),
        (Optional[int], [None, 3]),
        (Union[int, str], [3, '3']),
        (Literal['a', 3], ['a', 3]),
        (tuple[float, float], [(1, 2), [1.0, 2.0]]),
        (tuple, [(1,), [1, 2]]),
        (list[int], [[1], (1, 2)]),
        (Sequence[str], [['a'], ('b', 'c'), []]),
        (Mapping[str, Count], [{'a': 1}, {}]),
        (dict[str, Any], [{'a': None}]),
        (Annotated[int, AfterValidator(_even)], [2, 0]),
        (object, [1, None]),
    ],
)
def test_values_of_the_declared_type_are_taken(hint, values):
    for value in values:
        assert validate(value, hint, KEY) is not NotImplemented


@pytest.mark.parametrize(
    ('hint', 'values', 'expected'),
    [
        (int, [True, '3', 3.0, None, np.float64(3), np.True_], 'whole number'),
        (float, [True, '3', None, 1j], 'a number'),
        (bool, [1, 'no', None, 0.0], 'True or False'),
        (str, [1, None, b'a'], 'a string'),
        (Count, [0, -1, True, 2.0, '2', 10**30], 'from 1 to 1,000,000,000'),
        (Seed, [-1, 2**32, 0.5], 'from 0 to 4,294,967,295'),
        (
            Fraction,
            [-0.1, 1.1, float('nan'), float('inf')],
            'number from 0 to 1',
        ),
        (Optional[int], ['no', 2.5], 'a whole number or None'),
        (Literal['a', 'b'], ['c', None], "'a' or 'b'"),
        (tuple[float, float], [(1,), 3, (1, '2'), [1, 2, 3]], '2 values'),
        (Sequence[str], ['abc', 3, None], 'a list, each item a string'),
        (Mapping[str, int], [[], 3], 'a dict with values of a whole number'),
        (Annotated[int, AfterValidator(_even)], [3, 1], 'an even number'),
        (Annotated[int, Field(description='a prime')], ['3'], 'a prime'),
        (Annotated[float, Field(gt=0, lt=1)], [0, 1], 'above 0 and below 1'),
        (LpObserver, [3, LpObserver], 'a LpObserver'),
    ],
)
def test_values_of_another_type_are_refused_in_one_line(
    hint, values, expected
):
    for value in values:
        with pytest.raises(ValueError) as info:
            validate(value, hint, KEY)
        message = str(info.value)
        assert message.startswith('top.key=') and expected in message
        assert message.endswith(': change `key` of Owner')
        assert '\n' not in message


@pytest.mark.parametrize(
    ('hint', 'value', 'path'),
    [
        (Sequence[int], [1, 'a'], 'top.key[1]='),
        (Mapping[str, int], {'a': 1, 'b': None}, "top.key['b']="),
        (Optional[Sequence[Count]], [1, 0], 'top.key[1]=0'),
        (Union[int, dict[str, Count]], {'a': 0}, "top.key['a']=0"),
    ],
)
def test_the_path_leads_to_the_wrong_item(hint, value, path):
    with pytest.raises(ValueError) as info:
        validate(value, hint, KEY)
    assert str(info.value).startswith(path)


def test_long_values_are_shortened():
    with pytest.raises(ValueError) as info:
        validate(np.zeros((30, 30)), int, KEY)
    assert 'a ndarray of shape (30, 30), expected' in str(info.value)
    with pytest.raises(ValueError) as info:
        validate('x' * 500, int, KEY)
    assert len(str(info.value)) < 200


def test_a_name_stands_for_a_config():
    learner = BlockReconstructor(objective='MSE', refiner='NetworkRefiner')
    assert type(learner.objective) is MSE
    assert type(learner.refiner) is NetworkRefiner
    assert len(NetworkRefiner(augment=['CutMix']).augment) == 1
    quantizer = WeightQuantizer(4, observer='LpObserver', rounding='Nearest')
    assert quantizer.rounding_cfg == dict(type='Nearest')
    assert type(TASK_UTILS.build('MSE')) is MSE


def test_keys_are_validated_before_anything_is_built():
    with pytest.raises(
        ValueError, match=r'^objective\.likelihood\.temperature=0, expected'
    ):
        BlockReconstructor(
            objective=dict(
                type='FisherLowRank',
                likelihood=dict(type='Categorical', temperature=0),
            )
        )


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='FisherLowRnk'), "did you mean 'FisherLowRank'"),
        (dict(type='fisherlowrank'), "did you mean 'FisherLowRank'"),
        (dict(type='CutMix'), 'objective.type=.CutMix., expected one of MSE'),
        (dict(type='os.system'), 'objective.type'),
        (dict(type=MSE(), x=1), 'objective.type'),
        (dict(type='MSE', rank=3), 'rank is an unknown key: MSE takes no'),
        (dict(type='FisherLowRank', rnk=3), "did you mean 'rank'"),
        (dict(rank=3), 'objective lacks `type`'),
        ({}, 'objective lacks `type`'),
        (3, 'objective=3, expected a dict with `type`'),
        ([], r'objective=\[\], expected a dict'),
        (MSE, 'objective=the class MSE, expected a dict'),
    ],
)
def test_wrong_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        BlockReconstructor(objective=config)


def test_a_class_may_be_given_instead_of_its_name():
    learner = BlockReconstructor(objective=dict(type=FisherLowRank, rank=3))
    assert learner.objective.rank == 3


@pytest.fixture
def registered():
    """Return a decorator that registers classes for one test."""
    before = dict(TASK_UTILS.module_dict)
    yield TASK_UTILS.register_module()
    TASK_UTILS._module_dict.clear()
    TASK_UTILS._module_dict.update(before)


def test_a_custom_objective_is_validated_by_its_annotations(registered):
    @registered
    class Leaky(MSE):
        def __init__(self, delta: float = 1.0, name: Optional[str] = None):
            self.delta = delta

    assert BlockReconstructor(objective=dict(type='Leaky', delta=2))
    for delta in True, 'a', None:
        with pytest.raises(ValueError, match='objective.delta=.*a number'):
            BlockReconstructor(objective=dict(type='Leaky', delta=delta))
        with pytest.raises(ValueError, match='^delta=.*`delta` of Leaky'):
            Leaky(delta)
    with pytest.raises(ValueError, match="did you mean 'delta'"):
        Leaky(dleta=2)


def test_a_custom_part_without_annotations_works(registered):
    @registered
    class Plain(MSE):
        def __init__(self, delta=1.0, *rest, **more):
            self.given = delta, rest, more

    assert Plain('x', 2, other=3).given == ('x', (2,), dict(other=3))
    assert TASK_UTILS.build(dict(type='Plain', delta=[])).given[0] == []


def test_a_custom_observer_needs_no_base_class(registered):
    @registered
    class Widest:
        def __call__(self, values, grid):
            return grid.fit(values.amin(1), values.amax(1))

    quantizer = WeightQuantizer(3, observer=dict(type='Widest'))
    assert type(quantizer.observer) is Widest


def test_annotations_that_cannot_be_evaluated_are_ignored(registered):
    @registered
    class Odd(MSE):
        def __init__(self, a: Unknown = 1, b: 'no such' = 2, c: int = None):  # noqa: F722
            self.given = a, b, c

    assert Odd('x', [], None).given == ('x', [], None)
    with pytest.raises(ValueError, match='^c='):
        Odd(c='x')


def test_keys_passed_to_a_base_class_are_validated_there(registered):
    @registered
    class Mine(FisherLowRank):
        def __init__(self, extra: int = 1, **kwargs):
            super().__init__(**kwargs)

    assert Mine(rank=3).rank == 3
    with pytest.raises(ValueError, match='^rank=0'):
        Mine(rank=0)
    with pytest.raises(ValueError, match="did you mean 'rank'"):
        Mine(rnk=3)


def test_a_function_is_validated_like_a_class():
    @validated
    def call(count: Count, *rest: int, share: Fraction = 0.5, **more: Any):
        """Count."""
        return count, rest, share, more

    assert call(1, 2, share=0.1, x=2) == (1, (2,), 0.1, dict(x=2))
    assert call.__doc__ == 'Count.' and call.__name__ == 'call'
    with pytest.raises(ValueError, match='^count=0.*`count` of call'):
        call(0)
    with pytest.raises(TypeError, match='count'):
        call()
    with pytest.raises(TypeError, match='multiple values'):
        call(1, count=2)


@validated
@dataclass
class Base:
    count: Count = 1


@validated
@dataclass
class Derived(Base):
    part: Annotated[dict, Config(MSE, TASK_UTILS)] = field(
        default_factory=lambda: dict(type='MSE')
    )


def test_inherited_fields_of_a_dataclass_are_validated():
    assert Derived(3, 'MSE').part == dict(type='MSE')
    with pytest.raises(ValueError, match='^count=0.*`count` of Derived'):
        Derived(count=0)
    with pytest.raises(ValueError, match='part.type'):
        Derived(part='MSF')
    assert pickle.loads(pickle.dumps(Derived(3))) == Derived(3)


def test_validated_classes_keep_their_signature():
    import inspect

    names = list(inspect.signature(WeightQuantizer).parameters)
    assert names[:2] == ['out_channels', 'bits']
    built = MODELS.build(dict(type='WeightQuantizer', out_channels=2, bits=3))
    assert built.grid.bits == 3


@pytest.mark.parametrize('text', ['0', '-1', '1.0', 'x', 'True', '', '1e3'])
def test_a_wrong_option_raises_the_error_of_argparse(text):
    with pytest.raises(argparse.ArgumentTypeError, match='expected a whole'):
        option(Count)(text)
    assert option(Count)('7') == 7
    assert option(Fraction)('1') == 1
    assert option(Union[Literal['dynamic'], Count])('dynamic') == 'dynamic'
