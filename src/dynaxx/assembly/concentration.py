"""How concentrated the spectrum of F is, from sampled gradients of a few examples: no product with F, no eigenvalue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynaxx import estimators
from dynaxx.assembly.sweep import Sweeper
from dynaxx.estimate import Estimate
from dynaxx.model.data import Batch, Data
from dynaxx.model.network import Network
from dynaxx.model.rules.base import Use, inner

ROWS, FEWEST = 128, 16  # sampled gradients that are compared with one another: if time and memory allow, and anyway
BYTES = 2**30  # of their layer inputs and cotangents
WORK = 2e10  # multiplications that their inner products may take if all gradients are formed


@dataclass(frozen=True)
class Concentration:
    """Gram matrix of sampled gradients g_nk, E g_nk g_nk^T = F_n, and what it says about F = (1/N) sum_n F_n.

        tr F^2 = (1 - 1/N) mean_{n != m} (g_nk . g_ml)^2 + (1/N) mean_{n, k != l} (g_nk . g_nl)^2

    and (tr F)^2 the same with |g_nk|^2 |g_ml|^2: both without bias, because no gradient meets itself.

    Args:
        products: (R, R), inner products of R gradients.
        examples: (R,), the example of each.
        count: N, examples of the data that these stand for.
    """

    products: Tensor
    examples: Tensor
    count: int

    def participation_ratio(self) -> Estimate:
        """(tr F)^2 / |F|_F^2, its standard error by leaving out one example in turn; NaN where F is zero.

        Where the examples are all there are, the error is too large rather than too small: it counts their differences.
        """
        whole = self._ratio(slice(None))
        members = self.examples.unique()
        if len(members) < 3:
            return Estimate(whole, math.nan, len(self.examples), False)
        values = torch.tensor([self._ratio(self.examples != n) for n in members], dtype=torch.float64)
        spread = (values - values.mean()).square().sum() * (len(values) - 1) / len(values)
        return Estimate(whole, float(spread.sqrt()), len(self.examples), False)

    def _ratio(self, rows: Tensor | slice) -> float:
        products = self.products[rows][:, rows]
        weights = _weights(self.examples[rows], self.count)
        norms = products.diagonal()
        square = float((weights * products.square()).sum())
        return float(norms @ weights @ norms) / square if square > 0 else math.nan

    def trace(self) -> float:
        """tr F."""
        return float(self.products.diagonal().mean())

    def within(self) -> float:
        """mean_n |F_n|_F^2 / (tr F)^2."""
        return self._own(self.products.square())

    def unevenness(self) -> float:
        """mean_n (tr F_n)^2 / (tr F)^2, one where all examples weigh alike."""
        norms = self.products.diagonal()
        return self._own(norms[:, None] * norms)

    def _own(self, values: Tensor) -> float:
        norms, weights = self.products.diagonal(), _weights(self.examples, self.count)
        same = (self.examples[:, None] == self.examples).fill_diagonal_(False)
        return float(values[same].mean() / (norms @ weights @ norms))

    def remainder(self, sketch: int) -> tuple[float, float]:
        """Shares of tr F and of |F|_F, the latter over tr F too, that deflation with this many columns leaves.

        One half of the gradients is deflated in its own coordinates, Q = orth(K Omega), the directions it finds are
        taken out of the other half, and the halves change roles. They share no draw; nor an example, unless these are
        all examples there are.
        """
        members = self.examples.unique()
        if len(members) == self.count:
            half = _occurrence(self.examples) % 2 == 0
        else:
            half = torch.searchsorted(members, self.examples) % 2 == 0
        found = torch.tensor([self._left(one, sketch) for one in (half, ~half)], dtype=torch.float64).mean(0)
        return float(found[0]), float(found[1])

    def _left(self, known: Tensor, sketch: int) -> tuple[float, float]:
        inside, across = self.products[known][:, known], self.products[~known][:, known]
        omega = torch.randn(len(inside), sketch, generator=torch.Generator().manual_seed(sketch), dtype=torch.float64)
        Q = torch.linalg.qr(inside @ omega).Q
        taken = across @ Q
        rest = self.products[~known][:, ~known] - taken @ torch.linalg.pinv(Q.T @ inside @ Q, hermitian=True) @ taken.T
        trace = float(self.products.diagonal()[~known].mean())
        square = float((_weights(self.examples[~known], self.count) * rest.square()).sum())
        return float(rest.diagonal().mean()) / trace, math.sqrt(square) / trace

    @property
    def columns(self) -> int:
        """The largest sketch that ``remainder`` can speak of: half of what one half spans."""
        return len(self.products) // 4


def _weights(examples: Tensor, count: int) -> Tensor:
    """(R, R) weights of the mean over pairs that stands for a mean over all pairs of ``count`` examples."""
    same = examples[:, None] == examples
    own = same.clone().fill_diagonal_(False)
    weights = (~same).double() * ((1 - 1 / count) / max(1, int((~same).sum())))
    weights += own.double() / (count * max(1, int(own.sum())))
    return weights / weights.sum()


def _occurrence(examples: Tensor) -> Tensor:
    """0, 1, 2, ... for the first, second, third, ... row of each example."""
    earlier = torch.tril(examples[:, None] == examples, -1)
    return earlier.sum(1)


def measure(network: Network, pieces: Sequence[Batch], count: int) -> Concentration:
    """Sampled gradients of the examples of ``pieces``, which stand for ``count``, and their inner products.

    Draws are signs times Cholesky's root, at least four an example and ROWS in all; of a large model fewer, and of
    fewer examples.

    Cost: ROWS example-sized reverse passes and inner products of as many gradients.
    """
    estimator = estimators.resolve("hutchinson", network.likelihood, samples=4, factor="cholesky")
    sweeper = Sweeper(network, Data([], network.device), estimator)
    held: list[tuple[Tensor, dict[str, list[Use]]]] = []
    with network.guarded():
        tape = sweeper.tape(pieces[0])
        size, itemsize = network.layout.size, network.layout.dtype.itemsize
        entries = tape.entries // tape.count + (size if tape.generic else 0)
        affordable = min(BYTES // (entries * itemsize), math.isqrt(int(WORK) // size))
        number = max(FEWEST, min(ROWS, affordable))
        chosen = pieces[:: -(-4 * sum(piece.count for piece in pieces) // number)]
        members = sum(piece.count for piece in chosen)
        estimator.samples = max(4, 2 * -(-number // (2 * members)))
        first = 0
        for piece in chosen:
            keys = torch.arange(first, first + piece.count, device=network.device)
            first += piece.count
            tape = sweeper.tape(piece)
            chunks = sweeper.chunks(tape, keys)
            held += [(keys.cpu().repeat(len(cotangents)), tape.pulled(cotangents)) for cotangents in chunks]
    examples = torch.cat([keys for keys, _ in held])
    products = torch.zeros(len(examples), len(examples), dtype=torch.float64)
    rows = list(torch.arange(len(examples)).split([len(keys) for keys, _ in held]))
    for i, (_, one) in enumerate(held):
        for j, (_, two) in enumerate(held[i:], i):
            block = _products(one, two) * estimator.samples
            products[rows[i][:, None], rows[j]] = block
            products[rows[j][:, None], rows[i]] = block.T
    return Concentration((products + products.T) / 2, examples, count)


def _products(left: dict[str, list[Use]], right: dict[str, list[Use]]) -> Tensor:
    """Inner products of all gradients of one chunk with all of another, rows by draw, then example."""
    blocks = (inner(left[name], right[name]).flatten(2).flatten(0, 1).cpu() for name in left.keys() & right.keys())
    return torch.stack(list(blocks)).sum(0)
