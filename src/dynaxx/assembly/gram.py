"""Collector of the Gram matrix of all per-example gradients, layer by layer, without ever forming the Jacobian."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dynaxx.assembly.entries import DiagonalCollector
from dynaxx.errors import require_memory
from dynaxx.layout import Layout
from dynaxx.model.network import Output
from dynaxx.model.rules.base import Given, Use, inner, mirrored
from dynaxx.model.rules.linear import LinearWeight, Shift
from dynaxx.model.tape import Tape
from dynaxx.operators.base import Sampling
from dynaxx.operators.gram import Gram, Rows

Uses = dict[str, list[Use]]


def require_gram(rows: int, dtype: torch.dtype = torch.float64) -> None:
    """Refuse a Gram matrix that would not fit.

    Raises:
        SizeError: with the bytes.
    """
    require_memory(
        f"the Gram matrix of {rows} per-example gradients", 2 * dtype.itemsize * rows * rows,
        "use fewer examples, estimator='monte_carlo' or 'hutchinson' (one row per example), or form='implicit' with "
        "F.eigenvalues(k)",
    )  # fmt: skip


class InnerProducts:
    """Keeps every batch's layer inputs and cotangents, then sums inner products over parameters.

    Args:
        number: how many cotangents each example has, K, from the model's outputs.
        dtype: of products and sums.

    Memory: M^2 numbers twice, and per example the inputs and K cotangents of every layer.
    """

    head = False
    streams = True

    def __init__(
        self, device: torch.device, number: Callable[[Output], int], dtype: torch.dtype = torch.float64
    ) -> None:
        self.device, self.number, self.dtype = device, number, dtype
        self.held: list[Uses] = []  # of each batch, with all its cotangents
        self._sizes: list[tuple[int, int]] = []  # of each batch: examples, cotangents so far
        self._seen: Tape | None = None

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Keep what the products need."""
        pulled = tape.pulled(cotangents)
        shared = Counter(id(use.g) for held in pulled.values() for use in held)
        uses = {name: [_small(use) if shared[id(use.g)] == 1 else use for use in held] for name, held in pulled.items()}
        if tape is not self._seen:
            self._seen = tape
            self.held.append(_places(uses, self.number(tape.output)))
            self._sizes.append((len(keys), 0))
        done = self._sizes[-1][1]
        self._sizes[-1] = len(keys), done + len(cotangents)
        rooms = {
            id(use.g): (use.g, place.g)
            for name, held in uses.items()
            for use, place in zip(held, self.held[-1][name], strict=True)
        }
        for g, room in rooms.values():
            if room is not g:
                room[done : done + len(cotangents)] = g

    def matrix(self, ordered: bool = True) -> Tensor:
        """G^T G (M, M); what was kept is let go.

        Args:
            ordered: rows by example, then cotangent. Without, in any order: eigenvalues need none, and it is a copy.
        """
        self._seen, sizes = None, self._sizes
        batches = [_with_biases(self.held.pop(0)) for _ in sizes]
        firsts = list(accumulate((n for n, _ in sizes), initial=0))[:-1]
        columns = max((k for _, k in sizes), default=1)
        if len({k for _, k in sizes}) == 1 and _alike(batches):
            batches, firsts, sizes = [_joined(batches)], firsts[:1], [(sum(n for n, _ in sizes), columns)]
        count = sum(n for n, _ in sizes)
        require_gram(count * columns, self.dtype)
        if len(batches) == 1:
            block = self._block(batches[0], batches[0])
            if block is not None:
                return (block.permute(1, 0, 3, 2) if ordered else block).reshape(count * columns, -1)
        total = torch.zeros(count, columns, count, columns, dtype=self.dtype, device=self.device)
        for i, (first, (n, k)) in enumerate(zip(firsts, sizes, strict=True)):
            for j in range(i, len(firsts)):
                second, (m, l) = firsts[j], sizes[j]
                block = self._block(batches[i], batches[j])
                if block is None:
                    continue
                total[first : first + n, :k, second : second + m, :l] = block.permute(1, 0, 3, 2)
                if i != j:
                    total[second : second + m, :l, first : first + n, :k] = block.permute(3, 2, 1, 0)
        return total.view(count * columns, -1)

    def _block(self, left: Uses, right: Uses) -> Tensor | None:
        """Inner products of two batches' gradients over all parameters, (K, N, L, M); None where they share none."""
        total: Tensor | None = None
        for name in [name for name in left if name in right]:  # in one order: sums of floats depend on it
            block = inner(left[name], right[name], self.dtype)
            total = block if total is None else total.add_(block)
        if total is not None and left is right:
            mirrored(total.flatten(2).flatten(0, 1))
        return total


