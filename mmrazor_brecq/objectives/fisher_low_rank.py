"""Squared errors weighted by a Fisher matrix: low rank plus diagonal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from ..activations import CachedBatches, CachedTensor, Store
from ..functional import Nested, tensors, weighted_squared_error
from ..graph import Unit
from ..registry import TASK_UTILS
from ..runtime.distributed import (
    gather_rows,
    local_share,
    sum_over_processes,
)
from ..validation import Amount, Count, Exponent
from .base import takes_low_precision
from .fisher import Fisher
from .gradients import OutputKey
from .gram import explained_fraction, largest_eigenvectors
from .likelihood import LikelihoodConfig


@TASK_UTILS.register_module()
class FisherLowRank(Fisher):
    """Error under the Fisher matrix, mixed with its diagonal.

    Let ``e`` be the error of a unit's output for one image, a vector of D
    elements, and ``g_1 ... g_N`` the gradients of the float network's loss
    at that output for N images. To second order the loss grows by
    ``e^T F e / 2`` with the Fisher matrix ``F = (1/N) sum_n g_n g_n^T``.
    :class:`FisherDiag` keeps the diagonal of ``F`` only. It cannot see that
    errors of several elements cancel, or add up, in the network's output.
    The whole matrix can, but N images do not determine D x D numbers: most
    of the estimate is noise. This objective mixes the two (shrinkage, Ledoit
    and Wolf, 2004; Schaefer and Strimmer, 2005)::

        error(e) = (1 - share) * e^T diag(w) e + share * c * e^T L e

    - ``w`` are the weights of :class:`FisherDiag`.
    - ``L = sum_r lambda_r q_r q_r^T`` has the ``rank`` largest eigenvalues
      ``lambda_r`` of ``F``, raised to the power ``temper``, and their
      eigenvectors ``q_r`` (diagonal and low rank as in FIMA-Q, Wu et al.,
      CVPR 2025).
    - ``c`` scales the matrix so that both parts are equal for the error that
      nearest rounding makes.
    - ``share = r * d^2 / (d^2 + even^2)`` says how far the matrix can be
      trusted. ``r`` is the fraction of a gradient that the eigenvectors of
      other images explain, by cross-validation: nearly 1 for ten classes,
      and close to 0 for a thousand. ``d`` is the error of nearest rounding
      over the energy of the output, both under the diagonal: a unit with a
      small error soon fits the noise in ``L``.

    One gradient of each image is cached for each unit until the unit begins,
    within the budget of the calibration's memory. For 256 images of 224 x
    224 pixels these are 1.6 GB for ResNet-18 and 6.5 GB for ResNet-50.

    Args:
        even (float): The relative error ``d`` at which matrix and diagonal
            count the same if ``r`` is 1. With 0 the share is ``r``.
        rank (int): Number of eigenvectors, 1 or more. Outputs of more than
            131,072 elements have fewer, to bound the memory.
        temper (float): Exponent of the diagonal's elements and of the
            eigenvalues, 0 to 10.
        images (int): Number of images N for the estimate.
        likelihood (dict): The loss that is differentiated. By default
            :class:`FromOutput` chooses it, with a temperature of 4 for
            classes; use ``Gaussian`` for a network that regresses.

    Raises:
        ValueError: If ``even`` or ``temper`` is negative or not finite, or
            ``rank`` or ``images`` is below 1.

    Example:
        >>> reconstructor = dict(
        ...     type='BlockReconstructor',
        ...     objective=dict(type='FisherLowRank', rank=32, images=256),
        ... )
    """

    #: Maximum number of elements of the eigenvectors of one output, and of
    #: the gradients that are processed at a time.
    max_elements = 2**22

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
        #: Gradients of units that have not begun, N x D for each output.
        self.gradients: dict[OutputKey, CachedTensor] = {}
        #: Eigenvectors times the root of their share of the error, R x 1 x D:
        #: the matrix is the sum of their outer products.
        self.directions: dict[OutputKey, Tensor] = {}
        #: Fractions of gradients that directions of other images explain.
        self.explained: dict[OutputKey, float] = {}
        #: The directions in the type that the unit learns in.
        self.cast_directions: dict[OutputKey, Tensor] = {}

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: CachedBatches,
        generator: torch.Generator,
    ) -> None:
        """Cache each image's gradient at all units in one pass."""
        count = min(local_share(self.images), len(images))
        for cache in self._caches():
            cache.clear()
        self.store = images.store

        def collect(key: OutputKey, which: slice, grad: Tensor) -> None:
            fold, rest = divmod(grad.shape[0], which.stop - which.start)
            if rest or not grad.numel():  # Its rows belong to no image.
                return
            if key not in self.gradients:
                self.gradients[key] = self.store.allocate(count, grad, fold)
            self.gradients[key].write(which.start, grad)

        self._gradients(teacher, units, images, generator, collect, count)

    def prepare(self, unit: Unit) -> None:
        """Compute weights and eigenvectors, which are not balanced yet."""
        for key in [key for key in self.gradients if key[0] == unit.name]:
            self._decompose(key, self.gradients.pop(key))
        self.store.release_freed_memory()

    def begin(
        self,
        unit: Unit,
        outputs: Iterable[Nested],
        targets: Iterable[Nested],
    ) -> None:
        """Balance matrix and diagonal."""
        self.prepare(unit)
        decomposed = [key for key in self.directions if key[0] == unit.name]
        if decomposed:
            self._balance(decomposed, outputs, targets)

    def end(self, unit: Unit) -> None:
        """Free the gradients, weights and directions of a unit."""
        for cache in self._caches():
            for key in [key for key in cache if key[0] == unit.name]:
                del cache[key]

    def _caches(self) -> tuple[dict, ...]:
        return (
            self.gradients,
            self.weights,
            self.directions,
            self.cast_directions,
            self.explained,
        )

    def _decompose(self, key: OutputKey, cached: CachedTensor) -> None:
        """Compute weights and directions from the gradients of an output.

        D is far larger than N, so the D x D matrix ``F = G^T G / N`` is
        never formed, with the gradients ``G``, N x D. ``G G^T / N`` is N x N
        and has the same eigenvalues. If ``u`` is a unit eigenvector of it
        with the eigenvalue ``v``, then ``G^T u / sqrt(N v)`` is one of
        ``F``.
        """
        gram = torch.zeros(1, 1, dtype=torch.float64)
        squares = torch.empty(1, cached.elements, device=cached.device)
        for part, gradients in self._pieces(cached):
            gram = gram + (gradients @ gradients.T).cpu().double()
            squares[0, part] = gradients.square().mean(0).to(squares)
        diagonal = cached.from_elements(squares)
        diagonal = diagonal.mean(0, keepdim=True).pow(self.temper)
        if not (0 < gram.trace() < math.inf and diagonal.mean() > 0):
            return  # Without finite gradients the objective is plain MSE.
        gram /= len(gram)
        rank = max(1, min(self.rank, self.max_elements // cached.elements))
        self.explained[key] = explained_fraction(gram, rank)
        mix = self._mix(gram, rank).to(diagonal)
        directions = torch.empty(len(mix), cached.elements).to(diagonal)
        for part, gradients in self._pieces(cached):
            directions[:, part] = mix @ gradients
        self.directions[key] = cached.from_elements(directions).unflatten(
            0, (-1, cached.rows_per_image)
        )
        self.weights[key] = diagonal / diagonal.mean()

    def _mix(self, gram: Tensor, rank: int) -> Tensor:
        """Return the factors that combine gradients to directions.

        Args:
            gram (Tensor): ``G G^T / N``, N x N, in float64.
            rank (int): Maximum number of directions R.

        Returns:
            Tensor: R x N. Its product with ``G`` has the rows
            ``sqrt(lambda_r) q_r``, where the ``lambda_r`` sum to 1.
        """
        values, vectors = largest_eigenvectors(gram, rank)
        tempered = values.pow(self.temper)
        tempered /= tempered.sum()
        return (vectors * (tempered / (values * len(gram))).sqrt()).T

    def _pieces(self, cached: CachedTensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield all images' gradients, some elements at a time.

        The gradients of all processes are gathered, and every process cuts
        them at the same elements. Callers write into one tensor that they
        allocate before: small ones would fragment the memory, because they
        would be allocated between the pieces.
        """
        start = 0
        for piece in cached.pieces(max(1, self.max_elements // self.images)):
            part = slice(start, start := start + piece.shape[1])
            wide = torch.promote_types(piece.dtype, torch.float32)
            yield part, gather_rows(piece.to(wide))

    def _balance(
        self,
        keys: Sequence[OutputKey],
        outputs: Iterable[Nested],
        targets: Iterable[Nested],
    ) -> None:
        """Scale weights and directions by their shares of the error.

        The matrix finds 2 to 40 times as much error in the outputs of
        nearest rounding as the diagonal does, because those errors have a
        common offset, and so have the gradients of many images. Without the
        scaling, ``even`` would mean something else for each unit.
        """
        for key, sums in self._errors(keys, outputs, targets).items():
            diagonal, matrix, energy = sum_over_processes(sums).tolist()
            if 0 < matrix < math.inf and diagonal > 0:
                square, even = diagonal * diagonal, self.even * energy
                share = square / (square + even * even)
                share *= self.explained[key]
                ratio = diagonal / matrix
            else:  # One of the errors is zero: their ratio is undefined.
                share, ratio = float(not self.even), 1.0
            self.weights[key] = (1 - share) * self.weights[key]
            # An error along a direction is squared.
            self.directions[key] *= (share * ratio) ** 0.5
            self.cast_directions.pop(key, None)

    def _errors(
        self,
        keys: Sequence[OutputKey],
        outputs: Iterable[Nested],
        targets: Iterable[Nested],
    ) -> dict[OutputKey, Tensor]:
        """Return three sums over images for each output tensor.

        They are the error under the diagonal, the error under the matrix,
        and the energy of the target under the diagonal.
        """
        sums = {key: torch.zeros(3) for key in keys}
        seen, targets = 0, iter(targets)
        # `zip` would keep a batch in memory until it has the next one.
        for output in outputs:
            target = next(targets)
            for key in keys:
                out, goal = (tensors(x)[key[1]] for x in (output, target))
                images = len(out) // self.directions[key].shape[1]
                sums[key] += images * self._errors_of(key, out, goal)
            del output, target, out, goal
            seen += images
            if seen >= local_share(self.images):
                break
        return sums

    def _errors_of(
        self, key: OutputKey, output: Tensor, target: Tensor
    ) -> Tensor:
        """Return these three numbers for one batch, means over images."""
        weight, directions = self.weights[key], self.directions[key]
        errors = [
            weighted_squared_error(output, target, weight),
            weighted_squared_error(output, target, 0 * weight, directions),
            weighted_squared_error(0 * target, target, weight),
        ]
        return torch.stack(errors).cpu()

    @takes_low_precision
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Return the error of one output tensor under both parts."""
        key = unit.name, i
        return weighted_squared_error(
            output,
            target,
            self._weight(key, index, output),
            self._directions_in(output.dtype, key),
        )

    def _directions_in(
        self, dtype: torch.dtype, key: OutputKey
    ) -> Optional[Tensor]:
        """Return the directions of an output in a type, converted once."""
        directions = self.directions.get(key)
        if directions is None or directions.dtype == dtype:
            return directions
        cast = self.cast_directions.get(key)
        if cast is None or cast.dtype != dtype:
            cast = self.cast_directions[key] = directions.to(dtype)
        return cast
