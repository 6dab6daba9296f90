"""Cost models: what a model with certain widths takes of a device."""

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
from .choices import Choice, choice_of
from .pairwise import Pairwise
from .shapes import LayerShape, ModelShape

#: Width that stands for activations in float.
FLOAT = 32

#: BitWidths that a table may have, as text.
BIT_WIDTHS = {str(bits) for bits in (*range(2, 9), FLOAT)}

#: Bits of weight and input of every layer; None is float.
LayerBits = Mapping[str, tuple[int, Optional[int]]]


class Unmeasured(ValueError):
    """A table lacks what a layer costs at some widths."""


class CostModel:
    """What layers cost by their widths; costs of layers add up.

    Attributes:
        name (str): How a budget names it.
        units (dict): Units of measure of a budget, by what one of them is
            in the model's own.
    """

    name = ''
    units: Mapping[str, float] = {'': 1.0}

    def layer(self, shape: LayerShape, weight: int, activation: int) -> float:
        """The cost of one layer.

        Args:
            shape (LayerShape): The layer.
            weight (int): Width of its weight.
            activation (int): Width of its input, 32 for float.
        """
        raise NotImplementedError

    def rest(self, model: ModelShape) -> float:
        """The cost of all that is not quantized."""
        return 0.0

    def of(self, model: ModelShape, bits: LayerBits) -> float:
        """The cost of a whole model.

        Args:
            model (ModelShape): The model.
            bits (dict): Bits of weight and input of every layer.
        """
        return self.rest(model) + sum(
            self.layer(
                shape, bits[shape.name][0], bits[shape.name][1] or FLOAT
            )
            for shape in model.layers
        )

    def pairwise(
        self,
        model: ModelShape,
        bits: LayerBits,
        choices: Sequence[Choice],
        widths: Mapping[str, Sequence[int]],
    ) -> Pairwise:
        """The cost as a function of choices.

        Args:
            model (ModelShape): The model.
            bits (dict): Bits of weight and input where there is no choice.
            choices (list[Choice]): The choices.
            widths (dict[str, list[int]]): The widths of each choice.
        """
        total = Pairwise(self.rest(model))
        for shape in model.layers:
            weight = choice_of(choices, 'weight', shape.name)
            activation = choice_of(choices, 'activation', shape.name)
            fixed = bits[shape.name][0], bits[shape.name][1] or FLOAT
            if weight and activation:
                for w in widths[weight.name]:
                    for a in widths[activation.name]:
                        total.add_pair(
                            (weight.name, activation.name),
                            (w, a),
                            self.layer(shape, w, a),
                        )
            elif weight:
                for w in widths[weight.name]:
                    total.add(weight.name, w, self.layer(shape, w, fixed[1]))
            elif activation:
                for a in widths[activation.name]:
                    cost = self.layer(shape, fixed[0], a)
                    total.add(activation.name, a, cost)
            else:
                total.constant += self.layer(shape, *fixed)
        return total


@TASK_UTILS.register_module()
class WeightBytes(CostModel):
    """Bytes of all weights and biases, packed, with their steps.

    The number that the closing table of a quantization shows.
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
        """Bytes of the weight."""
        return packed_bytes(shape.parameters, shape.steps, weight)

    def rest(self, model: ModelShape) -> float:
        """4 bytes for every other number."""
        return 4 * model.other_parameters


@TASK_UTILS.register_module()
class BitOperations(CostModel):
    """Bit operations (BOPs) of one image: MACs times both widths."""

    name = 'bops'
    units = {'': 1, 'k': 1e3, 'K': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12}

    def layer(self, shape: LayerShape, weight: int, activation: int) -> float:
        """BOPs of all its calls."""
        macs = sum(call.macs for call in shape.calls)
        return macs * weight * activation


@TASK_UTILS.register_module()
class LatencyTable(CostModel):
    """Milliseconds of one image, from a table that a device was measured for.

    The table is a CSV file with the columns of :data:`COLUMNS`, or a JSON
    file with a list of objects of these keys, itself or under ``rows``;
    ``tools/measure_latency.py`` writes either. Layers run one after the
    other, so their times add up.

    Args:
        path (str): The file.
    """

    name = 'latency_ms'
    units = {'': 1, 'ms': 1, 'us': 1e-3, 's': 1e3}
    #: Work of a call, widths of weight and input (32 is float), and time.
    COLUMNS = ('shape', 'weight_bits', 'activation_bits', 'latency_ms')

    def __init__(self, path: str) -> None:
        self.path = path
        self.table = self._read(path)

    def _read(self, path: str) -> dict[tuple[str, int, int], float]:
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

    def _rows(self, path: str) -> list[Any]:
        check_regular(path, 'a table')
        with open(path, newline='') as file:
            if not path.endswith('.json'):
                return list(csv.DictReader(file))
            content = json.load(file)
        rows = content['rows'] if isinstance(content, dict) else content
        if not isinstance(rows, list):
            raise ValueError(f'its rows are {type(rows).__name__}')
        return rows

    def _entry(self, row: Any) -> tuple[tuple[str, int, int], float]:
        """Work, widths and milliseconds of a row, if they make sense."""
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
        if time == '':  # A template that is not filled in yet.
            raise ValueError(f'{shape} has no time yet')
        value = float('nan') if isinstance(time, bool) else float(time)
        if not 0 <= value < math.inf:
            raise ValueError(
                f'{shape} takes {time!r:.80} ms, expected a finite number, 0 '
                'or more'
            )
        return key, value

    def layer(self, shape: LayerShape, weight: int, activation: int) -> float:
        """Milliseconds of all its calls.

        Raises:
            Unmeasured: If the table has no time for it.
        """
        total = 0.0
        for call in shape.calls:
            time = self.table.get((call.key, weight, activation))
            if time is None:
                raise Unmeasured(
                    f'{self.path!r} has no time for the layer {shape.name!r} '
                    f'({call.key}) at {weight}-bit weights and {activation}-'
                    'bit input: measure it, or leave that width out of '
                    '`mixed_precision.bits`'
                )
            total += time
        return total
