"""Keeping a basis orthonormal to rounding."""

import torch
from torch import Tensor


def project_out(basis: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Split w = basis c + r with r orthogonal to the basis: (c, r).

    Classical Gram-Schmidt, twice: the first pass leaves along the basis what rounding lost in the cancellation, the
    second removes it, and a third would find nothing (Giraud, Langou & Rozloznik 2005).

    Args:
        basis: (..., p, j) with orthonormal columns.
        w: (..., p, k).

    Returns:
        c (..., j, k) and r (..., p, k).
    """
    first = basis.mT @ w
    r = w - basis @ first
    second = basis.mT @ r
    return first + second, r - basis @ second


def vanished(norm: Tensor, scale: Tensor) -> Tensor:
    """Whether what is left of a vector of length ``scale`` is rounding: the basis then spans an invariant subspace."""
    return norm <= 10 * torch.finfo(norm.dtype).eps * scale
