"""Bounds B B^T <= I(z) <= B' B'^T of the categorical metric that hold for every input, as products B xi.

Source: Sun 2025, Lemma 2, and derivations of our own. The trap (a Rayleigh quotient times v v^T is no bound unless v is
an eigenvector) is avoided by ``nystrom``, a bound whatever the vectors it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynaxx.likelihoods.factors import cholesky, eigenvectors
from dynaxx.likelihoods.secular import scaled_top_eigenpair
from dynaxx.likelihoods.simplex import SimplexPoint


def nystrom(point: SimplexPoint, directions: Tensor) -> Tensor:
    """B = I W (W^T I W)^{-1/2} for orthonormal W (..., C, k): B B^T <= I for any W, exact on its span (Cauchy-Schwarz).

    Directions in which W^T I W is rounding are left out, which leaves a bound. One power step is in it: where W
    approximates the leading eigenvectors, B does so better.

    Returns:
        (..., C, k).
    """
    image = point.apply_scaled(directions.movedim(-1, 0)).movedim(0, -1)
    gram = directions.mT @ image
    values, vectors = torch.linalg.eigh(0.5 * (gram + gram.mT))
    floor = 16 * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    keep = values > floor
    inverse_root = torch.where(keep, values.masked_fill(~keep, 1.0).rsqrt(), torch.zeros_like(values))
    return point.root_tail.unsqueeze(-1) * ((image @ vectors) * inverse_root.unsqueeze(-2))


def lower_eigen(point: SimplexPoint, rank: int) -> Tensor:
    """The bound of rank k with the largest trace: sqrt(lambda) v for the k leading eigenpairs, shape (..., C, k)."""
    if rank == 1:
        vectors = scaled_top_eigenpair(point)[1].unsqueeze(-1)
    else:
        vectors = eigenvectors(point)[1][..., -rank:]
    return nystrom(point, vectors)


def lower_nystrom(point: SimplexPoint, rank: int) -> Tensor:
    """One subspace iteration from the leading k Cholesky columns: trace between the two, (..., C, k)."""
    basis = torch.eye(rank, dtype=point.p.dtype, device=point.p.device)
    start = cholesky(point, basis.view(rank, *[1] * (point.p.dim() - 1), rank)).movedim(0, -1)
    largest = start.abs().amax(-2, keepdim=True)
    return nystrom(point, torch.linalg.qr(start / largest.masked_fill(largest == 0, 1.0)).Q)


def upper_diagonal(point: SimplexPoint, xi: Tensor) -> Tensor:
    """sqrt(p) xi: I <= diag(p), the published bound. Its trace is 1, that of I goes to 0 with confidence."""
    return point.root * xi


def upper_laplacian(point: SimplexPoint, xi: Tensor) -> Tensor:
    """sqrt(2 p (1 - p)) xi: I is the Laplacian of a complete graph, and a Laplacian is at most twice its degrees.

    The trace is 2 tr I for every p. (The elementwise smaller of this and p is not a bound.)
    """
    return point.root * (2 * point.complement).sqrt() * xi


def upper_tail(point: SimplexPoint, xi: Tensor, rank: int) -> Tensor:
    """C_k xi_{:k} + sqrt(p_tail) xi_{k:}: exact on the k most likely classes, diagonal on the others; xi (..., k + C).

    The excess over I is p_tail p_tail^T / t_{k+1}: of all the bounds the tightest for long-tailed p.
    """
    index = point.p.topk(rank, dim=-1).indices
    remaining = point.root.scatter(-1, index, 0.0)
    return cholesky(point, xi[..., :rank]) + remaining * xi[..., rank:]
