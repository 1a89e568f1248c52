"""The Gram matrix of all per-example gradients: the exact non-zero spectrum when p is large and N C is not.

F = (1/N) G G^T with G (p, M) has the non-zero eigenvalues of K = (1/N) G^T G (M x M). Eigenvectors of F are lifted, e
= G u / sqrt(N l), by one reverse pass each; no vector of length p is stored until asked for.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.layout import Layout
from dynaxx.linalg import symmetric_eigenvalues
from dynaxx.operators.base import TOLERANCE, Eigenpairs, Operator, Sampling
from dynaxx.spectrum import Spectrum


class Rows(Protocol):
    """The map between parameter space and Gram rows, which needs the model."""

    def product(self, vectors: Tensor) -> Tensor:
        """F V."""

    def to_rows(self, vectors: Tensor) -> Tensor:
        """G^T V, (M, k)."""

    def from_rows(self, coefficients: Tensor) -> Tensor:
        """G c, (p, k)."""


class Gram(Operator):
    """F through its M x M Gram matrix in float64. Memory 8 M^2 bytes, twice that while it is decomposed.

    Args:
        matrix: K = (1/N) G^T G.
        source: the model side; None for an operator that was loaded from a file, which then answers spectral verbs
            only.
        diagonal: diag F (p,), which the sweep gathers beside K.
    """

    form = "gram"

    def __init__(
        self,
        matrix: Tensor,
        diagonal: Tensor,
        source: Rows | None,
        layout: Layout,
        count: int,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__(layout, count, sampling)
        self.matrix, self._diagonal, self._source = matrix.double(), diagonal, source

    @property
    def source(self) -> Rows:
        """The model side."""
        if self._source is None:
            raise InputError(
                "this Gram operator was loaded from a file and has no model, so it answers spectral verbs only; make "
                "one with fisher(...)"
            )
        return self._source

    @property
    def rows(self) -> int:
        """M, the number of Gram rows."""
        return len(self.matrix)

    @property
    def rank_bound(self) -> int:
        """min(p, M)."""
        return min(self.layout.size, len(self.matrix))

    @cached_property
    def _decomposition(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.matrix)
        return values.flip(0), vectors.flip(1)

    @cached_property
    def _values(self) -> Tensor:
        if "_decomposition" in self.__dict__:
            return self._decomposition[0]
        return symmetric_eigenvalues(self.matrix)

    @property
    def floor(self) -> float:
        """Below it eigenvalues are rounding.

        M eps^2 l_1 with the eps of the model's dtype (K squares G), at least float64's.
        """
        eps = max(torch.finfo(torch.float64).eps, torch.finfo(self.dtype).eps ** 2)
        return eps * len(self.matrix) * float(self._values[0].clamp(min=0))

    def product(self, vectors: Tensor) -> Tensor:
        """J^T M J V."""
        return self.source.product(vectors)

    def _solve(self, vectors: Tensor, damping: float) -> Tensor:
        # Woodbury: (GG^T/N + d)^{-1} v = (v - G (N K + N d)^{-1} G^T v) / d
        rows = self.source.to_rows(vectors)
        damped = self.count * (
            self.matrix + damping * torch.eye(len(self.matrix), dtype=torch.float64, device=self.matrix.device)
        )
        factor, failed = torch.linalg.cholesky_ex(damped)
        inner = torch.linalg.solve(damped, rows) if failed else torch.cholesky_solve(rows, factor)
        correction = self.source.from_rows(inner)
        return ((vectors.double() - correction) / damping).to(self.dtype)

    def diagonal(self) -> Tensor:
        """The diagonal, gathered in the sweep."""
        return self._diagonal.to(self.dtype, copy=True)

    def eigh(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Eigenpairs:
        """The k largest eigenvalues with vectors lifted to parameter space; without k, those above the rounding
        floor."""
        k = self._require_k(k)
        values, vectors = self._decomposition
        keep = int((values > self.floor).sum())
        if k is not None and k > keep:
            raise InputError(
                f"k={k}, but only {keep} eigenvalues are above the rounding floor {self.floor:.3g}; ask for at most "
                f"{keep}"
            )
        keep = keep if k is None else k
        lifted = self.source.from_rows(vectors[:, :keep] / (self.count * values[:keep]).sqrt())
        return Eigenpairs(values[:keep].to(self.dtype, copy=True), lifted.to(self.dtype))

    def eigenvalues(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Tensor:
        """The min(p, M) eigenvalues that structure allows not to be zero, or the k largest, descending."""
        k = self._require_k(k)
        return self._values[: self.rank_bound][:k].to(self.dtype, copy=True)

    def spectrum(self, k: int | None = None) -> Spectrum:
        """The non-zero spectrum, float64, with its rounding floor."""
        k = self._require_k(k)
        return self._spectrum_of(self._values[: self.rank_bound][:k].clone(), k, floor=self.floor)

    def trace(self) -> Estimate:
        """tr K."""
        return self._scalar(float(self.matrix.trace()))

    def logdet(self, damping: float) -> Estimate:
        """log det(F + damping I): the M eigenvalues, and damping for the rest."""
        self._require_damping(damping)
        inside = torch.log1p(self._values[: self.rank_bound].clamp(min=0) / damping).sum()
        return self._scalar(
            float(inside + self.layout.size * torch.log(torch.tensor(damping, dtype=torch.float64))), derived=True
        )

    def frobenius(self) -> Estimate:
        """|K|_F, which equals |F|_F."""
        return self._scalar(float(self.matrix.norm()), derived=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """K and the diagonal; the model side is not stored."""
        return {"matrix": self.matrix, "diagonal": self._diagonal}, {}
