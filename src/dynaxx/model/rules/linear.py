"""Linear maps: ``out = a w^T + b`` with any number of positions between examples and features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dynaxx.matmul import matmul
from dynaxx.model.rules.base import Rule, chunk, mirrored, products


class LinearWeight(Rule):
    """Weight (O, I) of a linear map.

    With a: (N, T, I) and g: (K, N, T, O) it is G = sum_t g_t a_t^T. Positions add up before anything is squared.
    """

    positional = True

    def gradients(self, a: Tensor, g: Tensor) -> Tensor:
        if a.shape[1] == 1:
            return g.transpose(2, 3) * a[None]  # (K, N, O, 1) * (1, N, 1, I)
        return g.transpose(2, 3) @ a

    def squares(self, a: Tensor, g: Tensor) -> Tensor:
        if a.shape[1] == 1:
            # (g a^T)**2 = g**2 (a**2)^T: cotangents add up before the one product, whatever their number
            summed = g[0].square() if len(g) == 1 else g.square().sum(0)
            return matmul(summed[:, 0].T, a[:, 0].square())
        columns, count, _, outputs = g.shape
        total = g.new_zeros(outputs, a.shape[2])
        step = chunk(outputs * a.shape[2] * g.element_size())
        for k in range(columns):
            for start in range(0, count, step):
                G = torch.bmm(g[k, start : start + step].transpose(1, 2), a[start : start + step])
                total += G.square_().sum(0)
        return total

    def norms(self, a: Tensor, g: Tensor) -> Tensor:
        positions, inputs = a.shape[1:]
        if positions == 1:
            return g[:, :, 0].square().sum(2) * a[:, 0].square().sum(1)
        if positions * (inputs + g.shape[-1]) > inputs * g.shape[-1]:
            step = chunk(len(g) * inputs * g.shape[-1] * g.element_size())
            return torch.cat(
                [super(LinearWeight, self).norms(a[i : i + step], g[:, i : i + step]) for i in range(0, len(a), step)],
                1,
            )
        # |sum_t g_t a_t^T|^2 = sum_{t,s} (g_t . g_s)(a_t . a_s): cheaper than G while T is small
        return ((g @ g.mT) * (a @ a.mT)).sum((2, 3))

    def inner(self, a: Tensor, g: Tensor, b: Tensor, h: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        same, shape = a is b and g is h, (*g.shape[:2], *h.shape[:2])
        if a.shape[1] == b.shape[1] == 1:
            # <g a^T, h b^T> = (g . h)(a . b)
            left, inputs = g.reshape(-1, g.shape[-1]), a[:, 0]
            outer = products([(left, left if same else h.reshape(-1, h.shape[-1]))], dtype).view(shape)
            between = products([(inputs, inputs if same else b[:, 0])], dtype)
            return outer.mul_((mirrored(between) if same else between)[None, :, None, :])

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            # a slice of the outputs at a time: bounded memory, and no gradient is formed twice
            examples = g.shape[:2].numel() + (0 if same else h.shape[:2].numel())
            step = chunk(examples * a.shape[2] * dtype.itemsize)
            for some in (slice(i, i + step) for i in range(0, g.shape[3], step)):
                one = (g[..., some].transpose(2, 3) @ a).flatten(2).flatten(0, 1)
                yield one, one if same else (h[..., some].transpose(2, 3) @ b).flatten(2).flatten(0, 1)

        return products(pairs(), dtype).view(shape)

    def collapses(self, g: Tensor) -> bool:
        return g.shape[2] == 1


class TransposedLinearWeight(LinearWeight):
    """The same map with its weight stored as (I, O), as in HuggingFace's Conv1D."""

    def gradients(self, a: Tensor, g: Tensor) -> Tensor:
        return super().gradients(a, g).transpose(-1, -2)

    def squares(self, a: Tensor, g: Tensor) -> Tensor:
        return super().squares(a, g).transpose(-1, -2)


class Shift(Rule):
    """A bias: G = sum_t g_t. ``a`` is not needed; g: (K, N, T, *S)."""

    positional = True

    def gradients(self, a: object, g: Tensor) -> Tensor:
        return g[:, :, 0] if g.shape[2] == 1 else g.sum(2)

    def collapses(self, g: Tensor) -> bool:
        return g.shape[2] == 1
