"""Result of comparing a file with its network, and what falls short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Optional

from .match import LayerMatch
from .outputs import OutputMatch


@dataclass
class Proof:
    """Result of comparing a file with its network.

    Attributes:
        matches (list[OutputMatch]): One for each runtime.
        layers (list[LayerMatch]): In the order of their calls.
        refused (dict[str, str]): Installed runtimes that do not take the
            file, and their messages.
        operators (dict[str, int]): Number of operators of each type that
            ONNX Runtime makes of the file.
        float_convolutions (dict[str, str]): Convolutions that it runs in
            float, and why.
        constants (dict[str, str]): Layers and quantizers whose weights,
            scales or ranges are not those of the network, and how.
    """

    matches: Sequence[OutputMatch]
    layers: Sequence[LayerMatch]
    refused: dict[str, str] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    float_convolutions: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return all of it as plain values, for a JSON file."""
        return asdict(self)

    def problem(
        self, runtime: str, agreement: float, exact: float, within: float
    ) -> Optional[str]:
        """Return what falls short, None if nothing does.

        Args:
            runtime (str): Runtime that the file is for. It must not refuse
                the file, and its outputs count; where it is not installed,
                those of ONNX Runtime.
            agreement (float): Smallest fraction of images with the same
                class, and of outputs that are the same but for noise.
            exact (float): Smallest fraction of equal integers in every
                layer, ties among them.
            within (float): Smallest fraction of integers that differ by at
                most one, in every layer.
        """
        for name, reason in self.constants.items():
            return f'{name} is not as in the network: {reason}'
        for layer in self.layers:
            equal = layer.exact + layer.ties
            # Written so that NaN falls short.
            if not (equal >= exact and layer.within >= within):
                return (
                    f'{layer.name} is the first layer that differs: '
                    f'{equal:.2%} of its integers are equal (ties among '
                    f'them) and {layer.within:.2%} differ by at most one, '
                    f'expected {exact:.2%} and {within:.2%}; the largest '
                    f'difference is {layer.largest:.3g} times the scale'
                )
        for name, reason in self.refused.items():
            if runtime and name.startswith(runtime):
                return f'{name} does not take it: {reason}'
        problem = self._deciding(runtime).problem(agreement)
        if problem is None:
            return None
        return (
            f'{problem}, though every layer by itself is the same: the '
            'runtime computes something else than the standard says; '
            '--least-agreement (`least_agreement`) is what is expected'
        )

    def others(self, runtime: str, agreement: float) -> list[str]:
        """Return warnings about other runtimes that compute something else.

        Args:
            runtime (str): Runtime that the file is for.
            agreement (float): As for :meth:`problem`.
        """
        deciding = self._deciding(runtime)
        return [
            f'{problem}: {match.runtime} computes something else from this '
            'file than the standard says. It is for '
            f'{runtime or deciding.runtime}, and proven with '
            f'{deciding.runtime}'
            for match in self.matches
            if match is not deciding and (problem := match.problem(agreement))
        ]

    def _deciding(self, runtime: str) -> OutputMatch:
        """Return the match of a runtime, or the first where it has none."""
        matches = [m for m in self.matches if m.runtime.startswith(runtime)]
        return (matches if runtime and matches else self.matches)[0]
