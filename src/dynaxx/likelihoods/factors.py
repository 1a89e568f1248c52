"""Square roots of the categorical metric, as products L xi: E[(L xi)(L xi)^T] = diag(p) - p p^T for white noise xi.

All four have the same expectation and differ in variance and cost (Sun 2025; derived and enumerated in the tests):

    symmetric    diag(s)(1 - s s^T), s = sqrt p          C columns      O(C)        the published one
    householder  diag(s) W, W a basis of s-perp          C - 1 columns  O(C)
    cholesky     pivoted by descending p, closed form    C - 1 columns  O(C log C)  exact from one sign for C = 2
    eigen        V sqrt(Lambda)                          C - 1 columns  O(C^3)      least variance on average
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dynaxx.likelihoods.simplex import SimplexPoint


def symmetric(point: SimplexPoint, xi: Tensor) -> Tensor:
    """u = s xi - p (s.xi) for xi of shape (..., C), u_t by balance."""
    noise = point.root * xi
    return point.balance(torch.addcmul(noise, point.p, noise.sum(-1, keepdim=True), value=-1))


def householder(point: SimplexPoint, xi: Tensor) -> Tensor:
    """u = s w, w the reflection of (0, xi) that takes e_t to -s, for xi of shape (..., C - 1).

    Written out, with a = sum_{j != t} s_j xi_j:  u_t = -s_t a,  u_j = s_j xi_j - p_j a / (1 + s_t). Reflecting about
    the top class keeps a, and with it every difference, as small as the tail. Class 0 takes the place of t among the
    noise.
    """
    padded = functional.pad(xi, (1, 0))
    displaced = point.pick(padded)
    first = torch.zeros_like(point.is_top)
    first[..., 0] = True
    noise = torch.where(point.is_top, torch.zeros_like(padded), torch.where(first, displaced, padded)) * point.root
    along = noise.sum(-1, keepdim=True)
    root_top = point.pick(point.root)
    return torch.where(point.is_top, -root_top * along, noise - point.p * along / (1 + root_top))


def cholesky(point: SimplexPoint, xi: Tensor) -> Tensor:
    """u = B xi with the first k columns B of the pivoted Cholesky factor, for xi of shape (..., k), 1 <= k <= C - 1.

    Classes in descending order, t_k = sum_{j >= k} p_j:

        B_kk = sqrt(p_k t_{k+1} / t_k),    B_jk = -p_j sqrt(p_k / (t_k t_{k+1}))  (j > k).

    The residual after k columns is the same kind of matrix for the renormalised tail, so k < C - 1 columns are a
    lower bound. The t_k are sums over what is left, never 1 - cumsum(p), which is wrong altogether from 1 - p_t =
    7e-8 in float32.

    Source: Tanabe & Sagae 1992.
    """
    count = xi.shape[-1]
    leading, index = point.p.topk(count, dim=-1)
    rest = point.p.scatter(-1, index, 0.0).sum(-1, keepdim=True)
    suffix = torch.cat([leading, rest], -1).flip(-1).cumsum(-1).flip(-1)
    suffix, after = suffix[..., :-1], suffix[..., 1:]
    # where nothing is left the column is zero; two roots, because the product t_k t_{k+1} underflows
    share = (leading / suffix.masked_fill(suffix == 0, 1.0)).sqrt()
    inverse_root = torch.where(after > 0, after.masked_fill(after == 0, 1.0).rsqrt(), torch.zeros_like(after))
    weights = xi * share * inverse_root
    total = weights.cumsum(-1)
    base = -point.p * total[..., -1:]
    values = xi * share * after.sqrt() - leading * (total - weights)
    return base.scatter(-1, index.expand(values.shape), values)


def eigenvectors(point: SimplexPoint) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues (..., C - 1) in units of delta and eigenvectors (..., C, C - 1), without the null one."""
    values, vectors = torch.linalg.eigh(point.scaled_metric())
    return values[..., 1:].clamp_min(0.0), vectors[..., 1:]


def eigen(point: SimplexPoint, xi: Tensor) -> Tensor:
    """u = V sqrt(Lambda) xi for xi of shape (..., C - 1), by a dense eigendecomposition."""
    values, vectors = eigenvectors(point)
    weighted = values.sqrt() * xi.to(values.dtype)
    return point.root_tail * (vectors @ weighted.unsqueeze(-1)).squeeze(-1)
