"""An objective that knows how errors add up in what the network says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..activations import CachedBatches, CachedTensor, Store
from ..functional import tensors, weighted_squared_error
from ..graph import Unit
from ..registry import TASK_UTILS
from ..runtime.distributed import gather_rows, local_share, sum_over_processes
from ..validation import Amount, Count, Exponent
from .base import takes_low_precision
from .fisher import Fisher
from .gradients import OutputKey
from .likelihood import LikelihoodConfig


@TASK_UTILS.register_module()
class FisherLowRank(Fisher):
    """The Fisher information of few images, shrunk towards its diagonal.

    Errors of several elements make up for each other in what the network
    says, or add up: the diagonal knows nothing of it. Of a whole matrix
    that few images estimate, most is chance. So the error counts by a mean
    of both (Ledoit and Wolf, 2004; Schaefer and Strimmer, 2005), the matrix
    being that of its largest eigenvalues (diagonal and low rank as in
    FIMA-Q, Wu et al., CVPR 2025). The matrix has the share

        r e^2 / (e^2 + even^2)

    of the error that nearest rounding makes, and the diagonal the rest.
    Here ``r`` is the share of images' gradients that the eigenvectors of
    other images explain (cross-validated): of ten classes most, of a
    thousand next to nothing, and what the eigenvectors do not explain is
    left to the diagonal. And ``e`` is the error of nearest rounding, as a
    share of the output's energy, both under the diagonal: small errors
    soon fit what is chance in the matrix. The scale is that of
    :class:`FisherDiag`.

    A gradient of each image is held at each unit's output until the unit
    begins: for 256 images of 224 pixels 1.6 GB in all for ResNet-18 and
    6.5 GB for ResNet-50, within the budget of the calibration's memory.

    Args:
        even (float): The ``e`` at which matrix and diagonal count the
            same, if it explains all. With 0 errors of any size count alike.
        rank (int): Eigenvectors, at the most: of outputs of more than
            131,072 elements fewer, so that they take no more memory.
        temper (float): Exponent of the diagonal's elements, and of the
            eigenvalues, before they are normalised.
        images (int): Images that the matrix is estimated from.
        likelihood (dict): The teacher's loss: by default the form of its
            outputs tells, with classes at a temperature of 4; ``Gaussian``
            where it regresses.

    Raises:
        ValueError: If ``even`` or ``temper`` is negative or no finite
            number, or ``rank`` or ``images`` below 1.
    """

    #: Numbers that the eigenvectors of one output may have, and the
    #: gradients that are looked at together.
    room = 2**22

    def __init__(
        self,
        even: Amount = 0.08,
        rank: Count = 32,
        temper: Exponent = 0.5,
        images: Count = 256,
        likelihood: Optional[LikelihoodConfig] = None,
    ) -> None:
        classes = dict(type='CategoricalSketch', temperature=4.0)
        super().__init__(
            likelihood or dict(type='FromOutput', classes=classes)
        )
        self.even = even
        self.rank = rank
        self.temper = temper
        self.images = images
        self.store = Store()
        self.gradients: dict[OutputKey, CachedTensor] = {}
        self.directions: dict[OutputKey, Tensor] = {}
        #: Shares of images' gradients that directions of others explain.
        self.explained: dict[OutputKey, float] = {}
        #: The directions in the type of the outputs that units learn with.
        self.short: dict[OutputKey, Tensor] = {}

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: CachedBatches,
        generator: torch.Generator,
    ) -> None:
        """Gather each image's gradient at all units in one pass."""
        count = min(local_share(self.images), len(images))
        for held in self._held():
            held.clear()
        self.store = images.store

        def collect(place: OutputKey, which: slice, grad: Tensor) -> None:
            fold, rest = divmod(grad.shape[0], which.stop - which.start)
            if rest or not grad.numel():  # of no image: counts evenly
                return
            if place not in self.gradients:
                self.gradients[place] = self.store.allocate(count, grad, fold)
            self.gradients[place].write(which.start, grad)

        self._gradients(teacher, units, images, generator, collect, count)

    def begin(
        self, unit: Unit, outputs: Iterable[Any], targets: Iterable[Any]
    ) -> None:
        """Look for the eigenvectors, and for the error along them."""
        places = [p for p in self.gradients if p[0] == unit.name]
        for place in places:
            self._decompose(place, self.gradients.pop(place))
        self.store.release_freed_memory()
        known = [place for place in places if place in self.directions]
        if known:
            self._balance(known, outputs, targets)

    def end(self, unit: Unit) -> None:
        """Let go of the unit's gradients, weights and directions."""
        for held in self._held():
            for place in [p for p in held if p[0] == unit.name]:
                del held[place]

    def _held(self) -> tuple[dict[OutputKey, Any], ...]:
        held = self.gradients, self.weights, self.directions
        return *held, self.short, self.explained

    def _decompose(self, place: OutputKey, column: CachedTensor) -> None:
        """Weights and directions from the gradients of all processes."""
        gram = torch.zeros(1, 1, dtype=torch.float64)
        squares = torch.empty(1, column.elements, device=column.device)
        for part, piece in self._pieces(column):
            gram = gram + (piece @ piece.T).cpu().double()
            squares[0, part] = piece.square().mean(0).to(squares)
        diagonal = column.from_elements(squares)
        diagonal = diagonal.mean(0, keepdim=True).pow(self.temper)
        if not (0 < gram.trace() < math.inf and diagonal.mean() > 0):
            return
        gram /= len(gram)
        rank = max(1, min(self.rank, self.room // column.elements))
        self.explained[place] = _explained(gram, rank)
        values, vectors = _largest(gram, rank)
        lengths = values.pow(self.temper)
        lengths /= lengths.sum()
        mix = (vectors * (lengths / (values * len(gram))).sqrt()).T
        mix = mix.to(diagonal)
        axes = torch.empty(len(mix), column.elements).to(diagonal)
        for part, piece in self._pieces(column):
            axes[:, part] = mix @ piece
        self.directions[place] = column.from_elements(axes).unflatten(
            0, (-1, column.rows_per_image)
        )
        self.weights[place] = diagonal / diagonal.mean()

    def _pieces(self, column: CachedTensor) -> Iterator[tuple[slice, Tensor]]:
        """All images' gradients, as many elements at a time everywhere.

        What is made of them lies in one tensor from the beginning: small
        ones would settle in the gaps that the pieces leave.
        """
        start = 0
        for piece in column.pieces(max(1, self.room // self.images)):
            part = slice(start, start := start + piece.shape[1])
            wide = torch.promote_types(piece.dtype, torch.float32)
            yield part, gather_rows(piece.to(wide))

    def _balance(
        self,
        places: Sequence[OutputKey],
        outputs: Iterable[Any],
        targets: Iterable[Any],
    ) -> None:
        """Give both parts their shares of the error of nearest rounding.

        Such errors have an offset in common, and so have the gradients of
        many images: the matrix finds 2 to 40 times as much in them as the
        diagonal does.
        """
        found = {place: torch.zeros(3) for place in places}
        seen, targets = 0, iter(targets)
        # What `zip` gives, it holds until it has the next.
        for output in outputs:
            target = next(targets)
            for place in places:
                out, goal = (tensors(x)[place[1]] for x in (output, target))
                images = len(out) // self.directions[place].shape[1]
                found[place] += images * self._errors(place, out, goal)
            del output, target, out, goal
            seen += images
            if seen >= local_share(self.images):
                break
        for place, sums in found.items():
            diagonal, low, energy = sum_over_processes(sums).tolist()
            if 0 < low < math.inf and diagonal > 0:
                square, even = diagonal * diagonal, self.even * energy
                matrix = square / (square + even * even)
                matrix *= self.explained[place]
                ratio = diagonal / low
            else:  # There is nothing to balance.
                matrix, ratio = float(not self.even), 1.0
            self.weights[place] = (1 - matrix) * self.weights[place]
            self.directions[place] *= (matrix * ratio) ** 0.5

    def _errors(
        self, place: OutputKey, output: Tensor, target: Tensor
    ) -> Tensor:
        """By the diagonal, along the directions, and of no output at all."""
        weight, axes = self.weights[place], self.directions[place]
        errors = [
            weighted_squared_error(output, target, weight),
            weighted_squared_error(output, target, 0 * weight, axes),
            weighted_squared_error(0 * target, target, weight),
        ]
        return torch.stack(errors).cpu()

    @takes_low_precision
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """See :func:`mmrazor_brecq.functional.weighted_squared_error`."""
        place = unit.name, i
        return weighted_squared_error(
            output,
            target,
            self._weight(place, index, output),
            self._directions_in(output.dtype, place),
        )

    def _directions_in(
        self, dtype: torch.dtype, place: OutputKey
    ) -> Optional[Tensor]:
        """Those of an output, in its type, to which they go only once."""
        known = self.directions.get(place)
        if known is None or known.dtype == dtype:
            return known
        if place not in self.short or self.short[place].dtype != dtype:
            self.short[place] = known.to(dtype)
        return self.short[place]


def _largest(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues of a Gram matrix and their vectors."""
    values, vectors = torch.linalg.eigh(gram)
    largest = (values > values[-1] * 1e-6).nonzero()[:, 0][-rank:]
    return values[largest], vectors[:, largest]


def _explained(gram: Tensor, rank: int, folds: int = 4) -> float:
    """Return the share of gradients that other images explain.

    It is cross-validated: the images of each fold are compared with the
    leading directions of all others.

    Args:
        gram (Tensor): N x N, inner products of the images' gradients.
        rank (int): Directions, at the most.
        folds (int): Parts that the images are cut into.

    Returns:
        float: Of the squared gradients, 0 to 1; of a single image 0.
    """
    found, fold = 0.0, torch.arange(len(gram)) % folds
    for part in fold.unique() if len(gram) > 1 else ():
        others = fold != part
        values, vectors = _largest(gram[others][:, others], rank)
        along = gram[~others][:, others] @ (vectors / values.sqrt())
        found += float(along.square().sum())
    return found / float(gram.trace())
