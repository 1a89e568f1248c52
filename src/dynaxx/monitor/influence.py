"""How much each example moves a number of the spectrum: error bars over the data from one decomposition.

For a function f of the eigenvalues of F = (1/N) sum_n F_n, the derivative of f in the direction of example n is

    I_n = sum_k (df/dl_k) (v_k^T F_n v_k - l_k) = sum_k (df/dl_k) l_k (N s_nk - 1),   s_nk = sum over n's rows of u_rk^2

with u_k the eigenvectors of the Gram matrix. Derived here from first-order perturbation; the standard error is the
infinitesimal jackknife's. First order means: with N examples it is right where leaving one out is a small change.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Slopes = Callable[[Tensor], Tensor]


def shares(vectors: Tensor, examples: int) -> Tensor:
    """s (N, k): how much of each eigenvector (M, k) lies on each example's rows."""
    return vectors.double().square().unflatten(0, (examples, -1)).sum(1)


def influences(values: Tensor, weights: Tensor, slopes: Slopes) -> Tensor:
    """I (N,) of a function of the eigenvalues.

    Args:
        values: (k,) eigenvalues above the floor.
        weights: (N, k) as ``shares`` gives them.
        slopes: eigenvalues -> df/dl, (k,).

    >>> I = influences(torch.tensor([3.0, 1.0]), torch.eye(2), torch.ones_like)
    >>> I.tolist()
    [2.0, -2.0]
    """
    return (len(weights) * weights - 1) @ (slopes(values) * values)


def trace(values: Tensor) -> Tensor:
    """d sum l / dl = 1."""
    return torch.ones_like(values)


def top_eigenvalue(values: Tensor) -> Tensor:
    """d max l / dl, for a top eigenvalue that stands alone."""
    return torch.nn.functional.one_hot(values.argmax(), len(values)).to(values)


def effective_rank(values: Tensor) -> Tensor:
    """d exp(H) / dl = -exp(H) (ln q + H) / T."""
    total = values.sum()
    logs = (values / total).log()
    entropy = -(values / total * logs).sum()
    return -entropy.exp() * (logs + entropy) / total


def participation_ratio(values: Tensor) -> Tensor:
    """d (T^2 / S) / dl = 2 T / S - 2 l T^2 / S^2 with S = sum l^2."""
    total, squares = values.sum(), values.square().sum()
    return 2 * total / squares - 2 * values * total.square() / squares.square()


def effective_dimension(ratio: float) -> Slopes:
    """d sum r l / (r l + 1) / dl = r / (r l + 1)^2 with r = N / d."""
    return lambda values: ratio / (ratio * values + 1).square()


def posterior_entropy(ratio: float) -> Slopes:
    """d (-1/2 sum ln(1 + r l)) / dl = -r / (2 (1 + r l))."""
    return lambda values: -0.5 * ratio / (1 + ratio * values)
