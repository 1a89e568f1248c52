"""Multidimensional scaling with signature: a map of models from their distances, and new models into the same map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from torch import Tensor

from dynaxx.errors import InputError, require_memory
from dynaxx.manifold.checks import example_weights, shape

FEW = 400  # points up to which the whole spectrum costs less than an iteration for its ends


@dataclass(frozen=True, eq=False)
class Embedding:
    """Points with coordinates, of which some count negatively: what ``inpca`` returns.

    Args:
        coordinates: (m, k) float64.
        eigenvalues: (k,) of the centred matrix W, by falling magnitude; a negative one makes a time-like coordinate.
        signature: (k,) of 1, -1 and 0; 0 where the eigenvalue is rounding, and the coordinate is zero.
        floor: at or below this magnitude an eigenvalue is rounding.
        total: |W|_F^2, the sum of the squares of all m eigenvalues.
    """

    coordinates: Tensor
    eigenvalues: Tensor
    signature: Tensor
    floor: float
    total: float
    _vectors: Tensor
    _weights: Tensor
    _means: Tensor

    def explained_stress(self, k: int | None = None) -> float:
        """chi_k = 1 - sqrt(1 - sum_{i <= k} Lambda_i^2 / |W|_F^2): how much of W the first k coordinates carry, in
        [0, 1]; 1 if all points coincide.

        Args:
            k: how many; default all that were asked for.

        Raises:
            InputError: there are not that many.
        """
        k = len(self.eigenvalues) if k is None else k
        if not 1 <= k <= len(self.eigenvalues):
            raise InputError(f"k={k} of {len(self.eigenvalues)} coordinates; ask inpca() for more of them")
        # the ratio may exceed one by rounding
        share = float(self.eigenvalues[:k].square().sum()) / self.total if self.total > 0 else 1.0
        return 1.0 - math.sqrt(max(0.0, 1.0 - share))

    def squared_distances(self) -> Tensor:
        """sum_k sign_k (x_uk - x_vk)^2, (m, m): with all coordinates the matrix that ``inpca`` was given."""
        signed = self.coordinates * self.signature
        products = signed @ self.coordinates.T
        norms = products.diagonal()
        return norms[:, None] + norms[None, :] - 2 * products

    def project(self, new_distances: Tensor) -> Tensor:
        """Coordinates of further points in this map, which stays as it is.

            w = -1/2 (d - mean d - r + mean r),    x_k = sign(Lambda_k) / sqrt |Lambda_k| * sum_v w_v u_vk

        with r_v the mean of the map's own distances from v (weighted means where the map has weights). A point of the
        map gets its own coordinates.

        Args:
            new_distances: (q, m) or (m,) squared distances from the new points to the map's.

        Returns:
            (q, k) or (k,) float64.

        Raises:
            InputError: the shape is another, or a distance is nan or infinite.
        """
        given = _finite(new_distances, "new_distances").to(self.coordinates.device)
        if given.dim() not in (1, 2) or given.shape[-1] != len(self.coordinates):
            raise InputError(
                f"new_distances {shape(given)} must be (q, {len(self.coordinates)}): a row per new point, a column "
                f"for each point of the map"
            )
        weights = self._weights / len(self._weights)
        w = -0.5 * (given - (given @ weights)[..., None] - self._means + self._means @ weights)
        return (w * self._weights.sqrt()) @ self._vectors * _pseudo_root(self.eigenvalues, self.signature)

    def __repr__(self) -> str:
        points, k = self.coordinates.shape
        signs = "".join("0+-"[int(sign)] for sign in self.signature.tolist())
        return f"Embedding({points} points, {k} coordinates {signs}, explained stress {self.explained_stress():.3f})"


@torch.no_grad()
def inpca(distances: Tensor, *, k: int | None = 3, weights: Tensor | None = None) -> Embedding:
    """A map of points from their squared distances, exact with as many coordinates as there are points.

        W = -1/2 L D L,  L = 1 - 1 1^T / m,    W = U Lambda U^T,    x_uk = U_uk sqrt |Lambda_k|

    with |Lambda_1| >= |Lambda_2| >= ... Distances between distributions need not fit into Euclidean space; W then has
    negative eigenvalues too, and squared distances are sums with signs,

        D_uv = sum_k sign(Lambda_k) (x_uk - x_vk)^2.

    With the intensive (or Bhattacharyya) distance this is InPCA; with squared Euclidean ones it is principal component
    analysis, without negative eigenvalues.

    Args:
        distances: (m, m) *squared* distances, symmetric with a zero diagonal: kind "intensive", "bhattacharyya" or
            "euclidean" as they are, "hellinger" and "geodesic" squared.
        k: how many coordinates; None for all m.
        weights: (m,) positive weights of the points, such as 1 / (checkpoints of its run); they enter the centre and
            the stress. Scaled to mean one, so that equal ones change nothing.

    Returns:
        An Embedding.

    Raises:
        InputError: D is not square, not symmetric or not finite, its diagonal is not zero, or k or weights do not fit.
        SizeError: it would not fit into memory.

    Cost: 24 m^2 bytes; up to 400 points, or for more than m / 8 coordinates, one dense symmetric eigenvalue problem,
    else Lanczos (ARPACK) for the k largest magnitudes, some 100 products with W.

    Source: Quinn et al. 2019; explained stress and the weighted form as in Mao et al. 2024.

    >>> line = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    >>> made = inpca((line[:, None] - line) ** 2, k=1)
    >>> made.explained_stress(), (made.coordinates[:, 0] - made.coordinates[0, 0]).abs()
    (1.0, tensor([0.0000, 1.0000, 3.0000], dtype=torch.float64))
    """
    given = _squared(distances)
    m = len(given)
    k = m if k is None else k
    if not isinstance(k, int) or not 1 <= k <= m:
        raise InputError(f"k={k!r} coordinates of {m} points; give 1 to {m}, or None for all")
    scale = example_weights(weights, m).to(given.device)
    if bool((scale == 0).any()):
        raise InputError("weights of points must be positive; leave out points of weight zero and .project() them")
    require_memory(f"a map of {m} points", 24 * m * m, "map fewer points and .project() the others")
    means = given @ scale
    centred = -0.5 * (given - means[:, None] - means[None, :] + means @ scale)
    roots = (m * scale).sqrt()
    centred *= roots[:, None] * roots
    values, vectors = (torch.from_numpy(part).to(given.device) for part in _largest(centred.cpu().numpy(), k))
    precision = distances.dtype if distances.is_floating_point() else torch.float64
    floor = torch.finfo(precision).eps * m * float(values[0].abs())
    signature = values.sign().masked_fill(values.abs() <= floor, 0.0)
    coordinates = vectors * (values.abs().sqrt() * signature.abs()) / roots[:, None]
    return Embedding(
        coordinates, values, signature, floor, float(centred.square().sum()), vectors, roots.square(), means
    )


def _largest(matrix: np.ndarray[Any, Any], k: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The k eigenpairs of largest magnitude, by falling magnitude; the largest entry of each vector is positive."""
    m = len(matrix)
    values: np.ndarray[Any, Any] | None = None
    if m > FEW and 8 * k < m and matrix.any():
        start = np.random.default_rng(0).standard_normal(m)  # ones would be the vector that W annihilates
        try:
            values, vectors = scipy.sparse.linalg.eigsh(matrix, k, which="LM", v0=start, ncv=min(m, max(4 * k, 40)))
        except scipy.sparse.linalg.ArpackNoConvergence:
            values = None
    if values is None:
        values, vectors = scipy.linalg.eigh(matrix)
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    values, vectors = values[order], vectors[:, order]
    top = vectors[np.abs(vectors).argmax(0), np.arange(k)]
    return values.copy(), vectors * np.where(top < 0, -1.0, 1.0)


