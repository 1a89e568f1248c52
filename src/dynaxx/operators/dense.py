"""The matrix itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynaxx.estimate import Estimate
from dynaxx.layout import Layout
from dynaxx.linalg import symmetric_eigenvalues
from dynaxx.operators.base import TOLERANCE, Eigenpairs, Operator, Sampling
from dynaxx.spectrum import Spectrum


class Dense(Operator):
    """A stored symmetric matrix, float64. Memory 8 p^2 bytes; every verb is exact."""

    form = "dense"

    def __init__(
        self, matrix: Tensor, layout: Layout, count: int, sampling: Sampling | None = None, definite: bool = True
    ) -> None:
        super().__init__(layout, count, sampling, definite)
        self.matrix = matrix.double()

    def product(self, vectors: Tensor) -> Tensor:
        """A @ vectors."""
        return (self.matrix @ vectors.double()).to(self.dtype)

    def _solve(self, vectors: Tensor, damping: float) -> Tensor:
        damped = self.matrix + damping * torch.eye(len(self.matrix), dtype=torch.float64, device=self.device)
        factor, failed = torch.linalg.cholesky_ex(damped)
        solution = (
            torch.linalg.solve(damped, vectors.double()) if failed else torch.cholesky_solve(vectors.double(), factor)
        )
        return solution.to(self.dtype)

    def to_dense(self) -> Tensor:
        """A copy of the matrix, in the parameters' dtype."""
        return self.matrix.to(self.dtype, copy=True)

    def diagonal(self) -> Tensor:
        """The diagonal."""
        return self.matrix.diagonal().to(self.dtype, copy=True)

    def eigh(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Eigenpairs:
        """The k largest eigenvalues, or all, with their vectors; one dense decomposition."""
        k = self._require_k(k)
        values, vectors = torch.linalg.eigh(self.matrix)
        return Eigenpairs(values.flip(0)[:k].to(self.dtype), vectors.flip(1)[:, :k].to(self.dtype))

    def eigenvalues(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Tensor:
        """Eigenvalues, descending."""
        k = self._require_k(k)
        return symmetric_eigenvalues(self.matrix)[:k].to(self.dtype)

    def spectrum(self, k: int | None = None) -> Spectrum:
        """All eigenvalues, or the top k."""
        return self._spectrum_of(symmetric_eigenvalues(self.matrix)[: self._require_k(k)], k)

    def trace(self) -> Estimate:
        """Sum of the diagonal."""
        return self._scalar(float(self.matrix.trace()))

    def logdet(self, damping: float) -> Estimate:
        """log det(A + damping I), from the eigenvalues."""
        self._require_damping(damping)
        values = symmetric_eigenvalues(self.matrix)
        values = values.clamp(min=0) if self.definite else values
        self._require_real_log(values, damping)
        return self._scalar(float(torch.log(values + damping).sum()), derived=True)

    def frobenius(self) -> Estimate:
        """Square root of the sum of squared entries."""
        return self._scalar(float(self.matrix.norm()), derived=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The matrix."""
        return {"matrix": self.matrix}, {}
