"""A curvature that is too large to keep: taken from the data again whenever it is needed, some parameters at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from dynaxx.compress.curvature.base import Curvature

MOST = 8
"""Groups whose sizes would be equal: memory of an eighth of the whole, but for a parameter that is larger."""


class Rebuilt(Curvature):
    """H of some of the parameters, there only while it is asked something.

    Args:
        size: s.
        make: the curvature without damping, the same each time.
    """

    def __init__(self, size: int, make: Callable[[], Curvature], damping: float = 0.0) -> None:
        super().__init__(size, damping)
        self.make = make
        self._shared: dict[str, float] = {}  # the same for every damping

    def trace(self) -> float:
        """Made for once."""
        if "trace" not in self._shared:
            self._shared["trace"] = self.make().trace()
        return self._shared["trace"]

    def product(self, vector: Tensor) -> Tensor:
        """Made for each."""
        return self._made().product(vector)

    def inverse_diagonal(self) -> Tensor:
        """Made for each damping."""
        return self._made().inverse_diagonal()

    def change(self, values: Tensor, dropped: Tensor) -> Tensor:
        """Made for each."""
        return self._made().change(values, dropped)

    def outcome(self, values: Tensor, dropped: Tensor, compensates: bool) -> tuple[Tensor, Tensor]:
        """Made once for both answers."""
        return self._made().outcome(values, dropped, compensates)

    def _made(self) -> Curvature:
        return self.make().damped(self.damping)


def grouped(sizes: Mapping[str, float]) -> list[list[str]]:
    """Consecutive names whose sizes add up to no more than the largest alone, or an eighth of all.

    >>> grouped({"a": 1.0, "b": 5.0, "c": 2.0, "d": 2.0, "e": 2.0})
    [['a'], ['b'], ['c', 'd'], ['e']]
    """
    limit = max(max(sizes.values()), sum(sizes.values()) / MOST)
    groups: list[list[str]] = []
    held = math.inf
    for name, size in sizes.items():
        if held + size > limit:
            groups.append([])
            held = 0.0
        groups[-1].append(name)
        held += size
    return groups
