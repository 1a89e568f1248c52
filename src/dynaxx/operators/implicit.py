"""Operators that hold the model instead of numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

from torch import Tensor

from dynaxx import linalg
from dynaxx.estimate import Estimate
from dynaxx.layout import Layout
from dynaxx.operators.base import DENSE_SIZE, TOLERANCE, Operator, Sampling
from dynaxx.operators.gram import Gram
from dynaxx.spectrum import SampledSpectrum, Spectrum

GRAM_ROWS = 4096  # spectra through the Gram matrix up to this many rows: 3 decompositions of 128 MB
# The largest eigenvalues through the Gram matrix up to this many rows: two matrices of 256 MB. It costs as much as
# about M K / (12 T) products with F, for K cotangents and a weight shared over T positions, where Lanczos takes
# 100 or more of them.
TOP_ROWS = 8192
TOP_BLOCK = 5  # columns that a matrix in memory is multiplied with at little more than the price of one


class Source(Protocol):
    """What an implicit Fisher operator reads from the model."""

    def product(self, vectors: Tensor) -> Tensor:
        """F V."""

    def to_rows(self, vectors: Tensor) -> Tensor:
        """G^T V, (M, k)."""

    def from_rows(self, coefficients: Tensor) -> Tensor:
        """G c, (p, k)."""

    def inner_products(self) -> Tensor | None:
        """G^T G in the model's precision, or None where it would not fit."""

    def trace(self) -> tuple[float, Sampling | None]:
        """tr F and its randomness."""


class Implicit(Operator):
    """F without a matrix: products, and what per-example gradients give in one pass.

    The trace and the diagonal come from one sweep with the estimator's own cotangents, exact where the estimator is.
    Up to 4096 Gram rows (examples times cotangents) the whole spectrum is exact too.

    Args:
        source: products and the trace.
        entries: makes the diagonal operator.
        gram: makes the Gram operator, or None where there is none.
        rows: M, the number of Gram rows.
    """

    form = "implicit"

    def __init__(
        self,
        source: Source,
        layout: Layout,
        count: int,
        sampling: Sampling | None,
        entries: Callable[[], Operator],
        gram: Callable[[], Gram],
        rows: int,
    ) -> None:
        super().__init__(layout, count, sampling)
        self.source, self._entries, self._make_gram, self.rows = source, entries, gram, rows

    @property
    def rank_bound(self) -> int:
        """min(p, M)."""
        return min(self.layout.size, self.rows)

    @cached_property
    def as_gram(self) -> Gram:
        """The same operator through its Gram matrix, made once."""
        return self._make_gram()

    @cached_property
    def _inner_products(self) -> Tensor | None:
        found = self.source.inner_products()
        return None if found is None else found.div_(self.count)

    @property
    def _few_rows(self) -> bool:
        return self.layout.size > DENSE_SIZE and self.rows <= GRAM_ROWS

    def product(self, vectors: Tensor) -> Tensor:
        """J^T M J V."""
        return self.source.product(vectors)

    def diagonal(self) -> Tensor:
        """Squares of per-example gradients, one sweep."""
        return self._entries().diagonal()

    def trace(self) -> Estimate:
        """Norms of per-example gradients, one sweep, no probes over parameters."""
        value, sampling = self.source.trace()
        return (
            Estimate(value)
            if sampling is None
            else Estimate(value, sampling.trace_stderr, sampling.samples, exact=False)
        )

    def spectrum(self, k: int | None = None) -> Spectrum | SampledSpectrum:
        """Exact through the dense or the Gram matrix where either is small; the top k by Lanczos; else stochastic
        Lanczos quadrature."""
        if k is None and self._few_rows:
            return self.as_gram.spectrum()
        return super().spectrum(k)

    def eigenvalues(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Tensor:
        """The k largest, or all that structure allows not to be zero; through the Gram matrix where that is small.

        The k largest come from Lanczos on the Gram matrix in the model's precision for up to 8192 rows, which costs
        one sweep and M^2/2 inner products of gradients; else from Lanczos with products.

        Args:
            k, tolerance: as for ``eigh``.
        """
        if (k is None and self._few_rows) or "as_gram" in self.__dict__:
            return self.as_gram.eigenvalues(k)
        self._require_k(k)
        if k is not None and k <= self.rows <= TOP_ROWS and self.layout.size > max(DENSE_SIZE, self.rows):
            products = self._inner_products
            if products is not None:
                return linalg.lanczos(products, k, tolerance=tolerance, block=min(k, TOP_BLOCK)).values.to(self.dtype)
        return super().eigenvalues(k, tolerance=tolerance)

    def logdet(self, damping: float) -> Estimate:
        """log det(F + damping I), exact where the spectrum is."""
        self._require_damping(damping)
        if self._few_rows:
            return self.as_gram.logdet(damping)
        return super().logdet(damping)

    def frobenius(self) -> Estimate:
        """Frobenius norm, exact where the spectrum is."""
        if self._few_rows:
            return self.as_gram.frobenius()
        return super().frobenius()
