"""Few stiff directions of a Kronecker product and a diagonal: an inverse that knows which weights are there."""

from __future__ import annotations

import torch
from torch import Tensor

RANK = 512
"""Stiff directions at most. Measured in docs/concepts/pruning.md."""
ROUNDING = 8.0
"""Times epsilon and the largest entry: below it an eigenvalue of the small matrix is not known."""
CHUNK_BYTES = 2**26


class Stiff:
    """P = (D + U S U^T)^{-1} on the kept weights, which preconditions F + damping there.

        P = D^{-1} - D^{-1} U (S^{-1} + U^T D^{-1} U)^{-1} U^T D^{-1}

    U are the kept rows of the layer's stiffest eigenvectors, D the diagonal of what is left of F, and the damping. A
    mask mixes soft directions into the stiff ones, which the whole layer's inverse cannot know: with it conjugate
    gradients take some three times the steps. U is not formed, (U^T V)_k = (Q_G^T V Q_A)[a_k, b_k] for the k-th pair.

    Args:
        left, right: Q_G (O, O) and Q_A (I, I) in the dtype to work in.
        scales: S (O, I), the eigenvalues.
        kept: (O, I), 1 where a weight is there, else 0.
        damping: > 0.

    Cost: once O I r^2 for the r left and right vectors in the pairs (fewer than these), and min(O, I) pairs^2; then 4 O
        I r each time. Memory: pairs^2.
    """

    def __init__(self, left: Tensor, right: Tensor, scales: Tensor, kept: Tensor, damping: float) -> None:
        values, places = scales.flatten().topk(min(RANK, scales.numel()))
        places = places[values > damping]  # what is below belongs to the diagonal
        outer, self.outer = (places // scales.shape[1]).unique(return_inverse=True)
        inner, self.inner = (places % scales.shape[1]).unique(return_inverse=True)
        self.left, self.right = left[:, outer], right[:, inner]
        self.core = scales.new_zeros(len(outer), len(inner))  # of the pairs, 0 at the others that they span
        values = scales.flatten()[places]
        rest = left.square() @ scales @ right.square().T
        rest -= self.left.square() @ self._spread(values) @ self.right.square().T
        self.diagonal = kept / (rest.clamp_(min=0) + damping)
        small = torch.diag(1 / values.double()) + self._gram()
        found, basis = torch.linalg.eigh(small)
        floor = ROUNDING * torch.finfo(scales.dtype).eps * float(small.diagonal().max()) if len(found) else 0.0
        self.inverse = ((basis / found.clamp(min=floor)) @ basis.T).to(scales.dtype)

    def __call__(self, matrix: Tensor) -> Tensor:
        """P V for V (O, I) that is zero where no weight is."""
        v = self.diagonal * matrix
        along = self.inverse @ (self.left.T @ v @ self.right)[self.outer, self.inner]
        return v - self.diagonal * (self.left @ self._spread(along) @ self.right.T)

    def _spread(self, entries: Tensor) -> Tensor:
        self.core[self.outer, self.inner] = entries
        return self.core

    def _gram(self) -> Tensor:
        """U^T D^{-1} U: sum_i (Q_G^T diag(D^{-1}[:, i]) Q_G)[a_k, a_l] Q_A[i, b_k] Q_A[i, b_l], i on the shorter side."""
        weights, long, short = self.diagonal, self.left, self.right
        of_long, of_short = self.outer, self.inner
        if len(long) < len(short):
            weights, long, short, of_long, of_short = weights.T, short, long, of_short, of_long
        total = torch.zeros(len(of_long), len(of_long), dtype=torch.float64, device=weights.device)
        rows = short[:, of_short]  # (i, pairs)
        step = max(1, CHUNK_BYTES // (weights.element_size() * max(1, len(of_long) ** 2, long.numel())))
        for part, row in zip(weights.T.split(step), rows.split(step), strict=True):
            each = (long.T * part[:, None, :]) @ long  # (i, r, r)
            pairs = each[:, of_long[:, None], of_long].mul_(row[:, :, None]).mul_(row[:, None, :])
            total += pairs.sum(0, dtype=torch.float64)
        return total
