"""Collectors of matrix entries: the diagonal, blocks per module, the dense matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dynaxx.assembly.head import exact_squares, find_head, metric_diagonal, tied_rest
from dynaxx.errors import require_memory
from dynaxx.layout import Layout
from dynaxx.model.rules.base import Use, gradients, parts, squares
from dynaxx.model.tape import Tape
from dynaxx.operators.base import Operator, Sampling
from dynaxx.operators.block import BlockDiagonal
from dynaxx.operators.dense import Dense
from dynaxx.operators.diagonal import Diagonal


class DiagonalCollector:
    """Sums of squared per-example gradients. Memory p numbers; half precision accumulates in float32.

    Where a layer's share depends on the sum of squared cotangents alone, they add up over a batch's chunks first, so
    that there is one product however many columns the estimator has.

    Args:
        head: take the diagonal of the layer that makes the logits in closed form, whatever the estimator draws. Right
            for estimators of the metric itself; not for bounds and the empirical Fisher.
    """

    streams = True

    def __init__(self, layout: Layout, head: bool = False) -> None:
        self.layout, self.head = layout, head
        self.dtype = torch.promote_types(layout.dtype, torch.float32)
        self._vector = torch.zeros(layout.size, dtype=self.dtype, device=layout.device)
        self._places = layout.unravel(self._vector)  # views: the result is never held twice
        self.sums: dict[str, Tensor] = {}
        self._seen: Tape | None = None
        self._tape: Tape | None = None
        self._held: dict[tuple[str, ...], tuple[list[Use], Tensor | None]] = {}  # uses of one g; sum of its squares

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Square and sum."""
        if tape is not self._tape:
            self._release()
            self._tape = tape
        pulled = tape.pulled(cotangents)
        head = find_head(tape, pulled) if self.head else None
        metric = metric_diagonal(tape) if head is not None else None
        closed: dict[str, Tensor] = {}
        if head is not None and metric is not None:
            closed = exact_squares(head, metric)
            fresh, self._seen = tape is not self._seen, tape
            for name, squared in closed.items():
                if fresh:
                    self._add(name, squared)
            if head.tied:
                for _, _, tokens, rest in tied_rest(pulled[head.weight]):
                    self.sums[head.weight].index_add_(0, tokens, rest.to(self.dtype))
        collapsing: dict[int, dict[str, Use]] = {}
        for name, uses in pulled.items():
            if name not in self.layout.shapes or name in closed:
                continue
            if len(uses) == 1 and uses[0].rule.collapses(uses[0].g):
                collapsing.setdefault(id(uses[0].g), {})[name] = uses[0]
            else:
                self._add(name, squares(uses, tape.network.parameters[name].numel()))
        for shared in collapsing.values():
            self._hold(shared)

    def _hold(self, shared: dict[str, Use]) -> None:
        """Keep the sum of squared cotangents; the first chunk as it is, for it may be the only one."""
        names, uses = tuple(shared), list(shared.values())
        g = uses[0].g
        if names not in self._held:
            self._held[names] = (uses, None if len(g) == 1 else _add_squares(None, g))
            return
        held, total = self._held[names]
        total = _add_squares(None, held[0].g) if total is None else total
        self._held[names] = (held, _add_squares(total, g))

    def _release(self) -> None:
        for names, (uses, total) in self._held.items():
            root = None if total is None else total.sqrt_()[None]
            for name, use in zip(names, uses, strict=True):
                self._add(name, squares([use if root is None else replace(use, g=root)], self.layout.part([name]).size))
        self._held.clear()

    def _add(self, name: str, squared: Tensor) -> None:
        if name in self.sums:
            self.sums[name] += squared
        else:
            self.sums[name] = self._places[name].copy_(squared)

    def finish(self, count: int, sampling: Sampling | None) -> Operator:
        """diag(F)."""
        self._release()
        self._tape = None
        return Diagonal(self._vector.div_(count), self.layout, count, sampling)


def _add_squares(total: Tensor | None, g: Tensor) -> Tensor:
    """Sum over cotangents of g**2, column by column: nothing of the size of g is made."""
    for column in g.to(torch.promote_types(g.dtype, torch.float32)):
        total = column.square() if total is None else total.addcmul_(column, column)
    assert total is not None
    return total


class DenseCollector:
    """G^T G over the rows of all per-example gradients of a group of parameters, accumulated in float64.

    Raises:
        SizeError: the matrix would not fit.
    """

    head = False

    def __init__(self, layout: Layout) -> None:
        self.layout, p = layout, layout.size
        require_memory(
            f"a dense {p} x {p} block for {', '.join(layout.names[:3])}{' ...' if len(layout.names) > 3 else ''}",
            8 * p * p,
            "ask for form='implicit', 'diagonal', 'kfac' or 'gram', or select fewer parameters with params=",
        )
        self.sum = torch.zeros(p, p, dtype=torch.float64, device=layout.device)

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Form the rows, a chunk of examples at a time, and add their outer products."""
        pulled = {name: uses for name, uses in tape.pulled(cotangents).items() if name in self.layout.shapes}
        for rows in gradient_rows(pulled, self.layout):
            self.sum.addmm_(rows.T, rows)

    def finish(self, count: int, sampling: Sampling | None) -> Operator:
        """F restricted to the group."""
        return Dense(self.sum / count, self.layout, count, sampling)


def gradient_rows(pulled: dict[str, list[Use]], layout: Layout) -> Iterator[Tensor]:
    """Per-example gradients as rows (K n, p) in float64, in chunks of examples; parameters that were not reached are
    zero."""
    if not pulled:
        return
    chunks = {name: list(parts(uses, 2 * layout.size)) for name, uses in pulled.items()}
    for step in range(len(next(iter(chunks.values())))):
        columns, count = next(iter(chunks.values()))[step][0].g.shape[:2]
        rows = torch.zeros(columns * count, layout.size, dtype=torch.float64, device=layout.device)
        for name, where in layout.slices.items():
            if name in chunks:
                rows[:, where] = gradients(chunks[name][step]).reshape(columns * count, -1)
        yield rows


class BlockCollector:
    """One dense block per module: a module's own parameters together; a shared parameter by itself."""

    head = False

    def __init__(self, layout: Layout, groups: Sequence[tuple[str, ...]]) -> None:
        self.layout = layout
        total = sum(8 * layout.part(group).size ** 2 for group in groups)
        require_memory(
            f"dense blocks for {len(groups)} modules",
            total,
            "ask for form='kfac' or 'diagonal', or select fewer parameters with params=",
        )
        self.parts = [DenseCollector(layout.part(group)) for group in groups]

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Each block takes its share."""
        for part in self.parts:
            part.add(tape, keys, cotangents)

    def finish(self, count: int, sampling: Sampling | None) -> Operator:
        """The block diagonal of F."""
        return BlockDiagonal([part.finish(count, None) for part in self.parts], self.layout, count, sampling)
