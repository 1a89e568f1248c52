"""Collectors for K-FAC and EKFAC, with every parameter accounted for.

A module whose weight (and bias) form one linear map gets Kronecker factors. Every other parameter gets its exact dense
block where that is small, else its exact diagonal; ``coverage()`` of the result says which.

Scale (Martens & Grosse 2015; weight sharing after Eschenhagen et al. 2023), N examples, T positions, homogeneous input
a = (a, 1):
    expand   A = 1/N sum_nt a a^T               G = 1/(N T) sum_nt g g^T
    reduce   A = 1/N sum_n (mean_t a)(mean_t a)^T    G = 1/N sum_n (sum_t g)(sum_t g)^T
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dynaxx.assembly.entries import DenseCollector, DiagonalCollector
from dynaxx.errors import choose
from dynaxx.layout import Layout
from dynaxx.model.rules.base import chunk
from dynaxx.model.rules.correlation import BLOCK, SecondMoment, channel_moment
from dynaxx.model.rules.layers import Layer
from dynaxx.model.tape import Tape
from dynaxx.operators.base import Operator, Sampling
from dynaxx.operators.block import BlockDiagonal
from dynaxx.operators.kronecker import EigenKronecker, Kronecker

DENSE_BLOCK = 1024  # a parameter without Kronecker structure and up to this many entries gets its exact block


class _Factors:
    """Running factors of one linear map."""

    def __init__(self, layer: Layer, own: dict[str, str], layout: Layout, sharing: str) -> None:
        self.layer, self.sharing = layer, sharing
        self.weight, self.bias = "weight" in own, "bias" in own
        self.layout = layout.part([own[name] for name in ("weight", "bias") if name in own])
        self.left, self.right = SecondMoment(), SecondMoment(homogeneous=self.bias)
        self.positions = 0

    def inputs(self, a: Tensor) -> Tensor:
        """(N, T, I) rows with the 1 appended, or the 1 alone where only the bias is selected."""
        one = a.new_ones(*a.shape[:2], 1)
        return torch.cat([a] * self.weight + [one] * self.bias, 2)

    def add_inputs(self, calls: _Calls) -> None:
        moments = calls.moments() if self.sharing == "expand" and self.weight else None
        if moments is not None:
            self.positions += moments[2]
            self.right.add_sum(*moments)
            return
        for a in calls.rows():
            rows = a.mean(1) if self.sharing == "reduce" else a.flatten(0, 1)
            self.positions += len(rows)
            if self.weight:
                self.right.add(rows)

    def add_cotangents(self, g: Tensor) -> None:
        if self.sharing == "reduce":
            self.left.add(g.sum(2).flatten(0, 1))
        elif g.shape[2] > 1 and g.shape[3] < 2 * BLOCK and g.mT.is_contiguous():  # as a convolution's are
            self.left.add_sum(channel_moment(g.flatten(0, 1).mT))
        else:
            self.left.add(g.flatten(0, 2))

    def finish(self, count: int, sampling: Sampling | None) -> Kronecker:
        """The factors, scaled in place: once, for a wide output's factor is the largest thing there is."""
        left = self.left.total().div_(self.positions)
        right = self.right.total() if self.weight else left.new_full((1, 1), float(self.positions))
        right /= count
        return Kronecker(left, right, self.layer.weight_axes or "oi", self.bias, self.layout, count, sampling)


