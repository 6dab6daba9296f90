"""Compute what a model with certain bit widths costs on a device."""

from __future__ import annotations

import csv
import json
import math
import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from ..config.safe import check_regular
from ..layers import packed_bytes
from ..registry import TASK_UTILS
from ..targets import FLOAT
from .choices import Choice, choice_of
from .pairwise import Pairwise
from .shapes import LayerShape, ModelShape

#: Bits that a table may have, as text.
BIT_WIDTHS = {str(bits) for bits in (*range(2, 9), 16, FLOAT)}

#: Bits of weight and input of every layer; None is an input in float, or the
#: weight of a product of activations, which has none.
LayerBits = Mapping[str, tuple[Optional[int], Optional[int]]]


class Unmeasured(ValueError):
    """Error: a table lacks the cost of a layer at some bits."""


class CostModel:
    """Cost of layers by their bits; the costs of all layers are added.

    Attributes:
        name (str): Name in budgets.
        units (dict): Units of measure in budgets, and what one of each is
            in the unit of the cost model.

    Example:
        >>> @TASK_UTILS.register_module()
        ... class WideMacs(CostModel):
        ...     name = 'wide_macs'
        ...     units = {'': 1, 'M': 1e6}
        ...
        ...     def layer(self, shape, weight, activation):
        ...         macs = sum(call.macs for call in shape.calls)
        ...         return macs if max(weight, activation) > 4 else 0
    """

    name = ''
    units: Mapping[str, float] = {'': 1.0}

    def layer(self, shape: LayerShape, weight: int, activation: int) -> float:
        """Return the cost of one layer.

        Args:
            shape (LayerShape): The layer.
            weight (int): Bits of its weight.
            activation (int): Bits of its input, 32 for float. A product of
                activations has these bits for both operands.
        """
        raise NotImplementedError

    def rest(self, model: ModelShape) -> float:
        """Return the cost of all that is not quantized.

        Args:
            model (ModelShape): The model.
        """
        return 0.0

    def of(self, model: ModelShape, bits: LayerBits) -> float:
        """Return the cost of a model.

        Args:
            model (ModelShape): The model.
            bits (dict): Bits of weight and input of every layer.
        """
        return self.rest(model) + sum(
            self._layer(shape, *bits[shape.name]) for shape in model.layers
        )

    def _layer(
        self,
        shape: LayerShape,
        weight: Optional[int],
        activation: Optional[int],
    ) -> float:
        """Return the cost of a layer, or of a product of activations."""
        activation = activation or FLOAT
        # Both operands of a product have the same bits.
        return self.layer(shape, weight or activation, activation)

    def pairwise(
        self,
        model: ModelShape,
        bits: LayerBits,
        choices: Sequence[Choice],
        bit_widths: Mapping[str, Sequence[int]],
    ) -> Pairwise:
        """Return the cost as a function of choices.

        Args:
            model (ModelShape): The model.
            bits (dict): Bits of weight and input where there is no choice.
            choices (list[Choice]): The choices.
            bit_widths (dict[str, list[int]]): Bit widths of each choice, by
                its name.
        """
        total = Pairwise(self.rest(model))
        for shape in model.layers:
            weight = choice_of(choices, 'weight', shape.name)
            activation = choice_of(choices, 'activation', shape.name)
            fixed = bits[shape.name]
            if weight and activation:
                for w in bit_widths[weight.name]:
                    for a in bit_widths[activation.name]:
                        total.add_pair(
                            (weight.name, activation.name),
                            (w, a),
                            self.layer(shape, w, a),
                        )
            elif weight:
                for w in bit_widths[weight.name]:
                    total.add(weight.name, w, self._layer(shape, w, fixed[1]))
            elif activation:
                for a in bit_widths[activation.name]:
                    cost = self._layer(shape, fixed[0], a)
                    total.add(activation.name, a, cost)
            else:
                total.constant += self._layer(shape, *fixed)
        return total


@TASK_UTILS.register_module()
class WeightBytes(CostModel):
    """Bytes of all weights and biases, packed, with scales and zero points.

    This is the size in the closing table of a quantization.
    """

    name = 'weight_bytes'
    units = {
        '': 1,
        'B': 1,
        'kB': 1e3,
        'KB': 1e3,
        'MB': 1e6,
        'GB': 1e9,
        'KiB': 2**10,
        'MiB': 2**20,
        'GiB': 2**30,
    }

    def layer(self, shape: LayerShape, weight: int, activation: int) -> float:
        """Return the bytes of a weight; a product of activations has none."""
        if not shape.parameters:
            return 0
        return packed_bytes(shape.parameters, shape.scales, weight)

    def rest(self, model: ModelShape) -> float:
        """Return 4 bytes for every other element."""
        return 4 * model.other_parameters


