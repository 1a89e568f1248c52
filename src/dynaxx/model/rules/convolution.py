"""Convolutions in one, two and three dimensions, with stride, padding, dilation and groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dynaxx.matmul import has_faster_products
from dynaxx.model.rules.base import Rule, chunk, products

GROUPED_EXAMPLES = 16  # examples in one grouped call: enough to fill the cores, few enough to stay in cache
GROUPED_BYTES = 3 * 2**20  # what such a call makes: with twice as much it can take three times as long
PATCHED_EXAMPLES = 8  # examples whose patches exist at one time on a CPU, for the same reasons
MANY = 64  # entries of a patch, times cotangents, below which patches are cheap
SLICE = 16  # output channels: fewer cost a convolution as much
SLICE_BYTES = 2**27  # a slice of all gradients, where inner products are made
GHOST = 2  # how much slower the small products of inner products are than those of gradients


class ConvolutionWeight(Rule):
    """Weight (O, C/groups, *k) with a: (N, C, *in), already padded, and g: (K, N, O, *out).

    The per-example weight gradient is G = g p^T for the patches p (C k, T) that meet the kernel: one batched product,
    with patches that all cotangents share. Patches of a few examples at a time cost next to nothing; those of a whole
    batch would cost more than the products. With groups the products are too small, and the gradients of many examples
    are the weight gradient of one grouped convolution that has the examples as groups, and the cotangents as further
    output channels; so they are where convolutions are faster than products.
    """

    def __init__(self, module: Any) -> None:
        self.stride, self.dilation, self.groups = module.stride, module.dilation, module.groups
        self.shape = tuple(module.weight.shape)
        self._offsets = math.prod(self.shape[2:])

    def _grouped(self, a: Tensor, g: Tensor) -> Tensor:
        """G in one call: a (n, C, *in), g (k, n, O, *out) -> (k, n, *S)."""
        (columns, n), spatial, groups = g.shape[:2], a.dim() - 2, self.groups * len(a)
        g = g.unflatten(2, (self.groups, -1)).movedim(0, 2)  # (n, groups, k, O/groups, *out)
        weight = a.new_empty(1).expand(g.shape[:4].numel(), *self.shape[1:])  # only its shape is read
        G = torch.ops.aten.convolution_backward(
            g.reshape(1, -1, *g.shape[4:]), a.reshape(1, -1, *a.shape[2:]), weight, None,
            self.stride, [0] * spatial, self.dilation, False, [0] * spatial, groups, [False, True, False],
        )[1]  # fmt: skip
        return G.view(n, self.groups, columns, -1, *self.shape[1:]).movedim(2, 0).flatten(2, 3)

    def _pieces(self, a: Tensor, g: Tensor, out: Tensor | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Per-example gradients in pieces: some cotangents, some examples, their G, which lasts until the next one; or
        made inside ``out``, if given.
        """
        quick = has_faster_products() and a.device.type == "cpu" and a.dtype == torch.float32
        grouped = self.groups > 1 or (quick and len(g) * math.prod(self.shape[1:]) >= MANY)
        return self._by_groups(a, g, out) if grouped else self._by_patches(a, g, out)

    def _by_groups(self, a: Tensor, g: Tensor, out: Tensor | None) -> Iterator[tuple[slice, slice, Tensor]]:
        most = max(1, GROUPED_BYTES // (math.prod(self.shape) * a.element_size()))
        columns = min(len(g), most)
        examples = max(1, min(GROUPED_EXAMPLES, most // columns))
        for start in range(0, len(a), examples):
            some = slice(start, start + examples)
            for k in range(0, len(g), columns):
                chosen = slice(k, k + columns)
                G = self._grouped(a[some], g[chosen, some])
                yield chosen, some, G if out is None else out[chosen, some].copy_(G)

    def _by_patches(self, a: Tensor, g: Tensor, out: Tensor | None) -> Iterator[tuple[slice, slice, Tensor]]:
        positions = g.shape[3:].numel()
        step = chunk(math.prod(self.shape[1:]) * positions * a.element_size())
        step = min(PATCHED_EXAMPLES, step) if a.device.type == "cpu" else step
        # one place for all patches and one for all G: memory that was just used is fast
        seen = a.new_empty(min(step, len(a)), math.prod(self.shape[1:]), positions)
        made = g.new_empty(len(seen), *self.shape) if out is None else out
        for start in range(0, len(a), step):
            some = slice(start, start + step)
            view = self._patches(a[some])
            met = seen[: len(view)]
            met.view(view.shape).copy_(view)
            for k in range(len(g)):
                G = made[: len(met)] if out is None else made[k, some]
                torch.bmm(g[k, some].flatten(2), met.mT, out=G.view(len(met), self.shape[0], -1))
                yield slice(k, k + 1), some, G[None]

    def _patches(self, a: Tensor) -> Tensor:
        """What meets the kernel at each position, a view (n, C, *k, *out)."""
        space = a.dim() - 2
        seen = windows(a, self.shape[2:], self.stride, self.dilation)
        return seen.permute(0, 1, *range(2 + space, 2 + 2 * space), *range(2, 2 + space))

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

    def gradients(self, a: Tensor, g: Tensor, out: Tensor | None = None) -> Tensor:
        out = g.new_empty(*g.shape[:2], *self.shape) if out is None else out
        for _ in self._pieces(a, g, out):
            pass
        return out

    def squares(self, a: Tensor, g: Tensor) -> Tensor:
        total = g.new_zeros(self.shape)
        for _, _, G in self._pieces(a, g):
            total += G.square_().sum((0, 1))
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
        for k, some, G in self._pieces(a, g):
            out[k, some] += G.flatten(2).square_().sum(2)
        return out

    def inner(self, a: Tensor, g: Tensor, b: Tensor, h: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        outputs, *rest = self.shape
        each = torch.Size(rest).numel()
        sides = [(a, g)] if a is b and g is h else [(a, g), (b, h)]
        examples = sum(cotangents.shape[:2].numel() for _, cotangents in sides)
        # a slice of the output channels at a time: bounded memory, and no gradient is formed twice
        channel = examples * each * g.element_size()
        step = chunk(channel) // SLICE * SLICE or (SLICE if SLICE * channel <= SLICE_BYTES else chunk(channel))
        step = min(step, outputs) if self.groups == 1 else outputs
        places = [one.new_empty(one.shape[:2].numel() * step * each) for _, one in sides]  # used again for every slice

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for some in (slice(i, min(i + step, outputs)) for i in range(0, outputs, step)):
                part = copy(self)
                part.shape = (some.stop - some.start, *rest)
                made = []
                for (inputs, cotangents), place in zip(sides, places, strict=True):
                    size = (*cotangents.shape[:2], *part.shape)
                    out = place[: math.prod(size)].view(size)
                    made.append(part.gradients(inputs, cotangents[:, :, some], out).flatten(2).flatten(0, 1))
                yield made[0], made[-1]

        return products(pairs(), dtype).view(*g.shape[:2], *h.shape[:2])


def padded(module: Any, x: Tensor) -> Tensor:
    """The input with the module's padding written out, whatever its mode."""
    sides = module._reversed_padding_repeated_twice  # (last axis left, right, ...), also for padding="same"
    if not any(sides):
        return x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, sides, mode=mode)


def windows(a: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """A view of a padded input (N, C, *in) as what the kernel sees at each position, (N, C, *out, *kernel)."""
    for axis, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        a = a.unfold(axis, spread * (size - 1) + 1, step)[..., ::spread]
    return a


def patches(module: Any, x: Tensor) -> Tensor:
    """Padded input (N, C, *in) to the rows that meet the kernel: (N, T, C * prod k), T the output positions."""
    spatial = module.weight.dim() - 2
    x = windows(x, module.kernel_size, module.stride, module.dilation)
    # (N, C, *out, *k) -> (N, *out, C, *k)
    order = [0, *range(2, 2 + spatial), 1, *range(2 + spatial, 2 + 2 * spatial)]
    x = x.permute(order)
    return x.reshape(x.shape[0], x.shape[1 : 1 + spatial].numel(), -1)
