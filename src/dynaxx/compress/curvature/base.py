"""What every representation of H = F + damping I answers.

Vectors are (s,): the coordinates that are still there, in the order of the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import TypeVar

from torch import Tensor

Self = TypeVar("Self", bound="Curvature")


class Curvature:
    """H = F + damping I.

    Args:
        size: s.
        damping: >= 0, in units of F's eigenvalues.
    """

    def __init__(self, size: int, damping: float = 0.0) -> None:
        self.size, self.damping = size, damping

    def damped(self: Self, damping: float) -> Self:
        """The same F with another damping; what was decomposed is shared."""
        other = copy(self)
        other.damping = damping
        return other

    def trace(self) -> float:
        """tr F, without the damping."""
        raise NotImplementedError

    def product(self, vector: Tensor) -> Tensor:
        """H v, float64."""
        raise NotImplementedError

    def inverse_diagonal(self) -> Tensor:
        """The diagonal of H^{-1}, float64: removing weight i alone costs w_i^2 / (2 [H^{-1}]_ii)."""
        raise NotImplementedError

    def change(self, values: Tensor, dropped: Tensor) -> Tensor:
        """The cheapest change that removes the dropped weights Q, float64.

            dw = argmin 1/2 dw^T H dw  with dw_Q = -w_Q;    dw_K = (H_KK)^{-1} H_KQ w_Q for the kept K

        the same as -H^{-1}[:, Q] (H^{-1}[Q, Q])^{-1} w_Q.

        Args:
            values: (s,) the weights.
            dropped: (s,) boolean.
        """
        raise NotImplementedError

    def outcome(self, values: Tensor, dropped: Tensor, compensates: bool) -> tuple[Tensor, Tensor]:
        """The change dw that removes the dropped weights, and 1/2 dw_i (H dw)_i, float64.

        Args:
            compensates: whether the others make up for it (``change``) or stay.
        """
        change = self.change(values, dropped) if compensates else -values.double() * dropped
        return change, self.product(change).mul_(change).mul_(0.5)


class Parts(Curvature):
    """Several curvatures side by side, H = diag(H_1, H_2, ...), each on consecutive coordinates."""

    def __init__(self, parts: Sequence[Curvature], damping: float = 0.0) -> None:
        super().__init__(sum(part.size for part in parts), damping)
        self.parts = [part.damped(damping) for part in parts]

    def damped(self, damping: float) -> Parts:
        """Each part's."""
        return Parts(self.parts, damping)

    def trace(self) -> float:
        """Sum of the parts'."""
        return sum(part.trace() for part in self.parts)

    def product(self, vector: Tensor) -> Tensor:
        """Part by part."""
        return self._each(lambda part, v: [part.product(v)], vector)[0]

    def inverse_diagonal(self) -> Tensor:
        """Part by part."""
        return self._each(lambda part: [part.inverse_diagonal()])[0]

    def change(self, values: Tensor, dropped: Tensor) -> Tensor:
        """Part by part: nothing couples them."""
        return self._each(lambda part, w, gone: [part.change(w, gone)], values, dropped)[0]

    def outcome(self, values: Tensor, dropped: Tensor, compensates: bool) -> tuple[Tensor, Tensor]:
        """Part by part."""
        change, shares = self._each(lambda part, w, gone: part.outcome(w, gone, compensates), values, dropped)
        return change, shares

    def _each(self, function: Callable[..., Sequence[Tensor]], *vectors: Tensor) -> list[Tensor]:
        """Answers written where they belong: a list of them would be there beside the whole."""
        start, whole = 0, list[Tensor]()
        for part in self.parts:
            stop = start + part.size
            found = function(part, *(vector[start:stop] for vector in vectors))
            whole = whole or [answer.new_empty(self.size) for answer in found]
            for out, answer in zip(whole, found, strict=True):
                out[start:stop] = answer
            start = stop
        return whole
