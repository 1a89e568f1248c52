"""Leaving probes out of a sketch, without sketching again."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# A probe whose image counts as independent of the others': 1 - leverage is the square of its share in a direction that
# was dropped as rounding, so this is a share of 1e-6.
_INDEPENDENT = 1e-12


class LeaveOneOut(NamedTuple):
    """Y = Q R with orthonormal Q (p, r) and R (r, h), r the rank of Y, and ``normals`` S (r, h).

    Q (I - s_i s_i^T) Q^T is the orthogonal projector on the range of Y without its column i. s_i is a unit vector where
    y_i is not in the span of the others, and zero where it is: dropping it then changes nothing.
    """

    basis: Tensor
    coordinates: Tensor
    normals: Tensor


def leave_one_out(images: Tensor) -> LeaveOneOut:
    """Factor the images Y = A X (p, h) of a sketch so that every leave-one-out projector is at hand.

    With Y = Q R, R R^T = K: s_i is along K^-1 r_i, since r_j^T K^-1 r_i is entry (j, i) of the projector on R's rows,
    and a projector with 1 on its diagonal is zero beside it. That diagonal, the leverage, is below 1 exactly where y_i
    depends on the others. Singular values of R give rank and inverse together; solving with a triangular R would break
    down on operators of low rank.
    """
    q, r = torch.linalg.qr(images)
    u, sigma, vt = torch.linalg.svd(r, full_matrices=False)
    rank = int((sigma > torch.finfo(sigma.dtype).eps * max(images.shape[1], 10) * sigma[0]).sum())
    u, sigma, vt = u[:, :rank], sigma[:rank], vt[:rank]
    normals = vt / sigma[:, None]
    length = normals.norm(dim=0)
    apart = independent(vt.square().sum(0)) & (length > 0)
    return LeaveOneOut(q @ u, sigma[:, None] * vt, torch.where(apart, normals / torch.where(apart, length, 1), 0))


def independent(leverage: Tensor) -> Tensor:
    """Whether a probe is independent of the others: leverage 1 to rounding."""
    return leverage > 1 - max(_INDEPENDENT, 100 * torch.finfo(leverage.dtype).eps)


class PairInverse(NamedTuple):
    """The inverses of all 2 x 2 blocks [[1, c_ij], [c_ij, 1]]: ``own`` on their diagonals, ``cross`` beside it, both
    (h, h).
    """

    own: Tensor
    cross: Tensor


def pair_inverse(cosines: Tensor) -> PairInverse:
    """Inverses for leaving i and j out together, c_ij the cosine between what leaving either out removes. (i, i) means
    nothing: 0.
    """
    c = cosines.clone().fill_diagonal_(0)
    determinant = (1 - c.square()).clamp_min(torch.finfo(c.dtype).eps)
    return PairInverse((1 / determinant).fill_diagonal_(0), -c / determinant)


def standard_error(draws: Tensor, fewer: Iterable[Tensor]) -> Tensor:
    """Standard error of the mean of leave-one-out draws t_j(x_1, ..., x_h).

    The t_j share their sketch, so their spread alone, V = var(t_j) / h, is too small: a part of the mean that k probes
    make together (order k of its Hoeffding decomposition, of variance V_k) enters V as V_k / k. The jackknife, J =
    (h-1)/h sum_i (T_i - mean T)^2 with T_i the whole estimate made without probe i, counts it k times instead (Efron &
    Stein 1981). By Cauchy and Schwarz (sum V_k / k)(sum k V_k) >= (sum V_k)^2, with equality where one order prevails,
    so the geometric mean of the two is the variance returned. J belongs to h - 1 probes and is first scaled by how the
    spread of a draw falls from h - 1 to h. The pairing is our own; tests/linalg/test_calibration.py holds it against
    the spread over seeds.

    Args:
        draws: t_j, (..., h).
        fewer: for each i, the h - 1 draws (..., h - 1) that are made without probe i.
    """
    h = draws.shape[-1]
    variance, before, means = draws.var(-1), torch.zeros_like(draws[..., 0]), []
    for row in fewer:
        means.append(row.mean(-1))
        if h > 2:
            before += row.var(-1) / h
    jackknife = torch.stack(means).var(0) * (h - 1) ** 2 / h
    if h > 2:
        jackknife = jackknife * torch.where(before > variance, variance / torch.where(before > 0, before, 1), 1)
    return (variance / h * jackknife) ** 0.25
