"""F from a root with few rows: the whole matrix, all layers coupled, and never formed."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaxx.compress.curvature.base import Curvature
from dynaxx.errors import InputError
from dynaxx.model.rules.base import products

CHUNK_BYTES = 2**27  # of the root that is in float64 at one time


class Rows(Curvature):
    """H = B^T B + damping I with B (m, s), by systems of m unknowns. With u = B_Q w_Q,

        dw_K = B_K^T (damping I + B_K B_K^T)^{-1} u        [H^{-1}]_ii = (1 - sum_k V_ki^2 / (l_k + damping)) / damping

    where B B^T = U diag(l) U^T and V = U^T B; where fewer than m weights are left, by systems in these. Products
    are made and summed in float64.

    Args:
        root: B, float32 or float64.

    Memory: m s numbers of the root's dtype, m^2 in float64. Cost: m^2 s for the decomposition, once, and m^2 min(|Q|,
        |K|) for a change.

    Source: Woodbury's identity, and (I + A A^T)^{-1} A = A (I + A^T A)^{-1}.
    """

    def __init__(self, root: Tensor, damping: float = 0.0) -> None:
        super().__init__(root.shape[1], damping)
        self.root = root
        self._shared: dict[str, Tensor] = {}  # decompositions, the same for every damping

    def trace(self) -> float:
        """|B|_F^2."""
        return float(self._squares().sum())

    def product(self, vector: Tensor) -> Tensor:
        """B^T (B v) + damping v."""
        v = vector.double()
        return self._back(self._forward(v)) + self.damping * v

    def inverse_diagonal(self) -> Tensor:
        """From the eigenvectors of B B^T; never below 1/H_ii, under which only rounding could take it.

        Raises:
            InputError: damping is not positive, and F is singular.
        """
        self._require_damping()
        if self.size <= len(self.root):
            wide = self.root.double()
            return torch.cholesky_inverse(self._factor(wide.T @ wide)).diagonal().clone()
        values, vectors = self._eigen()
        weights = 1 / (values + self.damping)
        gained = torch.cat(
            [((vectors.T @ part.double()).square_() * weights[:, None]).sum(0) for part in self._parts()]
        )
        return torch.maximum((1 - gained) / self.damping, 1 / (self._squares() + self.damping))

    def change(self, values: Tensor, dropped: Tensor) -> Tensor:
        """The constrained optimum over all coordinates at once."""
        self._require_damping()
        gone, stays = dropped.nonzero()[:, 0], (~dropped).nonzero()[:, 0]
        away = values.double() * dropped
        u = self._forward(away)
        if len(stays) <= len(self.root):  # fewer unknowns than rows: cheaper, and not squared by rounding
            kept = self.root[:, stays].double()
            moved = -away
            moved[stays] = torch.cholesky_solve((kept.T @ u)[:, None], self._factor(kept.T @ kept))[:, 0]
            return moved
        inner = self._gram() - self._products(gone) if len(gone) < len(stays) else self._products(stays)
        lagrange = torch.cholesky_solve(u[:, None], self._factor((inner + inner.T) / 2))[:, 0]
        return torch.where(dropped, -away, self._back(lagrange))

    def _factor(self, matrix: Tensor) -> Tensor:
        matrix.diagonal().add_(self.damping)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info):
            raise InputError(f"damping={self.damping:g} is lost in rounding beside F; give a larger one")
        return factor

    def _parts(self) -> tuple[Tensor, ...]:
        return self.root.split(max(1, CHUNK_BYTES // (8 * len(self.root))), 1)

    def _forward(self, v: Tensor) -> Tensor:
        width, total = max(1, CHUNK_BYTES // (8 * len(self.root))), v.new_zeros(len(self.root))
        for part, piece in zip(self._parts(), v.split(width), strict=True):
            total += part.double() @ piece
        return total

    def _back(self, u: Tensor) -> Tensor:
        return torch.cat([part.double().T @ u for part in self._parts()])

    def _products(self, where: Tensor | None = None) -> Tensor:
        """B_S B_S^T for some coordinates S, or all."""
        root = self.root
        if where is not None and not len(where):
            return torch.zeros(len(root), len(root), dtype=torch.float64, device=root.device)
        width = max(1, CHUNK_BYTES // (8 * len(root)))
        pieces = self._parts() if where is None else (root[:, part] for part in where.split(width))
        wide = (piece.double() for piece in pieces)
        return products(((piece, piece) for piece in wide), torch.float64)

    def _gram(self) -> Tensor:
        if "gram" not in self._shared:
            self._shared["gram"] = self._products()
        return self._shared["gram"]

    def _eigen(self) -> tuple[Tensor, Tensor]:
        if "values" not in self._shared:
            values, vectors = torch.linalg.eigh(self._gram())
            self._shared |= {"values": values.clamp_(min=0), "vectors": vectors}
        return self._shared["values"], self._shared["vectors"]

    def _squares(self) -> Tensor:
        if "squares" not in self._shared:
            self._shared["squares"] = torch.cat([part.double().square().sum(0) for part in self._parts()])
        return self._shared["squares"]

    def _require_damping(self) -> None:
        if self.damping <= 0:
            raise InputError(
                f"damping={self.damping!r} leaves a singular Fisher matrix without an inverse; give a positive one"
            )
