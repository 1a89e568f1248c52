"""Kronecker-factored blocks: K-FAC (Martens & Grosse 2015) and its eigenvalue correction EKFAC (George et al. 2018).

A layer out = W a + b is one linear map [W b] of the input with a 1 appended. A block acts on matrices M (O, I), the
layer's parameters put together that way: K-FAC is M -> G M A, EKFAC is M -> Q_G (S * (Q_G^T M Q_A)) Q_A^T.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dynaxx.estimate import Estimate
from dynaxx.layout import Layout
from dynaxx.linalg import inverse_psd
from dynaxx.matmul import matmul
from dynaxx.operators.base import TOLERANCE, Eigenpairs, Operator, Sampling
from dynaxx.spectrum import Spectrum

ALIGNED, WIDE = 16, 256  # entries that rows of a matrix are filled up to a multiple of, from what width on


class _OnMatrices(Operator):
    """Common to both: the layer's parameters as one matrix.

    The layout holds the weight first (if selected) and the bias last (if selected).

    Args:
        axes: "oi" where the weight is stored as (O, I, ...), "io" where it is stored transposed.
        bias: whether the last name is a bias, the last column of M.
    """

    def __init__(self, axes: str, bias: bool, layout: Layout, count: int, sampling: Sampling | None = None) -> None:
        super().__init__(layout, count, sampling)
        self.axes, self.bias = axes, bias

    def coverage(self) -> dict[str, str]:
        """Kronecker structure."""
        return dict.fromkeys(self.names, "kronecker")

    def matrices(self, vectors: Tensor) -> Tensor:
        """(p, k) to (k, O, I)."""
        pieces = self.layout.unravel(vectors)
        columns = []
        for name in self.layout.names:
            value = pieces[name]  # (*S, k)
            if self.bias and name == self.layout.names[-1]:
                value = value[:, None]
            else:
                value = value.reshape(len(value), -1, value.shape[-1])
                value = value.transpose(0, 1) if self.axes == "io" else value
            columns.append(value)
        return torch.cat(columns, 1).permute(2, 0, 1)

    def vectors(self, matrices: Tensor) -> Tensor:
        """(k, O, I) back to (p, k)."""
        out, start = matrices.new_empty(self.layout.size, len(matrices)), 0
        for name, rows in self.layout.slices.items():
            if self.bias and name == self.layout.names[-1]:
                out[rows] = matrices[:, :, -1].T
                continue
            width = (rows.stop - rows.start) // matrices.shape[1]
            block = matrices[:, :, start : start + width]
            block = (block.transpose(1, 2) if self.axes == "io" else block).permute(1, 2, 0)
            out[rows].view(block.shape).copy_(block)
            start += width
        return out


class EigenKronecker(_OnMatrices):
    """Q_G (S * (Q_G^T M Q_A)) Q_A^T with orthogonal bases and free scales S: EKFAC, and what K-FAC is in its
    eigenbasis.

    Args:
        left: Q_G (O, O).
        right: Q_A (I, I).
        scales: S (O, I), the eigenvalues.
    """

    form = "ekfac"

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        scales: Tensor,
        axes: str,
        bias: bool,
        layout: Layout,
        count: int,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__(axes, bias, layout, count, sampling)
        self.left, self.right, self.scales = left.double(), right.double(), scales.double()

    def rotate(self, vectors: Tensor) -> Tensor:
        """Coordinates in the eigenbasis, (k, O, I)."""
        return self.left.T @ self.matrices(vectors).double() @ self.right

    def _back(self, rotated: Tensor) -> Tensor:
        return self.vectors(self.left @ rotated @ self.right.T).to(self.dtype)

    def product(self, vectors: Tensor) -> Tensor:
        """Rotate, scale, rotate back."""
        return self._back(self.scales * self.rotate(vectors))

    def _solve(self, vectors: Tensor, damping: float) -> Tensor:
        return self._back(self.rotate(vectors) / (self.scales + damping))

    def diagonal(self) -> Tensor:
        """sum_ab S_ab Q_G[o,a]^2 Q_A[i,b]^2."""
        return self.vectors((self.left.square() @ self.scales @ self.right.square().T)[None])[:, 0].to(self.dtype)

    def eigh(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Eigenpairs:
        """The k largest scales with their Kronecker vectors."""
        k = self._require_k(k)
        flat = self.scales.flatten()
        order = flat.argsort(descending=True)[:k]
        outer, inner = order // self.scales.shape[1], order % self.scales.shape[1]
        matrices = self.left.T[outer][:, :, None] * self.right.T[inner][:, None, :]
        return Eigenpairs(flat[order].to(self.dtype), self.vectors(matrices).to(self.dtype))

    def eigenvalues(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Tensor:
        """Scales, descending."""
        k = self._require_k(k)
        return self.scales.flatten().sort(descending=True).values[:k].to(self.dtype)

    def spectrum(self, k: int | None = None) -> Spectrum:
        """All scales, or the top k."""
        return self._spectrum_of(self.scales.flatten().sort(descending=True).values[: self._require_k(k)], k)

    def trace(self) -> Estimate:
        """Sum of the scales."""
        return self._scalar(float(self.scales.sum()))

    def logdet(self, damping: float) -> Estimate:
        """sum log(S + damping)."""
        self._require_damping(damping)
        return self._scalar(float((self.scales.clamp(min=0) + damping).log().sum()), derived=True)

    def frobenius(self) -> Estimate:
        """Norm of the scales."""
        return self._scalar(float(self.scales.norm()), derived=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Bases and scales."""
        return {"left": self.left, "right": self.right, "scales": self.scales}, {"axes": self.axes, "bias": self.bias}