def _pseudo_root(values: Tensor, signature: Tensor) -> Tensor:
    """sign / sqrt |Lambda|, and 0 where Lambda is rounding."""
    return torch.where(signature == 0, 0.0, signature / values.abs().clamp_min(torch.finfo(values.dtype).tiny).sqrt())


def _finite(given: Tensor, name: str) -> Tensor:
    if not isinstance(given, Tensor):
        raise InputError(f"{name} is {shape(given)}; give a tensor of squared distances")
    bad = int((~torch.isfinite(given)).sum())
    if bad:
        raise InputError(
            f"{name} holds {bad} entries that are nan or infinite; predictions without overlap are infinitely far "
            f"apart: give distances() a ceiling=, or use kind='hellinger' or 'geodesic', squared"
        )
    return given.detach().double()


def _squared(distances: Tensor) -> Tensor:
    given = _finite(distances, "distances")
    if given.dim() != 2 or given.shape[0] != given.shape[1] or not len(given):
        raise InputError(f"distances {shape(distances)} must be a square matrix (m, m)")
    largest = float(given.abs().max())
    precision = distances.dtype if distances.is_floating_point() else torch.float64
    rounding = 1e3 * torch.finfo(precision).eps * largest
    if float(given.diagonal().abs().max()) > rounding:
        raise InputError(
            f"distances has {float(given.diagonal().abs().max()):.3g} on its diagonal; a point is no distance from "
            f"itself"
        )
    if float((given - given.T).abs().max()) > rounding:
        raise InputError(
            "distances is not symmetric; symmetrise kl as (D + D.T) / 2, or use kind='intensive' or 'bhattacharyya'"
        )
    return (given + given.T) / 2
