"""No weight can make up for another: optimal brain damage (LeCun, Denker & Solla 1989)."""

from __future__ import annotations

from torch import Tensor

from dynaxx.compress.curvature.base import Curvature


class Diagonal(Curvature):
    """H = diag(F) + damping I.

    Args:
        entries: (s,) the diagonal of F.
    """

    def __init__(self, entries: Tensor, damping: float = 0.0) -> None:
        super().__init__(len(entries), damping)
        self.entries = entries.double()

    def trace(self) -> float:
        """Sum of the entries."""
        return float(self.entries.sum())

    def product(self, vector: Tensor) -> Tensor:
        """Entry by entry."""
        return (self.entries + self.damping) * vector.double()

    def inverse_diagonal(self) -> Tensor:
        """Infinite where there is no curvature: such a weight costs nothing."""
        return 1 / (self.entries + self.damping)

    def change(self, values: Tensor, dropped: Tensor) -> Tensor:
        """The dropped go, the others stay."""
        return -values.double() * dropped
