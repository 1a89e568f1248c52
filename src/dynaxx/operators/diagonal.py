"""The diagonal alone: every parameter by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.layout import Layout
from dynaxx.operators.base import TOLERANCE, Eigenpairs, Operator, Sampling
from dynaxx.spectrum import Spectrum


class Diagonal(Operator):
    """diag(d). Memory p numbers; every verb costs O(p) or a sort.

    Args:
        stderr: standard errors of d, or a function that measures them when they are first asked for.
    """

    form = "diagonal"

    def __init__(
        self,
        values: Tensor,
        layout: Layout,
        count: int,
        sampling: Sampling | None = None,
        definite: bool = True,
        stderr: Tensor | Callable[[], Tensor] | None = None,
    ) -> None:
        super().__init__(layout, count, sampling, definite)
        self.values, self.stderr = values, stderr

    def product(self, vectors: Tensor) -> Tensor:
        """d * v."""
        return self.values.to(self.dtype)[:, None] * vectors

    def _solve(self, vectors: Tensor, damping: float) -> Tensor:
        return vectors / (self.values.to(self.dtype)[:, None] + damping)

    def diagonal(self) -> Tensor:
        """d."""
        return self.values.to(self.dtype, copy=True)

    def diagonal_stderr(self) -> Tensor:
        """Measured standard error of every entry, (p,): zero where nothing was sampled.

        It speaks of the draws and not of the examples: another seed, the same data. ``predicted_error`` has the same
        number from a formula, without draws.

        Raises:
            InputError: one draw per example, which has no spread; the model or the data have changed since, or cannot
                be read again; or the operator comes from a file that was written before it was asked.

        Cost: when first asked for, one sweep with a reverse pass per draw; memory 2 p.

        >>> import torch, dynaxx
        >>> model, x = torch.nn.Linear(4, 3), torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> F = dynaxx.fisher(model, x, form="diagonal", estimator="hutchinson", samples=4)
        >>> error = F.diagonal() - dynaxx.fisher(model, x, form="diagonal").diagonal()
        >>> bool((error.abs() < 4 * F.diagonal_stderr()).all())
        True
        """
        if self.sampling is None:
            return torch.zeros_like(self.diagonal())
        if self.stderr is None:
            raise InputError(
                "this diagonal was sampled, and what it was sampled from is not at hand; ask for F.diagonal_stderr() "
                "where fisher(..., form='diagonal') made it, before F.save(path)"
            )
        if callable(self.stderr):
            self.stderr = self.stderr()
        return self.stderr.to(self.dtype, copy=True)

    def eigh(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Eigenpairs:
        """The k largest entries with their unit vectors."""
        k = self._require_k(k)
        order = self.values.argsort(descending=True)[:k]
        vectors = self.layout.zeros(len(order))
        vectors[order, torch.arange(len(order), device=self.device)] = 1
        return Eigenpairs(self.values[order].to(self.dtype), vectors)

    def eigenvalues(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Tensor:
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
        """The entries, and their standard errors once they have been measured."""
        measured = {"stderr": self.stderr} if isinstance(self.stderr, Tensor) else {}
        return {"values": self.values, **measured}, {}