class KroneckerCollector:
    """Factors for linear maps, exact blocks or diagonals for the rest."""

    head = False
    streams = True

    def __init__(self, layout: Layout, sharing: str = "expand") -> None:
        self.layout = layout
        self.sharing = choose("sharing", sharing, ("expand", "reduce"))
        self.factors: dict[str, _Factors] | None = None
        self.rest: list[DenseCollector | DiagonalCollector] = []
        self._seen: Tape | None = None

    def _start(self, tape: Tape) -> dict[str, _Factors]:
        owners = Counter(name for own in tape.layers.names.values() for name in own.values())
        called = {call.name for call in tape.known}
        factors = {}
        for module, layer in tape.layers.layers.items():
            own = tape.layers.names[module]
            linear = layer.weight_axes and module in called
            if linear and all(owners[name] == 1 and name not in tape.generic for name in own.values()):
                factors[module] = _Factors(layer, own, self.layout, self.sharing)
        covered = {name for factor in factors.values() for name in factor.layout.names}
        for name in self.layout.names:
            if name not in covered:
                part = self.layout.part([name])
                self.rest.append(DenseCollector(part) if part.size <= DENSE_BLOCK else DiagonalCollector(part))
        return factors

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Inputs once per batch, cotangents with every chunk."""
        if self.factors is None:
            self.factors = self._start(tape)
        fresh, self._seen = tape is not self._seen, tape
        for module, calls in joined_calls(tape, cotangents, set(self.factors)):
            factor = self.factors[module]
            if fresh:
                factor.add_inputs(calls)
            factor.add_cotangents(calls.g)
        for collector in self.rest:
            collector.add(tape, keys, cotangents)

    def finish(self, count: int, sampling: Sampling | None) -> BlockDiagonal:
        """K-FAC over all selected parameters."""
        assert self.factors is not None
        blocks: list[Operator] = [factor.finish(count, None) for factor in self.factors.values()]
        blocks += [collector.finish(count, None) for collector in self.rest]
        return BlockDiagonal(in_order(blocks, self.layout), self.layout, count, sampling, form="kfac")


class EigenvalueCollector:
    """EKFAC: second moments of the per-example gradients in the eigenbases of a K-FAC operator, S = E[(Q_G^T G_n
    Q_A)^2].

    The Frobenius-optimal diagonal in that basis, so the block is never farther from the truth than K-FAC's.
    """

    head = False
    streams = True

    def __init__(self, kfac: BlockDiagonal, modules: dict[str, _Factors]) -> None:
        self.kfac, self.modules = kfac, modules
        self.bases = {part.names: part.rotated for part in kfac.parts if isinstance(part, Kronecker)}
        self.sums: dict[tuple[str, ...], Tensor] = {
            names: torch.zeros_like(basis.scales) for names, basis in self.bases.items()
        }

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Rotate and square."""
        for module, calls in joined_calls(tape, cotangents, set(self.modules)):
            factor, g = self.modules[module], calls.g
            names = factor.layout.names
            basis, start = self.bases[names], 0
            left, right = basis.left.to(g.dtype), basis.right.to(g.dtype)
            for a in calls.rows():
                a = factor.inputs(a) @ right
                part = g[:, start : start + len(a)] @ left
                start += len(a)
                self.sums[names] += _squares(a, part)

    def finish(self, count: int, sampling: Sampling | None) -> BlockDiagonal:
        """EKFAC over all selected parameters; blocks without Kronecker structure are K-FAC's exact ones."""
        blocks: list[Operator] = []
        for part in self.kfac.parts:
            if isinstance(part, Kronecker):
                basis = self.bases[part.names]
                scales = self.sums[part.names] / count
                blocks.append(EigenKronecker(basis.left, basis.right, scales, part.axes, part.bias, part.layout, count))
            else:
                blocks.append(part)
        return BlockDiagonal(blocks, self.kfac.layout, count, sampling, form="ekfac")


def _squares(a: Tensor, g: Tensor) -> Tensor:
    """Sum over cotangents and examples of (sum_t g_t a_t^T)**2 for a (n, T, I), g (K, n, T, O)."""
    if a.shape[1] == 1:
        return (g.square().sum(0)[:, 0].T @ a.square()[:, 0]).double()
    total = torch.zeros(g.shape[-1], a.shape[-1], dtype=torch.float64, device=a.device)
    step = chunk(a.element_size() * g.shape[-1] * a.shape[-1])
    for k in range(len(g)):
        for i in range(0, len(a), step):
            total += torch.bmm(g[k, i : i + step].mT, a[i : i + step]).square_().sum(0)
    return total


@dataclass(frozen=True)
class _Calls:
    """The calls of one linear map, joined as further positions: inputs by call, cotangents g (K, N, T, O) of all."""

    layers: list[Layer]
    inputs: list[Tensor]
    g: Tensor

    def rows(self) -> Iterator[Tensor]:
        """Input rows (n, T, I), a chunk of examples at a time."""
        layer, first = self.layers[0], self.inputs[0]
        step = chunk(self.g.shape[2] * layer.width(first) * first.element_size())
        for start in range(0, len(first), step):
            pieces = [layer.rows(a[start : start + step]) for layer, a in zip(self.layers, self.inputs, strict=True)]
            yield torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0]

    def moments(self) -> tuple[Tensor, Tensor, int] | None:
        """Sums of r r^T and r over all rows, where the layer has a way without them."""
        return self.layers[0].moments(self.inputs[0]) if len(self.layers) == 1 else None


def joined_calls(tape: Tape, cotangents: Tensor, modules: set[str]) -> Iterator[tuple[str, _Calls]]:
    """The calls of each of these modules."""
    by_module: dict[str, list[tuple[Layer, Tensor, Tensor]]] = {}
    for call, a, g in tape.pulled_calls(cotangents):
        if call.name in modules:
            by_module.setdefault(call.name, []).append((call.layer, a, call.layer.positions(g)))
    for module, calls in by_module.items():
        layers, inputs, gs = map(list, zip(*calls, strict=True))
        yield module, _Calls(layers, inputs, torch.cat(gs, 2) if len(gs) > 1 else gs[0])


def in_order(blocks: list[Operator], layout: Layout) -> list[Operator]:
    """Blocks in the order of their first parameter."""
    place = {name: number for number, name in enumerate(layout.names)}
    return sorted(blocks, key=lambda block: place[block.names[0]])
