"""The diagonal alone: every parameter by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynaxx.estimate import Estimate
from dynaxx.layout import Layout
from dynaxx.operators.base import Eigenpairs, Operator, Sampling
from dynaxx.spectrum import Spectrum


class Diagonal(Operator):
    """diag(d). Memory p numbers; every verb costs O(p) or a sort."""

    form = "diagonal"

    def __init__(
        self, values: Tensor, layout: Layout, count: int, sampling: Sampling | None = None, definite: bool = True
    ) -> None:
        super().__init__(layout, count, sampling, definite)
        self.values = values

    def product(self, vectors: Tensor) -> Tensor:
        """d * v."""
        return self.values.to(self.dtype)[:, None] * vectors

    def _solve(self, vectors: Tensor, damping: float) -> Tensor:
        return vectors / (self.values.to(self.dtype)[:, None] + damping)

    def diagonal(self) -> Tensor:
        """d."""
        return self.values.to(self.dtype, copy=True)

    def eigh(self, k: int | None = None) -> Eigenpairs:
        """The k largest entries with their unit vectors."""
        k = self._require_k(k)
        order = self.values.argsort(descending=True)[:k]
        vectors = self.layout.zeros(len(order))
        vectors[order, torch.arange(len(order), device=self.device)] = 1
        return Eigenpairs(self.values[order].to(self.dtype), vectors)

    def eigenvalues(self, k: int | None = None) -> Tensor:
        """Entries, descending."""
        k = self._require_k(k)
        return self.values.sort(descending=True).values[:k].to(self.dtype)

    def spectrum(self, k: int | None = None) -> Spectrum:
        """All entries, or the top k. Each entry has full relative precision, so nothing but zero is below the floor."""
        return self._spectrum_of(self.eigenvalues(k), k, floor=0.0)

    def trace(self) -> Estimate:
        """Sum of the entries."""
        return self._scalar(float(self.values.sum(dtype=torch.float64)))

    def logdet(self, damping: float) -> Estimate:
        """sum log(d + damping)."""
        self._require_damping(damping)
        self._require_real_log(self.values, damping)
        return self._scalar(float((self.values.double() + damping).log().sum()), derived=True)

    def frobenius(self) -> Estimate:
        """Euclidean norm of d."""
        return self._scalar(float(self.values.double().norm()), derived=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The entries."""
        return {"values": self.values}, {}