@TASK_UTILS.register_module()
class BitOperations(CostModel):
    """Bit operations (BOPs) of an image.

    These are multiply-adds, times the bits of weight and activation.
    """

    name = 'bops'
    units = {'': 1, 'k': 1e3, 'K': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12}

    def layer(self, shape: LayerShape, weight: int, activation: int) -> float:
        """Return the bit operations of all calls of a layer."""
        macs = sum(call.macs for call in shape.calls)
        return macs * weight * activation


@TASK_UTILS.register_module()
class LatencyTable(CostModel):
    """Milliseconds of an image, from a table of measured layers.

    The table is a CSV file with the columns of :data:`COLUMNS`, or a JSON
    file with a list of objects of these keys, at its top level or under
    ``rows``; ``tools/measure_latency.py`` writes either. Layers run one
    after the other, so their times are added.

    Args:
        path (str): The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such table.

    Example:
        In a config::

            mixed_precision = dict(
                costs=[dict(type='LatencyTable', path='latency.csv')]
            )
    """

    name = 'latency_ms'
    units = {'': 1, 'ms': 1, 'us': 1e-3, 's': 1e3}
    #: Key of a call, bits of weight and input (32 is float), and time.
    COLUMNS = ('shape', 'weight_bits', 'activation_bits', 'latency_ms')

    def __init__(self, path: str) -> None:
        self.path = path
        self.table = self._read(path)

    def _read(self, path: str) -> dict[tuple[str, int, int], float]:
        """Return milliseconds by key of the call and bits of both."""
        if not osp.isfile(path):
            raise FileNotFoundError(
                f'No latency table at {path!r}: tools/measure_latency.py '
                'makes one'
            )
        table: dict[tuple[str, int, int], float] = {}
        try:
            for row in self._rows(path):
                key, time = self._entry(row)
                if key in table:
                    raise ValueError(
                        f'{key[0]} has two rows for {key[1]} and {key[2]} bits'
                    )
                table[key] = time
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f'{path!r} is no latency table ({error}): expected rows '
                f'with {", ".join(self.COLUMNS)}'
            ) from error
        return table

    def _rows(self, path: str) -> Sequence[Mapping[str, Any]]:
        """Return the rows of a file, not yet checked."""
        check_regular(path, 'a table')
        with open(path, newline='') as file:
            if not path.endswith('.json'):
                return list(csv.DictReader(file))
            content = json.load(file)
        rows = content['rows'] if isinstance(content, dict) else content
        if not isinstance(rows, list):
            raise ValueError(f'its rows are {type(rows).__name__}')
        return rows

    def _entry(
        self, row: Mapping[str, Any]
    ) -> tuple[tuple[str, int, int], float]:
        """Return key and milliseconds of a row.

        Raises:
            ValueError: If a value of the row is out of range.
        """
        shape, weight, activation, time = (row[name] for name in self.COLUMNS)
        if not isinstance(shape, str) or not shape:
            raise ValueError(f'{shape!r:.80} is the shape of no layer')
        for bits in (weight, activation):
            if str(bits) not in BIT_WIDTHS:
                raise ValueError(
                    f'{shape} has a row for {bits!r:.80} bits, expected 2 to '
                    f'8, or {FLOAT} for float'
                )
        key = shape, int(weight), int(activation)
        if time == '':  # As in a template.
            raise ValueError(
                f'{shape} has no time yet: measure it with '
                'tools/measure_latency.py, or fill in its latency_ms'
            )
        value = float('nan') if isinstance(time, bool) else float(time)
        if not 0 <= value < math.inf:
            raise ValueError(
                f'{shape} takes {time!r:.80} ms, expected a finite number, 0 '
                'or more'
            )
        return key, value

    def layer(self, shape: LayerShape, weight: int, activation: int) -> float:
        """Return the milliseconds of all calls of a layer.

        Raises:
            Unmeasured: If the table has no time for one of them.
        """
        total = 0.0
        for call in shape.calls:
            time = self.table.get((call.key, weight, activation))
            if time is None:
                raise Unmeasured(
                    f'{self.path!r} has no time for the layer {shape.name!r} '
                    f'({call.key}) at {weight}-bit weights and {activation}-'
                    'bit input: measure it, or leave that bit width out of '
                    '`mixed_precision.bits`'
                )
            total += time
        return total
