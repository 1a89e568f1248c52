"""Collectors of matrix entries: the diagonal, blocks per module, the dense matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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

    Args:
        head: take the diagonal of the layer that makes the logits in closed form, whatever the estimator draws. Right
            for estimators of the metric itself; not for bounds and the empirical Fisher.
    """

    def __init__(self, layout: Layout, head: bool = False) -> None:
        self.layout, self.head = layout, head
        self.dtype = torch.promote_types(layout.dtype, torch.float32)
        self.sums: dict[str, Tensor] = {}
        self._seen: Tape | None = None

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Square and sum."""
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
        for name, uses in pulled.items():
            if name in self.layout.shapes and name not in closed:
                self._add(name, squares(uses, tape.network.parameters[name].numel()))

    def _add(self, name: str, squared: Tensor) -> None:
        if name in self.sums:
            self.sums[name] += squared
        else:
            self.sums[name] = squared.to(self.dtype)

    def finish(self, count: int, sampling: Sampling | None) -> Operator:
        """diag(F)."""
        shapes, device = self.layout.shapes, self.layout.device
        unreached = {
            n: torch.zeros(s, dtype=self.dtype, device=device) for n, s in shapes.items() if n not in self.sums
        }
        return Diagonal(self.layout.ravel(self.sums | unreached).div_(count), self.layout, count, sampling)


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
