"""Do two maps show the same thing? Neighbours, shapes, ranks of distances, and holes.

None of these numbers means much alone: compare with a shuffled or an untrained model.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dynaxx.errors import InputError, choose
from dynaxx.manifold.checks import shape

PERSISTENCE_DISTANCES = ("bottleneck", "wasserstein")


def knn_overlap(A: Tensor, B: Tensor, k: int = 10) -> float:
    """Share of each point's k nearest neighbours that two distance matrices have in common, mean over points.

    1 if all neighbourhoods agree; k / (m - 1) by chance.

    Args:
        A, B: (m, m) distances, squared or not, of the same m points.
        k: neighbours, below m.

    Raises:
        InputError: the matrices do not fit each other, or k does not fit them.

    Cost: two partial sorts of m^2 numbers.

    >>> line = torch.arange(6.0)
    >>> D = (line[:, None] - line).abs()
    >>> knn_overlap(D, D**2, k=2), knn_overlap(D, D.flip(0), k=5)
    (1.0, 1.0)
    """
    first, second = _pair(A, B)
    m = len(first)
    if not isinstance(k, int) or not 1 <= k < m:
        raise InputError(f"k={k!r} neighbours of {m} points; give 1 to {m - 1}")
    shared = torch.zeros(m, m, dtype=torch.int64)
    for matrix in (first, second):
        away = matrix.clone().fill_diagonal_(torch.inf)  # a point is no neighbour of itself
        shared.scatter_add_(1, away.topk(k, largest=False).indices, torch.ones(m, k, dtype=torch.int64))
    return float((shared == 2).sum()) / (m * k)


def rank_correlation(A: Tensor, B: Tensor) -> float:
    """Spearman's correlation of the entries above the diagonal of two distance matrices.

    1 if they order all pairs of points alike; about 0 for unrelated ones. Entries share points and are not independent,
    so a p-value for m (m - 1) / 2 pairs would be far too small.

    Args:
        A, B: (m, m) distances of the same m >= 3 points; only their order counts.

    Raises:
        InputError: the matrices do not fit each other, or one is constant.

    >>> line = torch.arange(5.0)
    >>> D = (line[:, None] - line).abs()
    >>> round(rank_correlation(D, D**2), 12)
    1.0
    """
    first, second = _pair(A, B)
    if len(first) < 3:
        raise InputError(f"{len(first)} points have no more than one distance; give 3 or more")
    above = torch.ones_like(first).triu(1).bool()
    x, y = first[above].numpy(), second[above].numpy()
    if (x == x[0]).all() or (y == y[0]).all():
        raise InputError("all distances of one matrix are equal, so they have no order to compare")
    from scipy import stats  # takes a second to import

    return float(np.clip(stats.spearmanr(x, y).statistic, -1.0, 1.0))


def procrustes(X: Tensor, Y: Tensor) -> float:
    """Correlation of two maps after the shift, rotation, reflection and scale that bring them closest: 1 is the same
    shape.

        r = sqrt(1 - min over s, R of |X' - s Y' R|_F^2),      X' and Y' centred and scaled to unit norm;

    it is the sum of the singular values of X'^T Y'.

    Args:
        X, Y: (m, k) coordinates of the same m points; the one with fewer columns is filled up with zeros. Time-like
            coordinates count as if they were Euclidean.

    Raises:
        InputError: they do not fit each other, or all points of one coincide.

    >>> X = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> round(procrustes(X, 5 * X.flip(1) + 3), 12)
    1.0
    """
    maps = []
    for name, given in (("X", X), ("Y", Y)):
        if not isinstance(given, Tensor) or given.dim() != 2 or len(given) != len(X):
            raise InputError(f"{name} {shape(given)} must be (m, k) coordinates, of as many points as X {shape(X)}")
        points = given.detach().cpu().double()
        if not bool(torch.isfinite(points).all()) or bool((points == points[0]).all()):
            raise InputError(f"{name} holds nan or inf, or all its points coincide; it has no shape to compare")
        maps.append(torch.nn.functional.pad(points, (0, max(X.shape[1], Y.shape[1]) - given.shape[1])).numpy())
    from scipy import spatial

    return float(np.sqrt(max(0.0, 1.0 - spatial.procrustes(*maps)[2])))


def persistence(distances: Tensor, *, dimension: int = 1) -> list[np.ndarray]:
    """Persistent homology of points from their distances: at which scales components, loops and voids exist.

    Args:
        distances: (m, m), symmetric. Divided by the largest, so that diagrams of two models can be compared.
        dimension: the highest: 0 components, 1 loops, 2 voids.

    Returns:
        A (features, 2) array of births and deaths for each dimension from 0, in units of the largest distance; the last
        component never dies (inf).

    Raises:
        InputError: ripser is not installed, or the matrix is not one of distances.

    Cost: dimension 1 takes seconds for 500 points and grows like m^3 and worse; thin the points first.

    Source: Bauer 2021 (Ripser), through ripser.py, which computes in float32.
    """
    try:
        from ripser import ripser
    except ImportError as error:
        raise InputError("persistence() needs ripser and persim; pip install 'dynaxx[topology]'") from error
    if not isinstance(dimension, int) or dimension < 0:
        raise InputError(f"dimension={dimension!r} must be 0 (components), 1 (loops) or more")
    first, _ = _pair(distances, distances)
    largest = float(first.max())
    scaled = first / largest if largest > 0 else first
    return list(ripser(scaled.numpy(), maxdim=dimension, distance_matrix=True)["dgms"])


def persistence_distance(A: Tensor, B: Tensor, *, dimension: int = 1, kind: str = "bottleneck") -> float:
    """How far two sets of points are apart in their holes: the distance of their persistence diagrams.

    The bottleneck distance is at most the largest difference of an entry of the scaled matrices, and zero for the same
    points in another order: no correspondence between points is needed.

    Args:
        A, B: (m, m) and (m', m') distances, each divided by its largest.
        dimension: of the holes: 0 components, 1 loops, 2 voids.
        kind: "bottleneck" (the largest mismatch) or "wasserstein" (their sum).

    Returns:
        The distance, in units of the largest distance between points.

    Raises, Cost: as for ``persistence``.

    Source: Cohen-Steiner et al. 2007 (stability), through persim.
    """
    choose("kind", kind, PERSISTENCE_DISTANCES)
    diagrams = [persistence(given, dimension=dimension)[dimension] for given in (A, B)]
    try:
        import persim
    except ImportError as error:
        raise InputError("persistence_distance() needs persim; pip install 'dynaxx[topology]'") from error
    # the component that never dies is in both, and would be infinitely far from itself
    finite = [diagram[np.isfinite(diagram).all(1)] for diagram in diagrams]
    if not any(map(len, finite)):
        return 0.0
    return float(getattr(persim, kind)(*finite))


def _pair(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Two square matrices of one size as float64 on the CPU."""
    for name, given in (("A", A), ("B", B)):
        if not isinstance(given, Tensor) or given.dim() != 2 or given.shape[0] != given.shape[1] or not len(given):
            raise InputError(f"{name} {shape(given)} must be a square matrix of distances (m, m)")
        if bool(torch.isnan(given).any()):
            raise InputError(f"{name} holds nan; mend the distances first")
    if A.shape != B.shape:
        raise InputError(f"A {shape(A)} and B {shape(B)} must be distances between the same points")
    return A.detach().cpu().double(), B.detach().cpu().double()
