"""Kronecker-factored blocks: the inverse's diagonal in closed form, the constrained optimum by conjugate gradients."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from dynaxx.compress.curvature.base import Curvature
from dynaxx.compress.curvature.descent import descend
from dynaxx.compress.curvature.stiff import Stiff
from dynaxx.errors import ConvergenceWarning
from dynaxx.operators.kronecker import EigenKronecker
from dynaxx.operators.kronecker import Kronecker as Factors

ACCURACY = 1e-3
"""Of the predicted increase, for models in single precision and below."""
EXACT = 1e-20
"""For models in double precision: a relative error of 1e-10 in the weights' change."""
ROUNDS = 50  # each leaves at most half of what was to gain


class Kronecker(Curvature):
    """H = Q (S + damping) Q^T with Q = Q_G x Q_A: one layer of K-FAC or EKFAC.

    A mask is no Kronecker product, so for a set of weights there is no closed form. Conjugate gradients on the kept
    ones in the model's dtype, preconditioned by ``Stiff``, until the predicted increase is within ``ACCURACY`` of its
    minimum; the residual is then taken anew in float64, and they go on from it where it says otherwise. The inverse's
    diagonal is that of the whole layer even where some of its weights have gone before.

    Args:
        operator: the layer's.
        chosen: (s,) the layer's coordinates that are still there.
    """

    def __init__(self, operator: EigenKronecker | Factors, chosen: Tensor, damping: float = 0.0) -> None:
        super().__init__(len(chosen), damping)
        self.operator, self.chosen = operator, chosen

    def trace(self) -> float:
        """Of the coordinates that are still there."""
        return float(self.operator.diagonal()[self.chosen].sum(dtype=torch.float64))

    def product(self, vector: Tensor) -> Tensor:
        """(F E v)_S + damping v, E spreading v over the layer."""
        return self._taken(self._times(self._spread(vector.double())))

    def inverse_diagonal(self) -> Tensor:
        """sum_ab Q_G[o,a]^2 Q_A[i,b]^2 / (S_ab + damping)."""
        op = self._rotated
        return self._taken(op.left.square() @ (1 / (op.scales.clamp(min=0) + self.damping)) @ op.right.square().T)

    def change(self, values: Tensor, dropped: Tensor) -> Tensor:
        """By conjugate gradients.

        Warns:
            ConvergenceWarning: it stopped before ``ACCURACY``; the damping is too small for the dtype.
        """
        change = self._spread(-values.double() * dropped)
        kept = self._spread((~dropped).double())
        if not bool(dropped.any()) or bool(dropped.all()):
            return self._taken(change)
        dtype = torch.promote_types(self.operator.dtype, torch.float32)
        accuracy = EXACT if dtype == torch.float64 else ACCURACY
        op, stays = self._rotated, kept.to(dtype)
        stiff = Stiff(op.left.to(dtype), op.right.to(dtype), op.scales.clamp(min=0).to(dtype), stays, self.damping)
        least = math.inf
        for _ in range(ROUNDS):  # an indefinite curvature, which rounding makes, has no least increase
            image = self._times(change)
            energy = 0.5 * float((change * image).sum())
            scale = float(image.abs().max()) or 1.0  # squares of small gradients underflow in single precision
            residual = image.mul_(kept).mul_(-1 / scale).to(dtype)
            left = 0.5 * scale**2 * abs(float((residual * stiff(residual)).sum()))
            if left <= accuracy * energy or left > least / 2:
                break
            least = left
            found = descend(lambda v: self._times(v).mul_(stays), stiff, residual, energy / scale**2, accuracy)
            change += found.double() * scale
        if left > max(accuracy, torch.finfo(dtype).eps) * energy:
            reached = (
                f"within {left / energy:.2g} of the least predicted increase, not {accuracy:g}"
                if energy > 0
                else "where its predicted increase is nothing but rounding"
            )
            warnings.warn(
                f"the change of {self.operator.names[0]} stopped {reached}; raise damping={self.damping:g} or use a "
                f"wider dtype than {dtype}",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self._taken(change)

    @property
    def _rotated(self) -> EigenKronecker:
        return self.operator.rotated if isinstance(self.operator, Factors) else self.operator

    def _times(self, matrix: Tensor) -> Tensor:
        """H by matrices (O, I), in their dtype: G M A + damping M, or by the eigenbasis."""
        op = self.operator
        left, right = op.left.to(matrix.dtype), op.right.to(matrix.dtype)
        if isinstance(op, EigenKronecker):
            image = left @ (op.scales.to(matrix.dtype) * (left.T @ matrix @ right)) @ right.T
        else:
            image = left @ matrix @ right
        return image.add_(matrix, alpha=self.damping)

    def _spread(self, entries: Tensor) -> Tensor:
        """(s,) over the layer, as a matrix (O, I)."""
        out = entries.new_zeros(self.operator.layout.size)
        out[self.chosen] = entries
        return self.operator.matrices(out[:, None])[0]

    def _taken(self, matrix: Tensor) -> Tensor:
        return self.operator.vectors(matrix[None])[self.chosen, 0]
