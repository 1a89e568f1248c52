"""Embedding tables: the gradient of an example touches only the rows of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaxx.model.rules.base import Rule


class EmbeddingWeight(Rule):
    """Table (V, D) with a: (N, T) token indices and g: (K, N, T, D); row v of G is the sum of g_t over positions with
    token v.

    Nothing of size N x V is formed but in ``gradients``: a token that an example repeats has its cotangents summed
    first, by giving each (example, token) pair one row.
    """

    positional = True

    def __init__(self, shape: tuple[int, ...], padding: int | None) -> None:
        self.shape, self.padding = shape, padding

    def _live(self, a: Tensor, g: Tensor) -> Tensor:
        """Padding rows get no gradient, as in torch."""
        return g if self.padding is None else g.masked_fill((a == self.padding)[None, :, :, None], 0)

    def rows(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summed cotangents of each (example, token) pair: pairs' examples (R,), tokens (R,), rows (K, R, D)."""
        vocabulary = self.shape[0]
        keys = torch.arange(len(a), device=a.device)[:, None] * vocabulary + a
        pairs, where = torch.unique(keys, return_inverse=True)
        rows = g.new_zeros(len(g), len(pairs), self.shape[1])
        rows.index_add_(1, where.flatten(), self._live(a, g).flatten(1, 2))
        return pairs // vocabulary, pairs % vocabulary, rows

    def gradients(self, a: Tensor, g: Tensor) -> Tensor:
        examples, tokens, rows = self.rows(a, g)
        out = g.new_zeros(len(g), len(a), *self.shape)
        out[:, examples, tokens] = rows
        return out

    def squares(self, a: Tensor, g: Tensor) -> Tensor:
        _, tokens, rows = self.rows(a, g)
        return g.new_zeros(self.shape).index_add_(0, tokens, rows.square().sum(0))

    def norms(self, a: Tensor, g: Tensor) -> Tensor:
        examples, _, rows = self.rows(a, g)
        return g.new_zeros(len(g), len(a)).index_add_(1, examples, rows.square().sum(2))

    def inner(self, a: Tensor, g: Tensor, b: Tensor, h: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        # <G_n, H_m> = sum_{t,s} [a_nt = b_ms] g_nt . h_ms
        same = (a[:, :, None, None] == b[None, None]).to(dtype)  # (N, T, M, S)
        left, right = self._live(a, g).to(dtype), self._live(b, h).to(dtype)
        out = left.new_zeros(len(g), len(a), len(h), len(b))
        for k in range(len(g)):
            for l in range(len(h)):
                products = torch.tensordot(left[k], right[l], dims=([2], [2]))  # (N, T, M, S)
                out[k, :, l] = (products * same).sum((1, 3))
        return out
