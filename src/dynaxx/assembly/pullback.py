"""Matrix-free products with F = (1/N) sum_n J_n^T M_n J_n, M_n the estimator's metric in output space.

J v comes from reverse mode twice: g(u) = J^T u is linear in u, and the gradient of <g(u), v> with respect to u is J v.
    Reverse mode is there
for every operation that can be trained, forward mode is not. While the data is one batch, the graphs are kept between
products. A few operations (EmbeddingBag, for one) have no second derivative; then products go through per-example
gradients, one reverse pass per cotangent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dynaxx.assembly.convolution import LeanConvolutions
from dynaxx.assembly.coordinates import combine, project
from dynaxx.assembly.gram import InnerProducts
from dynaxx.assembly.sweep import Sweeper, example_norms
from dynaxx.errors import SizeError
from dynaxx.estimators import Estimator
from dynaxx.model.linear_maps import FastLinear
from dynaxx.model.network import Output
from dynaxx.model.rules.base import gradients, parts, rows
from dynaxx.operators.base import Sampling


@dataclass
class _Linearised:
    """One batch with its graphs: z, and g(u) = J^T u as a function of u."""

    output: Output
    keys: Tensor
    u: Tensor
    g: tuple[Tensor, ...]
    estimator: Estimator

    @cached_property
    def metric(self) -> Callable[[Tensor], Tensor]:
        """w -> M w at z."""
        return self.estimator.product_at(self.output, self.keys)

    def forward(self, v: list[Tensor]) -> Tensor:
        """J v, (N, P, C)."""
        if not self.g:  # no selected parameter reaches the output
            return torch.zeros_like(self.output.z)
        (jv,) = torch.autograd.grad(self.g, self.u, v, retain_graph=True, allow_unused=True, materialize_grads=True)
        return jv

    def backward(self, w: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
        """J^T w, one tensor per parameter."""
        if not self.output.z.requires_grad:
            return [torch.zeros_like(parameter) for parameter in parameters]
        return list(
            torch.autograd.grad(
                self.output.z, parameters, w, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )


def _one(output: Output) -> Output:
    """The first example alone: enough to learn what an estimator refuses."""
    targets, mask = (None if tensor is None else tensor[:1] for tensor in (output.targets, output.mask))
    return Output(output.z[:1], targets, mask)


class Pullback:
    """The model, the data and the estimator behind an implicit operator.

    Raises (later, when used): InputError if the parameters or the data have changed since.
    """

    def __init__(self, sweeper: Sweeper) -> None:
        self.sweeper, self.network, self.estimator = sweeper, sweeper.network, sweeper.estimator
        self.layout = self.network.layout
        self.parameters = list(self.network.parameters.values())
        self._kept: _Linearised | None = None
        self._twice = True

    def _columns(self, vectors: Tensor) -> list[list[Tensor]]:
        """Each column as one tensor per parameter.

        Contiguous: torch's second derivative of weight_norm is wrong for strided cotangents.
        """
        return [list(self.layout.unravel(v).values()) for v in vectors.T.contiguous()]

    # passes

    def _batches(self) -> Iterator[_Linearised]:
        """Each batch linearised; a single batch is kept."""
        self.sweeper.require_unchanged()
        self.sweeper.ready = None
        if self._kept is not None:
            yield self._kept
            return
        for batch in self.sweeper.data:
            with LeanConvolutions(linear=True), FastLinear():
                output = self.network(batch)
            u = torch.zeros_like(output.z, requires_grad=True)
            g: tuple[Tensor, ...] = ()
            if self._twice and output.z.requires_grad:
                g = torch.autograd.grad(
                    output.z, self.parameters, u, create_graph=True, allow_unused=True, materialize_grads=True
                )
            item = _Linearised(output, self.sweeper.keys(batch), u, g, self.estimator)
            if self.sweeper.data.single:
                self._kept = item
            yield item

    def count(self) -> tuple[int, int]:
        """(N, K): rehearses on the first batch, which also tells K, and checks the outputs of the rest."""
        total = columns = 0
        with self.network.guarded():
            for batch in self.sweeper.data:
                if total == 0:
                    tape = self.sweeper.tape(batch)
                    self.estimator.cotangents(_one(tape.output), self.sweeper.keys(batch)[:1], 0, 1)
                    columns = self.estimator.number(tape.output)
                else:
                    with torch.no_grad():
                        self.network(batch)
                total += batch.count
        if self.sweeper.data.single:
            self.sweeper.ready = tape
        self._examples = total
        return total, columns

    # linear maps

    def product(self, vectors: Tensor) -> Tensor:
        """F V for V (p, k).

        Cost: a forward and a reverse pass with graph per batch (none while kept), and two reverse passes per column.
        """
        if self._twice:
            try:
                return self._product(vectors)
            except NotImplementedError:  # an operation without a second derivative
                self._twice, self._kept = False, None
        return (self.from_rows(self._rows_one_by_one(vectors)) / self._examples).to(vectors.dtype)

    def _product(self, vectors: Tensor) -> Tensor:
        columns = self._columns(vectors)
        total = 0
        with self.network.guarded(twice=True):
            totals = torch.empty(vectors.shape[1], self.layout.size, dtype=self.layout.dtype, device=self.layout.device)
            for item in self._batches():
                for row, v in zip(totals, columns, strict=True):
                    w = item.metric(item.forward(v))
                    self.layout.add_into(row, item.backward(w, self.parameters), started=total > 0)
                total += len(item.keys)
        return totals.div_(total).T

    def to_rows(self, vectors: Tensor) -> Tensor:
        """G^T V, (M, k): inner products of per-example gradient rows with the columns, by example, then cotangent."""
        if self._twice:
            try:
                return self._to_rows(vectors)
            except NotImplementedError:
                self._twice, self._kept = False, None
        return self._rows_one_by_one(vectors)

    def _to_rows(self, vectors: Tensor) -> Tensor:
        columns = self._columns(vectors)
        pieces = []
        with self.network.guarded(twice=True):
            for item in self._batches():
                jv = torch.stack([item.forward(v) for v in columns])  # (k, N, P, C)
                pieces.append(project(self.estimator, item.output, item.keys, jv).flatten(0, 1))
        return torch.cat(pieces)

    def _rows_one_by_one(self, vectors: Tensor) -> Tensor:
        """``to_rows`` without a second derivative: every per-example gradient is formed, a chunk at a time."""
        wanted = self.layout.unravel(vectors.double())
        pieces = []
        with self.network.guarded():
            for tape, keys in self.sweeper.tapes():
                chunks = []
                for cotangents in self.sweeper.chunks(tape, keys):
                    total = vectors.new_zeros(len(keys), len(cotangents), vectors.shape[1], dtype=torch.float64)
                    for name, uses in tape.pulled(cotangents).items():
                        v = wanted[name].reshape(-1, vectors.shape[1])
                        start = 0
                        for part in parts(uses, len(v)):
                            G = rows(gradients(part)).double()
                            total[start : start + G.shape[1]] += (G @ v).transpose(0, 1)
                            start += G.shape[1]
                    chunks.append(total)
                pieces.append(torch.cat(chunks, 1).flatten(0, 1))
        return torch.cat(pieces)

    def from_rows(self, coefficients: Tensor) -> Tensor:
        """G c for coefficients (M, k), (p, k): one reverse pass per column and batch."""
        start = 0
        with self.network.guarded(twice=True):
            totals = torch.zeros(
                coefficients.shape[1], self.layout.size, dtype=torch.float64, device=self.layout.device
            )
            for item in self._batches():
                stop = start + len(item.keys) * self.estimator.number(item.output)
                c = coefficients[start:stop].T.reshape(len(totals), len(item.keys), -1)
                for row, w in zip(totals, combine(self.estimator, item.output, item.keys, c), strict=True):
                    row += torch.cat([g.detach().flatten() for g in item.backward(w, self.parameters)]).double()
                start = stop
        return totals.T

    def inner_products(self) -> Tensor | None:
        """G^T G (M, M) in the model's precision, at least float32, rows in any order; None where it, or what it is
        made of, would not fit in memory, or where rows are sums over groups."""
        if self.estimator.group != 1:
            return None
        collector = InnerProducts(
            self.layout.device, self.estimator.number, torch.promote_types(self.layout.dtype, torch.float32)
        )
        try:
            self.sweeper.feed([collector])
            return collector.matrix(ordered=False)
        except SizeError:
            return None

    # scalars from per-example gradients

    def trace(self) -> tuple[float, Sampling | None]:
        """tr F = mean over examples of sum_k |G_nk|^2, from layer outputs alone."""
        total, count, first = 0.0, 0, None
        drawn: Tensor | None = None
        with self.network.guarded():
            for tape, keys in self.sweeper.tapes():
                first = first or tape.batch
                for cotangents in self.sweeper.chunks(tape, keys):
                    norms = example_norms(tape, cotangents)
                    total += float(norms.sum(dtype=torch.float64))
                    drawn = norms if count == 0 and self.estimator.samples == 1 else drawn
                count += len(keys)
        return total / count, self.sweeper.sampling(first, count, drawn=drawn)
