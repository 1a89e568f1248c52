"""Few stiff directions of a Kronecker product and a diagonal: an inverse that knows which weights are there."""

from __future__ import annotations

import torch
from torch import Tensor

RANK = 256
"""Stiff directions at most: more take fewer steps, and longer to set up.

A removal from a MiniLM layer of 1536 x 385 (half of all weights, damping 0.1) takes 5.6, 4.8, 4.9 and 4.0 s of
CPU with 64, 128, 256 and 384, one from 384 x 1537 (70 %) 2.6, 2.1, 2.1 and 2.5.
"""
ROUNDING = 64.0
"""Times epsilon and the largest eigenvalue of the small matrix: added to it, as its rounding may be as large."""
SHARE = 1024.0
"""Times epsilon: what is left of every stiff direction in P at least, so that rounding takes none below zero."""
GATHERED = 20
"""Multiplications that take the time of one entry that is gathered."""
CHUNK_BYTES = 2**24


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
        eps = torch.finfo(scales.dtype).eps
        small, basis = torch.linalg.eigh(torch.diag(1 / values.double()) + self._gram())
        small = small.clamp_(min=0).add_(ROUNDING * eps * small[-1:])
        self.inverse = (basis * ((1 - SHARE * eps) / small)) @ basis.T  # float64: single precision would mix sizes

    def __call__(self, matrix: Tensor) -> Tensor:
        """P V for V (O, I) that is zero where no weight is."""
        v = self.diagonal * matrix
        along = self.inverse @ (self.left.T @ v @ self.right)[self.outer, self.inner].double()
        return v - self.diagonal * (self.left @ self._spread(along.to(v.dtype)) @ self.right.T)

    def _spread(self, entries: Tensor) -> Tensor:
        self.core[self.outer, self.inner] = entries
        return self.core

    def _gram(self) -> Tensor:
        """U^T D^{-1} U: sum_i (Q_G^T diag(D^{-1}[:, i]) Q_G)[a_k, a_l] Q_A[i, b_k] Q_A[i, b_l], or sides changed."""
        pairs, weights = len(self.outer), self.diagonal
        sides = [(self.left, self.outer), (self.right, self.inner)]
        # products for every two vectors of the first side, then entries for every two pairs and row of the second
        cost = [
            weights.numel() * first[0].shape[1] ** 2 + GATHERED * len(second[0]) * pairs**2
            for first, second in (sides, sides[::-1])
        ]
        if cost[1] < cost[0]:
            weights, sides = weights.T, sides[::-1]
        (first, of_first), (second, of_second) = sides
        total = torch.zeros(pairs, pairs, dtype=torch.float64, device=weights.device)
        step = max(1, CHUNK_BYTES // (weights.element_size() * max(1, pairs**2, first.numel())))
        for part, row in zip(weights.T.split(step), second[:, of_second].split(step), strict=True):
            products = (first.T * part[:, None, :]) @ first  # (i, r, r)
            entries = products[:, of_first[:, None], of_first].mul_(row[:, :, None]).mul_(row[:, None, :])
            total += entries.sum(0)
        return total
