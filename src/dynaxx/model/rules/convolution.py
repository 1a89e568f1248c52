"""Convolutions in one, two and three dimensions, with stride, padding, dilation and groups."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dynaxx.model.rules.base import Rule, chunk, products

GROUPED_EXAMPLES = 16  # examples in one grouped call: enough to fill the cores, few enough to stay in cache
GHOST = 2  # how much slower the small products of inner products are than those of gradients


class ConvolutionWeight(Rule):
    """Weight (O, C/groups, *k) with a: (N, C, *in), already padded, and g: (K, N, O, *out).

    The per-example weight gradient of many examples is the weight gradient of one grouped convolution that has the
    examples as groups, so one library call forms it.
    """

    def __init__(self, module: Any) -> None:
        self.stride, self.dilation, self.groups = module.stride, module.dilation, module.groups
        self.shape = tuple(module.weight.shape)
        self._offsets = math.prod(self.shape[2:])

    def _grouped(self, a: Tensor, g: Tensor) -> Tensor:
        """G of a few examples and one cotangent: a (n, C, *in), g (n, O, *out) -> (n, *S)."""
        n, spatial = len(a), a.dim() - 2
        weight = a.new_empty(1).expand(n * self.shape[0], *self.shape[1:])  # only its shape is read
        G = torch.ops.aten.convolution_backward(
            g.reshape(1, n * g.shape[1], *g.shape[2:]), a.reshape(1, n * a.shape[1], *a.shape[2:]), weight, None,
            self.stride, [0] * spatial, self.dilation, False, [0] * spatial, n * self.groups, [False, True, False],
        )[1]  # fmt: skip
        return G.reshape(n, *self.shape)

    def _pieces(self, a: Tensor, g: Tensor) -> Iterator[tuple[int, slice, tuple[Any, ...], Tensor]]:
        """Per-example gradients in pieces: cotangent k, some examples, which part of the weight, G of that part.

        Where the map is small and channels are many, or channels are very few, one batched product per kernel position
        beats the grouped call (31 against 48 ms at 128 channels on 8 x 8, 9 against 14 ms at 3 channels on 32 x 32; the
        other way round, 18 against 41 ms, at 64 channels on 16 x 16).
        """
        positions, (outputs, inputs) = g.shape[3:].numel(), self.shape[:2]
        shifted = self.groups == 1 and (inputs <= 4 or (positions <= 64 and outputs * inputs >= 8192))
        for k in range(len(g)):
            for start in range(0, len(a), GROUPED_EXAMPLES):
                some = slice(start, min(start + GROUPED_EXAMPLES, len(a)))
                if not shifted:
                    yield k, some, (...,), self._grouped(a[some], g[k, some])
                    continue
                cotangent = g[k, some].flatten(2)
                for offset in product(*map(range, self.shape[2:])):
                    seen = self._seen_through(a[some], offset, g.shape[3:])
                    yield k, some, (..., *offset), cotangent @ seen.flatten(2).transpose(1, 2)

    def _seen_through(self, a: Tensor, offset: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        """The inputs that one kernel position meets, (n, C, *out)."""
        return a[(slice(None), slice(None), *self._places(offset, size))]

    def _places(self, offset: tuple[int, ...], size: tuple[int, ...]) -> list[slice]:
        return [
            slice(at * dilation, at * dilation + stride * (length - 1) + 1, stride)
            for at, dilation, stride, length in zip(offset, self.dilation, self.stride, size, strict=True)
        ]

    def _patch_products(self, a: Tensor, size: tuple[int, ...]) -> Tensor:
        """Inner products of an example's patches with one another, (n, T, T), without patches: those of its pixels,
        summed along the kernel. |sum_t g_t a_t^T|^2 = sum_{t,s} (g_t . g_s)(a_t . a_s) needs no more."""
        pixels = a.flatten(2)
        products = (pixels.mT @ pixels).unflatten(2, a.shape[2:]).unflatten(1, a.shape[2:])
        total = a.new_zeros(len(a), *size, *size)
        for offset in product(*map(range, self.shape[2:])):
            places = self._places(offset, size)
            total += products[(slice(None), *places, *places)]
        return total.flatten(1, len(size)).flatten(2)

    def gradients(self, a: Tensor, g: Tensor) -> Tensor:
        out = g.new_empty(*g.shape[:2], *self.shape)
        for k, some, part, G in self._pieces(a, g):
            out[k, some][part] = G
        return out

    def squares(self, a: Tensor, g: Tensor) -> Tensor:
        total = g.new_zeros(self.shape)
        for _, _, part, G in self._pieces(a, g):
            total[part] += G.square_().sum(0)
        return total

    def norms(self, a: Tensor, g: Tensor) -> Tensor:
        out = g.new_zeros(g.shape[:2])
        positions, pixels = g.shape[3:].numel(), a.shape[2:].numel()
        outputs, inputs = self.shape[:2]
        ghost = pixels**2 * inputs + positions**2 * (outputs * len(g) + 2 * self._offsets)
        if self.groups == 1 and GHOST * ghost <= positions * outputs * inputs * self._offsets * len(g):
            for start in range(0, len(a), GROUPED_EXAMPLES):
                some = slice(start, start + GROUPED_EXAMPLES)
                rows = g[:, some].flatten(3)
                out[:, some] = ((rows.mT @ rows) * self._patch_products(a[some], g.shape[3:])).sum((2, 3))
            return out
        for k, some, _, G in self._pieces(a, g):
            out[k, some] += G.flatten(1).square_().sum(1)
        return out

    def inner(self, a: Tensor, g: Tensor, b: Tensor, h: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        same, (outputs, *rest) = a is b and g is h, self.shape
        examples = g.shape[:2].numel() + (0 if same else h.shape[:2].numel())
        step = chunk(examples * torch.Size(rest).numel() * dtype.itemsize) if self.groups == 1 else outputs

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            # a slice of the output channels at a time: bounded memory, and no gradient is formed twice
            for some in (slice(i, min(i + step, outputs)) for i in range(0, outputs, step)):
                part = copy(self)
                part.shape = (some.stop - some.start, *rest)
                one = part.gradients(a, g[:, :, some]).flatten(2).flatten(0, 1)
                yield one, one if same else part.gradients(b, h[:, :, some]).flatten(2).flatten(0, 1)

        return products(pairs(), dtype).view(*g.shape[:2], *h.shape[:2])


def padded(module: Any, x: Tensor) -> Tensor:
    """The input with the module's padding written out, whatever its mode."""
    sides = module._reversed_padding_repeated_twice  # (last axis left, right, ...), also for padding="same"
    if not any(sides):
        return x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, sides, mode=mode)


def patches(module: Any, x: Tensor) -> Tensor:
    """Padded input (N, C, *in) to the rows that meet the kernel: (N, T, C * prod k), T the output positions."""
    axes = range(2, x.dim())
    for axis, size, step, dilation in zip(axes, module.kernel_size, module.stride, module.dilation, strict=True):
        x = x.unfold(axis, dilation * (size - 1) + 1, step)[..., ::dilation]
    spatial = module.weight.dim() - 2
    # (N, C, *out, *k) -> (N, *out, C, *k)
    order = [0, *range(2, 2 + spatial), 1, *range(2 + spatial, 2 + 2 * spatial)]
    x = x.permute(order)
    return x.reshape(x.shape[0], x.shape[1 : 1 + spatial].numel(), -1)