class Kronecker(_OnMatrices):
    """M -> G M A.

    ``solve(method="exact")`` is (G x A + d I)^{-1} for damping d, in the factors' eigenbasis: two decompositions in
    float64, once. ``solve(method="factored")`` is another system,

        (G + sqrt(d)/pi I)^{-1} x (A + pi sqrt(d) I)^{-1},      pi^2 = (tr A / dim A) / (tr G / dim G),

    whose inverse G x A + d I + pi sqrt(d) G x I + sqrt(d)/pi I x A exceeds G x A + d I by two positive terms, so that
    every step along it is shorter (Martens & Grosse 2015, section 6.3). It takes two Cholesky decompositions for each
    damping, in the factors' dtype where rounding allows.

    Args:
        left: G (O, O), second moment of the output cotangents.
        right: A (I, I), second moment of the inputs (with the 1 appended where there is a bias).
    """

    form = "kfac"

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        axes: str,
        bias: bool,
        layout: Layout,
        count: int,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__(axes, bias, layout, count, sampling)
        self.left, self.right = left, right
        self._inverses: tuple[float, Tensor, Tensor] | None = None  # of the damping used last

    @cached_property
    def rotated(self) -> EigenKronecker:
        """The same operator in its eigenbasis; two small decompositions in float64, once."""
        (left_values, left), (right_values, right) = (
            torch.linalg.eigh(factor.double()) for factor in (self.left, self.right)
        )
        scales = left_values.clamp(min=0)[:, None] * right_values.clamp(min=0)
        return EigenKronecker(left, right, scales, self.axes, self.bias, self.layout, self.count, self.sampling)

    def product(self, vectors: Tensor) -> Tensor:
        """G M A."""
        return self.vectors(_between(self.left, self.matrices(vectors), self.right).to(self.dtype))

    def _solve(self, vectors: Tensor, damping: float) -> Tensor:
        return self.rotated._solve(vectors, damping)

    def _solve_factored(self, vectors: Tensor, damping: float) -> Tensor:
        if self._inverses is None or self._inverses[0] != damping:
            outer, inner = (float(factor.diagonal().mean()) for factor in (self.left, self.right))
            pi = math.sqrt(inner / outer) if inner > 0 and outer > 0 else 1.0
            root = math.sqrt(damping)
            self._inverses = damping, inverse_psd(self.left, root / pi), inverse_psd(self.right, pi * root)
        _, left, right = self._inverses
        return self.vectors(_between(left, self.matrices(vectors), right).to(self.dtype))

    def diagonal(self) -> Tensor:
        """diag(G) x diag(A)."""
        return self.vectors((self.left.diagonal()[:, None] * self.right.diagonal())[None])[:, 0].to(self.dtype)

    def eigh(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Eigenpairs:
        """The k largest products of the factors' eigenvalues."""
        return self.rotated.eigh(k)

    def eigenvalues(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Tensor:
        """Products of the factors' eigenvalues, descending."""
        return self.rotated.eigenvalues(k)

    def spectrum(self, k: int | None = None) -> Spectrum:
        """All eigenvalues, or the top k."""
        return self.rotated.spectrum(k)

    def trace(self) -> Estimate:
        """tr G tr A."""
        return self._scalar(float(self.left.double().trace() * self.right.double().trace()))

    def logdet(self, damping: float) -> Estimate:
        """log det(G x A + damping I)."""
        return self.rotated.logdet(damping)

    def frobenius(self) -> Estimate:
        """|G|_F |A|_F."""
        return self._scalar(float(self.left.double().norm() * self.right.double().norm()), derived=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The factors."""
        return {"left": self.left, "right": self.right}, {"axes": self.axes, "bias": self.bias}


def _between(left: Tensor, matrices: Tensor, right: Tensor) -> Tensor:
    """G M A for M (k, O, I).

    A bias makes I odd, and rows that begin anywhere cost products a third of their speed: wide ones are filled up with
    zeros.
    """
    matrices, width = matrices.to(left.dtype), len(right)
    lacking = -width % ALIGNED if width > WIDE else 0
    if lacking:
        matrices, right = functional.pad(matrices, (0, lacking)), functional.pad(right, (0, lacking, 0, lacking))
    if len(matrices) == 1:
        return matmul(matmul(left, matrices[0]), right)[None, :, :width]
    return (left @ matrices @ right)[..., :width]
