"""Independent blocks of parameters, each an operator of its own: a block diagonal, K-FAC and EKFAC are all this."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.layout import Layout
from dynaxx.operators.base import TOLERANCE, Eigenpairs, Operator, Sampling
from dynaxx.spectrum import Spectrum


class BlockDiagonal(Operator):
    """diag(A_1, A_2, ...) over disjoint groups of parameters. Every verb is the blocks' own.

    Raises:
        InputError: the blocks do not cover each parameter exactly once.
    """

    form = "block"

    def __init__(
        self,
        parts: Sequence[Operator],
        layout: Layout,
        count: int,
        sampling: Sampling | None = None,
        form: str = "block",
    ) -> None:
        super().__init__(layout, count, sampling, definite=all(part.definite for part in parts))
        self.parts, self.form = list(parts), form
        covered = [name for part in self.parts for name in part.names]
        if sorted(covered) != sorted(layout.names):
            raise InputError(
                f"the blocks cover {sorted(covered)[:5]}..., the parameters are {sorted(layout.names)[:5]}...; each "
                f"must stand in one block"
            )
        self._rows = [_rows(layout, part.names) for part in self.parts]

    @property
    def blocks(self) -> list[tuple[str, ...]]:
        """Parameter names of each block."""
        return [part.names for part in self.parts]

    def coverage(self) -> dict[str, str]:
        """Which structure each parameter got."""
        return {name: kind for part in self.parts for name, kind in part.coverage().items()}

    def _by_block(self, function: Callable[[Operator, Tensor], Tensor], vectors: Tensor) -> Tensor:
        out = torch.empty_like(vectors)
        for part, rows in zip(self.parts, self._rows, strict=True):
            out[rows] = function(part, vectors[rows])
        return out

    def _solve_factored(self, vectors: Tensor, damping: float) -> Tensor:
        return self._by_block(lambda part, v: part._solve_factored(v, damping), vectors)

    def product(self, vectors: Tensor) -> Tensor:
        """Block by block."""
        return self._by_block(lambda part, v: part.product(v), vectors)

    def _solve(self, vectors: Tensor, damping: float) -> Tensor:
        return self._by_block(lambda part, v: part._solve(v, damping), vectors)

    def diagonal(self) -> Tensor:
        """The blocks' diagonals."""
        out = self.layout.zeros()
        for part, rows in zip(self.parts, self._rows, strict=True):
            out[rows] = part.diagonal()
        return out

    def eigh(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Eigenpairs:
        """The k largest over all blocks; each vector lives in one block."""
        k = self._require_k(k)
        pairs = [part.eigh(None if k is None else min(k, part.shape[0]), tolerance=tolerance) for part in self.parts]
        values = torch.cat([pair.values for pair in pairs])
        order = values.argsort(descending=True)[:k]
        vectors, column = self.layout.zeros(len(order)), 0
        position = torch.empty(len(values), dtype=torch.long, device=self.device).fill_(-1)
        position[order] = torch.arange(len(order), device=self.device)
        for pair, rows in zip(pairs, self._rows, strict=True):
            places = position[column : column + len(pair.values)]
            kept = places >= 0
            places_of = torch.arange(len(vectors), device=self.device)[rows]
            vectors[places_of[:, None], places[kept][None]] = pair.vectors[:, kept]
            column += len(pair.values)
        return Eigenpairs(values[order], vectors)

    def eigenvalues(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Tensor:
        """The blocks' eigenvalues together, descending."""
        k = self._require_k(k)
        values = [
            part.eigenvalues(None if k is None else min(k, part.shape[0]), tolerance=tolerance) for part in self.parts
        ]
        return torch.cat(values).sort(descending=True).values[:k]

    def spectrum(self, k: int | None = None) -> Spectrum:
        """All eigenvalues, or the top k."""
        return self._spectrum_of(self.eigenvalues(k), k)

    def trace(self) -> Estimate:
        """Sum over blocks."""
        return self._scalar(math.fsum(part.trace() for part in self.parts))

    def logdet(self, damping: float) -> Estimate:
        """Sum over blocks of log det(A_b + damping I)."""
        self._require_damping(damping)
        return self._scalar(math.fsum(part.logdet(damping) for part in self.parts), derived=True)

    def frobenius(self) -> Estimate:
        """Root of the sum of the blocks' squares."""
        return self._scalar(math.sqrt(math.fsum(part.frobenius() ** 2 for part in self.parts)), derived=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The blocks' states, numbered."""
        tensors: dict[str, Tensor] = {}
        facts: list[dict[str, Any]] = []
        for number, part in enumerate(self.parts):
            held, fact = part.state()
            tensors |= {f"{number}.{key}": value for key, value in held.items()}
            facts.append({"kind": part.form, "names": list(part.names), **fact})
        return tensors, {"parts": facts}


def _rows(layout: Layout, names: Sequence[str]) -> slice | Tensor:
    """Where the coordinates of these parameters stand: a slice, which copies nothing, where they are neighbours."""
    pieces = [layout.slices[name] for name in names]
    if all(left.stop == right.start for left, right in pairwise(pieces)):
        return slice(pieces[0].start, pieces[-1].stop)
    return torch.cat([torch.arange(piece.start, piece.stop) for piece in pieces]).to(layout.device)
