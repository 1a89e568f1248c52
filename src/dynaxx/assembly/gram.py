"""Collector of the Gram matrix of all per-example gradients, layer by layer, without ever forming the Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaxx.assembly.entries import DiagonalCollector
from dynaxx.errors import require_memory
from dynaxx.layout import Layout
from dynaxx.model.rules.base import Use, inner
from dynaxx.model.tape import Tape
from dynaxx.operators.base import Sampling
from dynaxx.operators.gram import Gram, Rows


def require_gram(rows: int) -> None:
    """Refuse a Gram matrix that would not fit.

    Raises:
        SizeError: with the bytes.
    """
    require_memory(
        f"the Gram matrix of {rows} per-example gradients", 2 * 8 * rows * rows,
        "use fewer examples, estimator='monte_carlo' or 'hutchinson' (one row per example), or form='implicit' with "
        "F.eigenvalues(k)",
    )  # fmt: skip


class GramCollector:
    """Keeps every batch's layer inputs and cotangents, then sums inner products over parameters in float64.

    Memory: 8 M^2 bytes, and per example the inputs and K cotangents of every layer.
    """

    head = False

    def __init__(self, layout: Layout, source: Rows) -> None:
        self.layout, self.source = layout, source
        self.held: list[tuple[int, int, int, dict[str, list[Use]]]] = []  # first example, examples, cotangents, uses
        self.diagonal = DiagonalCollector(layout)
        self._bytes = 0

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Keep what the products need."""
        uses = tape.pulled(cotangents)
        self.diagonal.add(tape, keys, cotangents)
        inputs = {id(use.a): use.a for held in uses.values() for use in held if isinstance(use.a, Tensor)}
        cotangent = {id(use.g): use.g for held in uses.values() for use in held}
        self._bytes = sum(t.numel() * t.element_size() for t in [*inputs.values(), *cotangent.values()])
        require_memory(
            "keeping this batch's layer inputs and cotangents",
            self._bytes,
            "use fewer examples, or form='implicit' with F.eigenvalues(k)",
        )
        self.held.append((int(keys[0]), len(keys), len(cotangents), uses))

    def finish(self, count: int, sampling: Sampling | None) -> Gram:
        """K = (1/N) G^T G, rows ordered by example, then cotangent."""
        number: dict[int, int] = {}
        spans = []  # (first example, examples, first cotangent, cotangents)
        for first, examples, columns, _ in self.held:
            spans.append((first, examples, number.get(first, 0), columns))
            number[first] = number.get(first, 0) + columns
        per_example = max(number.values(), default=1)
        require_gram(count * per_example)
        K = torch.zeros(count, per_example, count, per_example, dtype=torch.float64, device=self.layout.device)
        for i, (first, n, start, k) in enumerate(spans):
            for j in range(i, len(spans)):
                second, m, begin, l = spans[j]
                block = self._block(self.held[i][3], self.held[j][3], (k, n, l, m)).permute(1, 0, 3, 2)
                K[first : first + n, start : start + k, second : second + m, begin : begin + l] = block
                if i != j:
                    K[second : second + m, begin : begin + l, first : first + n, start : start + k] = block.permute(
                        2, 3, 0, 1
                    )
        self.held.clear()
        matrix = K.view(count * per_example, -1)
        matrix = (matrix + matrix.T) / (2 * count)
        return Gram(matrix, self.diagonal.finish(count, None).diagonal(), self.source, self.layout, count, sampling)

    def _block(self, left: dict[str, list[Use]], right: dict[str, list[Use]], shape: tuple[int, ...]) -> Tensor:
        total = torch.zeros(shape, dtype=torch.float64, device=self.layout.device)
        for name in left.keys() & right.keys():
            total += inner(left[name], right[name])
        return total