class GramCollector:
    """K = (1/N) G^T G in float64, with the diagonal of F beside it.

    Memory: 16 M^2 bytes, and per example the inputs and K cotangents of every layer.
    """

    head = False
    streams = True

    def __init__(self, layout: Layout, source: Rows, number: Callable[[Output], int]) -> None:
        self.layout, self.source = layout, source
        self.inner, self.diagonal = InnerProducts(layout.device, number), DiagonalCollector(layout)

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Keep what the products need, and add to the diagonal."""
        self.diagonal.add(tape, keys, cotangents)
        self.inner.add(tape, keys, cotangents)

    def finish(self, count: int, sampling: Sampling | None) -> Gram:
        """K, rows ordered by example, then cotangent."""
        matrix = self.inner.matrix()
        matrix = (matrix + matrix.T) / (2 * count)
        return Gram(matrix, self.diagonal.finish(count, None).diagonal(), self.source, self.layout, count, sampling)


def _small(use: Use) -> Use:
    """A bias whose cotangents nobody else keeps needs their sums over positions alone."""
    return Use(Given(), None, use.rule.gradients(use.a, use.g)) if isinstance(use.rule, Shift) else use


def _alike(batches: Sequence[Uses]) -> bool:
    """Whether the batches' uses can be laid end to end along the examples."""

    def shapes(uses: Uses) -> dict[str, list[tuple[object, ...]]]:
        return {
            name: [(type(use.rule), None if use.a is None else use.a.shape[1:], use.g.shape[2:]) for use in held]
            for name, held in uses.items()
        }

    return all(shapes(batch) == shapes(batches[0]) for batch in batches[1:])


def _places(uses: Uses, columns: int) -> Uses:
    """The same uses with room for all cotangents, which come a few at a time; what is shared stays so.

    Raises:
        SizeError: there is not so much memory.
    """
    every = [use for held in uses.values() for use in held]
    inputs = {id(use.a): use.a for use in every if isinstance(use.a, Tensor)}
    cotangents = {id(use.g): use.g for use in every}
    require_memory(
        "keeping this batch's layer inputs and cotangents",
        sum(a.nbytes for a in inputs.values()) + sum(columns * g[0].nbytes for g in cotangents.values()),
        "use fewer examples, or form='implicit' with F.eigenvalues(k)",
    )
    rooms = {number: g if len(g) == columns else g.new_empty(columns, *g.shape[1:]) for number, g in cotangents.items()}
    return {name: [Use(use.rule, use.a, rooms[id(use.g)]) for use in held] for name, held in uses.items()}


def _joined(batches: Sequence[Uses]) -> Uses:
    """Uses of several batches as one, along the examples. They are taken apart on the way, so that little is held
    twice."""
    if len(batches) == 1:
        return batches[0]
    last: tuple[list[Any], Tensor] | None = None

    def join(tensors: list[Any], along: int) -> Tensor:
        nonlocal last
        if last is None or any(one is not other for one, other in zip(last[0], tensors, strict=True)):
            last = tensors, torch.cat(tensors, along)
        return last[1]  # a bias comes after its weight and shares its cotangents

    out: Uses = {}
    for name in list(batches[0]):
        held = [batch.pop(name) for batch in batches]
        out[name] = []
        for uses in zip(*held, strict=True):
            a = None if uses[0].a is None else join([use.a for use in uses], 0)
            out[name].append(Use(uses[0].rule, a, join([use.g for use in uses], 1)))
    return out


def _with_biases(uses: Uses) -> Uses:
    """A linear map's bias joins its weight, as the weight of an input that is always 1: one product, not two."""
    out = dict(uses)
    alone = {name: held[0] for name, held in uses.items() if len(held) == 1}
    biases = {id(use.g): name for name, use in alone.items() if isinstance(use.rule, Shift)}
    for name, use in alone.items():
        if isinstance(use.rule, LinearWeight) and id(use.g) in biases:
            out[name] = [Use(use.rule, torch.cat([use.a, use.a.new_ones(*use.a.shape[:2], 1)], 2), use.g)]
            del out[biases[id(use.g)]]
    return out
