"""Kronecker-factored blocks: the inverse's diagonal in closed form, the constrained optimum by conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaxx import linalg
from dynaxx.compress.curvature.base import Curvature
from dynaxx.operators.kronecker import EigenKronecker

TOLERANCE = {torch.float64: 1e-10}
SINGLE = 1e-5


class Kronecker(Curvature):
    """H = Q (S + damping) Q^T with Q = Q_G x Q_A: one layer of K-FAC or EKFAC.

    A mask is no Kronecker product, so for a set of weights there is no closed form; conjugate gradients on the kept
    coordinates, preconditioned by the whole inverse, solve it to a relative residual of 1e-5 (float64: 1e-10). The
    inverse's diagonal is that of the whole layer even where some of its weights have gone before.

    Args:
        operator: the layer's.
        chosen: (s,) the layer's coordinates that are still there.
    """

    def __init__(self, operator: EigenKronecker, chosen: Tensor, damping: float = 0.0) -> None:
        super().__init__(len(chosen), damping)
        self.operator, self.chosen = operator, chosen

    def trace(self) -> float:
        """Of the coordinates that are still there."""
        return float(self.operator.diagonal()[self.chosen].sum(dtype=torch.float64))

    def product(self, vector: Tensor) -> Tensor:
        """(F E v)_S + damping v, E spreading v over the layer."""
        spread = self._spread(vector.to(self.operator.dtype)[:, None], self.chosen)
        return self.operator.product(spread)[self.chosen, 0].double() + self.damping * vector.double()

    def inverse_diagonal(self) -> Tensor:
        """sum_ab Q_G[o,a]^2 Q_A[i,b]^2 / (S_ab + damping)."""
        op = self.operator
        inverse = op.left.square() @ (1 / (op.scales.clamp(min=0) + self.damping)) @ op.right.square().T
        # by (O, I) matrices in float64: the operator would round to the model's dtype
        return op.vectors(inverse[None])[self.chosen, 0].double()

    def change(self, values: Tensor, dropped: Tensor) -> Tensor:
        """By conjugate gradients."""
        w, kept = values.double(), self.chosen[~dropped]
        change = -w * dropped
        right = -self.product(change)[~dropped].to(self.operator.dtype)
        if not len(kept) or not bool(dropped.any()):
            return change
        system = _Kept(self.operator, kept)
        found = linalg.cg(
            system,
            right,
            damping=self.damping,
            tolerance=TOLERANCE.get(system.dtype, SINGLE),
            preconditioner=lambda v: self.operator._solve(self._spread(v, kept), self.damping)[kept],
        )
        change[~dropped] = found.value.double()
        return change

    def _spread(self, vectors: Tensor, where: Tensor) -> Tensor:
        out = vectors.new_zeros(self.operator.layout.size, vectors.shape[1])
        out[where] = vectors
        return out


class _Kept:
    """F on some coordinates, as linalg knows an operator."""

    def __init__(self, operator: EigenKronecker, kept: Tensor) -> None:
        self.operator, self.kept = operator, kept
        self.shape, self.dtype, self.device = (len(kept), len(kept)), operator.dtype, operator.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        columns = vectors if vectors.dim() == 2 else vectors[:, None]
        spread = columns.new_zeros(self.operator.layout.size, columns.shape[1])
        spread[self.kept] = columns
        out = self.operator.product(spread)[self.kept]
        return out if vectors.dim() == 2 else out[:, 0]
