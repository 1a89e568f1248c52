"""``dynaxx.eigenspace``: the leading eigenspaces of a Fisher matrix, as projections and never as stored eigenvectors.

With F = (1/N) G G^T and its Gram matrix K = (1/N) G^T G = U L U^T, eigenvector i of F is e_i = G u_i / sqrt(N l_i). So

    <d, e_i> = u_i^T (G^T d) / sqrt(N l_i)                   one product for all i
    P_k d    = sum_{i <= k} <d, e_i> e_i = G c               one reverse pass for each k

where G^T d needs one forward-mode product (by double reverse) and G c one reverse pass. Where there are fewer
parameters than rows, the smaller side is F itself, and its p x p eigenvectors are kept instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import estimators, likelihoods
from dynaxx.assembly.crossgram import cross_gram
from dynaxx.assembly.entries import DenseCollector
from dynaxx.assembly.gram import GramCollector
from dynaxx.assembly.pullback import Pullback
from dynaxx.assembly.sweep import Collector, Sweeper
from dynaxx.errors import InputError, SizeError, choose
from dynaxx.estimators import ESTIMATORS, Columns, Estimator, Factor, Hutchinson
from dynaxx.likelihoods import Likelihood
from dynaxx.linalg import symmetric_eigenvalues
from dynaxx.model.data import Data
from dynaxx.model.network import Network, Predict
from dynaxx.model.selection import Selector
from dynaxx.operators.dense import Dense
from dynaxx.operators.gram import Gram
from dynaxx.spectrum import Spectrum

SIDE = 8192  # the largest matrix that is decomposed whole: 0.5 GB, and as much again for its eigenvectors
COLUMN_BYTES = 2**28  # vectors of length p that exist at one time


def smaller_side(
    network: Network, data: Data, estimator: Estimator, *, seed: int = 0, progress: bool = False
) -> Gram | Dense:
    """The operator on whichever side is smaller: p x p, or the Gram matrix of N times K rows.

    Where both pass ``SIDE`` and the estimator is exact (columns of a root of the metric), as many random combinations
    of each example's columns stand in for them as there is room for, and the operator says that it was sampled.

    Raises:
        SizeError: even one row per example would be too many.
    """
    source = Pullback(Sweeper(network, data, estimator, progress))
    count, columns = source.count()
    p = network.layout.size
    if min(p, count * columns) > SIDE:
        if count > SIDE or not isinstance(estimator, Columns):
            rows = count if isinstance(estimator, Columns) else count * columns
            raise SizeError(
                f"{p} parameters and {rows} rows ({count} examples) leave no side of at most {SIDE} to decompose; give "
                f"fewer examples, or fewer parameters with params="
            )
        sampled = Hutchinson(estimator, SIDE // count, seed)
        source = Pullback(Sweeper(network, data, sampled, progress))
        count, columns = source.count()
    layout = network.layout
    collector: Collector = (
        DenseCollector(layout) if p <= count * columns else GramCollector(layout, source, source.estimator.number)
    )
    (operator,) = source.sweeper.run([collector])
    assert isinstance(operator, (Gram, Dense))
    return operator


def spectrum_of(operator: Gram | Dense, values: Tensor | None = None) -> Spectrum:
    """Its spectrum with the floor of a Gram matrix: gradients in the model's dtype, products and sums in float64.

    Args:
        values: the eigenvalues, where they are at hand.
    """
    values = symmetric_eigenvalues(operator.matrix) if values is None else values
    eps = max(torch.finfo(torch.float64).eps, torch.finfo(operator.dtype).eps ** 2)
    bound = operator.rank_bound
    return Spectrum(
        values.sort(descending=True).values[:bound],
        dimension=operator.shape[0],
        count=operator.count,
        floor=eps * len(values) * float(values.max().clamp(min=0)),
        rank_bound=bound,
        exact=operator.sampling is None,
    )


class Eigenspace:
    """The eigenspaces of a Fisher matrix, leading first: coordinates in them, projections on them, their overlap.

    Args:
        operator: a Gram operator with its model, or a dense one. It is decomposed whole, in float64.

    Attributes:
        spectrum: all eigenvalues, with their rounding floor.
        values: (rank,) those above the floor, descending; the eigenvectors are theirs.
    """

    def __init__(self, operator: Gram | Dense) -> None:
        values, vectors = torch.linalg.eigh(operator.matrix)
        values, vectors = values.flip(0), vectors.flip(1)
        self.operator, self.layout = operator, operator.layout
        self.spectrum = spectrum_of(operator, values)
        rank = min(int((values > self.spectrum.floor).sum()), operator.rank_bound)
        self.values, self._vectors = values[:rank], vectors[:, :rank]

    @property
    def rank(self) -> int:
        """Eigenvectors there are: eigenvalues above the rounding floor."""
        return len(self.values)

    @property
    def exact(self) -> bool:
        """False where the Fisher matrix itself was sampled."""
        return self.operator.sampling is None

    def coordinates(self, vectors: Tensor | Mapping[str, Tensor]) -> Tensor:
        """<v, e_i> for every eigenvector, (rank,) or (rank, j), float64.

        Args:
            vectors: (p,), (p, j), or a dict by parameter name.

        Cost: one product by double reverse mode per vector, whatever the rank; none on the dense side.
        """
        given = self.layout.ravel(vectors) if isinstance(vectors, Mapping) else vectors
        if not isinstance(given, Tensor) or given.dim() not in (1, 2) or len(given) != self.layout.size:
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InputError(
                f"expected a tensor of shape ({self.layout.size},) or ({self.layout.size}, k), or a dict by parameter "
                f"name; got {got}"
            )
        columns = given.detach().to(self.layout.device)
        columns = columns if columns.dim() == 2 else columns[:, None]
        if isinstance(self.operator, Dense):
            out = self._vectors.T @ columns.double()
        else:
            rows = self.operator.source.to_rows(columns.to(self.layout.dtype)).double()
            out = (self._vectors / (self.operator.count * self.values).sqrt()).T @ rows
        return out if given.dim() == 2 else out[:, 0]

    def combine(self, coefficients: Tensor) -> Tensor:
        """sum_i c_i e_i for coefficients (j, columns) of the first j eigenvectors: (p, columns), float64.

        Cost: one reverse pass per column; no eigenvector is formed.
        """
        c = coefficients.to(self._vectors)
        if isinstance(self.operator, Dense):
            return self._vectors[:, : len(c)] @ c
        scaled = c / (self.operator.count * self.values[: len(c), None]).sqrt()
        return self.operator.source.from_rows(self._vectors[:, : len(c)] @ scaled)

    def project(self, vector: Tensor | Mapping[str, Tensor], k: int) -> Tensor:
        """P_k v on the first k eigenvectors, (p,), float64: one product and one reverse pass.

        Raises:
            InputError: k is not between 0 and the rank.
        """
        self.require(k)
        return self.combine(self.coordinates(vector)[:k, None])[:, 0]

    def shares(self, vector: Tensor | Mapping[str, Tensor]) -> Tensor:
        """<v, e_i>^2 / |v|^2 for every eigenvector, (rank,): where a displacement of the weights lies.

        ``.cumsum(0)`` gives the share of the first k. What is missing from 1 lies in the kernel, where the predictions
        on these data do not change to first order.

        Raises:
            InputError: the vector is zero.
        """
        given = self.layout.ravel(vector) if isinstance(vector, Mapping) else vector
        squared = float(given.detach().double().square().sum())
        if not squared:
            raise InputError("the displacement is zero, so it lies nowhere; give one that has a length")
        return self.coordinates(given).square() / squared

    def overlap(self, other: Eigenspace, k: int) -> float:
        """(1/k) |E_k^T E'_k|_F^2 of the first k eigenvectors of two Fisher matrices: 1 the same space, k/p for chance.

        Args:
            other: of another checkpoint (a copy of the model: an eigenspace reads its model's present weights), of
                other data, or another estimator, over the same parameters.
            k: at most the smaller rank.

        Raises:
            InputError: the parameters differ, or k is out of range.

        Cost: the products of one cross Gram matrix; with a dense side, one reverse pass for each of k vectors, a few at
        a time.
        """
        if self.layout.shapes != other.layout.shapes:
            raise InputError(
                f"the two eigenspaces are over different parameters ({list(self.layout.shapes)[:4]}..., "
                f"{list(other.layout.shapes)[:4]}...); make both with the same params= of the same architecture"
            )
        self.require(k, 1)
        other.require(k, 1)
        if isinstance(self.operator, Gram) and isinstance(other.operator, Gram):
            return float(self._cosines(other, k).square().sum()) / k
        total = 0.0
        for block in torch.eye(k, dtype=torch.float64, device=self.layout.device).split(self.columns_at_once, dim=1):
            total += float(self.coordinates(other.combine(block))[:k].square().sum())
        return total / k

    def _cosines(self, other: Eigenspace, k: int) -> Tensor:
        mine, theirs = self.operator, other.operator
        assert isinstance(mine, Gram)
        assert isinstance(theirs, Gram)
        assert isinstance(mine.source, Pullback)
        assert isinstance(theirs.source, Pullback)
        left = self._vectors[:, :k] / (mine.count * self.values[:k]).sqrt()
        right = other._vectors[:, :k] / (theirs.count * other.values[:k]).sqrt()
        return left.T @ cross_gram(mine.source, theirs.source) @ right

    @property
    def columns_at_once(self) -> int:
        """Vectors of length p that are made together."""
        return max(1, COLUMN_BYTES // (8 * self.layout.size))

    def require(self, k: int, least: int = 0) -> None:
        """Refuse a number of eigenvectors that there are not.

        Raises:
            InputError: k is not a whole number between ``least`` and the rank.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not least <= k <= self.rank:
            raise InputError(
                f"k={k!r}; expected a whole number between {least} and {self.rank}, the eigenvalues above the rounding "
                f"floor {self.spectrum.floor:.2g} (min(p, rows) = {self.operator.rank_bound})"
            )

    def __repr__(self) -> str:
        side = "parameters" if isinstance(self.operator, Dense) else "rows"
        sampled = "" if self.exact else ", sampled"
        return f"Eigenspace(rank {self.rank} of {self.layout.size}, from {len(self._vectors)} {side}{sampled})"


@torch.inference_mode(False)
def eigenspace(
    model: nn.Module,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    estimator: str = "auto",
    params: Selector = None,
    samples: int = 1,
    seed: int = 0,
    predict: Predict | None = None,
    progress: bool = False,
) -> Eigenspace:
    """The leading eigenspaces of the Fisher matrix: coordinates, projections, overlaps.

        F = (1/N) G G^T = sum_i l_i e_i e_i^T,   <d, e_i> = u_i^T G^T d / sqrt(N l_i),   K = (1/N) G^T G = U L U^T

    Args:
        model: any module, in evaluation mode. It is read again by every later call, so its weights must stay as they
            are: keep a copy for each checkpoint.
        data, likelihood, params, predict: as for ``fisher``.
        estimator: "auto" is exact where p or N times K (K = C - 1 columns per position for C classes) is at most 8,192,
            and otherwise takes random combinations of each example's columns, as many as fit, and says so (``exact``);
            or as for ``fisher``.
        samples, seed: of a random estimator.
        progress: show a progress bar.

    Returns:
        An Eigenspace.

    Raises:
        InputError: as for ``fisher``. SizeError: more than 8,192 parameters and more than 8,192 rows.

    Cost: one sweep and one symmetric eigenvalue problem of m = min(p, N K), 16 m^2 bytes.

    >>> model = nn.Linear(3, 2).double()
    >>> space = eigenspace(model, torch.randn(10, 3).double())
    >>> space.rank, round(space.overlap(space, 2), 9)
    (4, 1.0)
    """
    network, source, chosen = prepare(model, data, likelihood, estimator, params, samples, seed, predict)
    return Eigenspace(smaller_side(network, source, chosen, seed=seed, progress=progress))


def prepare(
    model: nn.Module,
    data: Any,
    likelihood: str | Likelihood,
    estimator: str,
    params: Selector,
    samples: int,
    seed: int,
    predict: Predict | None,
) -> tuple[Network, Data, Estimator]:
    """Model, data and estimator, checked; "auto" is the exact estimator."""
    choose("estimator", estimator, ("auto", *ESTIMATORS))
    meaning = likelihoods.resolve(likelihood)
    chosen: Estimator = Factor(meaning)
    if estimator not in ("auto", "exact"):
        chosen = estimators.resolve(estimator, meaning, samples=samples, seed=seed)
    network = Network(model, meaning, params, predict)
    return network, Data(data, network.device, passes="several"), chosen
