"""Small symmetric matrices, in float64."""

import numpy
import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.linalg.protocol import Operator, chunks, dimension, identity_columns, product, require_room
from dynaxx.matmul import add_product, matmul

LEAF = 256  # rows up to which LAPACK inverts faster than products of halves do


def to_dense(op: Operator) -> Tensor:
    """The operator's matrix (p, p), made of p products with columns of the identity, in the operator's dtype.

    Raises:
        SizeError: p^2 numbers do not fit.
    """
    p = dimension(op)
    require_room("the dense matrix", op, p, "stay with products (op @ v), or take fewer parameters")
    matrix = torch.empty(p, p, dtype=op.dtype, device=op.device)
    for start, stop in chunks(op, 0, p):
        matrix[:, start:stop] = product(op, identity_columns(op, start, stop))
    return matrix


def diagonal_exact(op: Operator) -> Tensor:
    """The operator's diagonal (p,) by p products, nothing of size p^2 held."""
    diagonal = torch.empty(dimension(op), dtype=op.dtype, device=op.device)
    for start, stop in chunks(op, 0, len(diagonal)):
        diagonal[start:stop] = product(op, identity_columns(op, start, stop)).diagonal(-start)
    return diagonal


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part (A + A^T) / 2 in float64, (p, p).

    Raises:
        InputError: not a square matrix, or not finite.

    >>> symmetric(torch.tensor([[1., 2.], [4., 3.]])).tolist()
    [[1.0, 3.0], [3.0, 3.0]]
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"expected a square matrix; got a tensor of shape {tuple(matrix.shape)}")
    if not torch.isfinite(matrix).all():
        raise InputError(
            f"a matrix of shape {tuple(matrix.shape)} holds NaN or infinite entries; look for them in what it was "
            "made of"
        )
    matrix = matrix.detach().to(torch.float64)
    return (matrix + matrix.T) / 2


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues descending (p,) and eigenvectors in columns (p, p) of the symmetric part, float64."""
    values, vectors = torch.linalg.eigh(symmetric(matrix))
    return values.flip(0), vectors.flip(1)


def symmetric_eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues, descending, (p,), of a matrix that is known to be symmetric; its lower triangle is read.

    On the CPU by numpy, whose LAPACK takes a third to two thirds of the time of torch's (measured from 257 to 1153
    rows in float64); a tensor without storage has to stay torch's.

    >>> symmetric_eigenvalues(torch.tensor([[2., 1.], [1., 2.]])).tolist()
    [3.0, 1.0]
    """
    if matrix.device.type == "cpu" and type(matrix) is Tensor and len(matrix):
        return torch.from_numpy(numpy.linalg.eigvalsh(matrix.numpy())).flip(0)
    return torch.linalg.eigvalsh(matrix).flip(0)


def eigvalsh(matrix: Tensor) -> Tensor:
    """Eigenvalues of the symmetric part, descending, float64, (p,).

    >>> eigvalsh(torch.tensor([[2., 1.], [1., 2.]])).tolist()
    [3.0, 1.0]
    """
    return symmetric_eigenvalues(symmetric(matrix))


def logdet_psd(matrix: Tensor, damping: float = 0.0) -> float:
    """log det(A + damping I) of a PSD matrix, nats.

    By Cholesky; where that meets a pivot that rounding has made negative, by eigenvalues.

    Raises:
        InputError: A + damping I is singular or indefinite to rounding, so that there is no such number.

    >>> round(logdet_psd(torch.diag(torch.tensor([1., 3.])), damping=1.0), 4)
    2.0794
    """
    matrix = symmetric(matrix)
    matrix = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        return float(2 * factor.diagonal().log().sum())
    values = symmetric_eigenvalues(matrix)
    floor = torch.finfo(matrix.dtype).eps * len(values) * float(values.abs().max())
    if float(values[-1]) <= floor:
        raise InputError(
            f"log det of a matrix of shape {tuple(matrix.shape)} with damping={damping:g}: its least eigenvalue is "
            f"{float(values[-1]):.3g}, not above rounding ({floor:.3g}); give damping above that"
        )
    return float(values.log().sum())


def inverse_psd(matrix: Tensor, damping: float) -> Tensor:
    """(A + damping I)^{-1} of a PSD matrix (p, p), in its dtype.

    By Cholesky, in that dtype where |A|_F / damping, which bounds the condition number, keeps the relative error below
    about 1e-3, in float64 elsewhere; where rounding has made a pivot negative there too, by eigenvalues clamped at 0.

    Cost: p^3 multiply-adds.

    >>> inverse_psd(torch.diag(torch.tensor([1., 3.])).double(), damping=1.0).round(decimals=9).abs().tolist()
    [[0.5, 0.0], [0.0, 0.25]]
    """
    dtype = matrix.dtype
    if float(matrix.norm()) * torch.finfo(dtype).eps > 1e-3 * damping:
        matrix = matrix.double()
    damped = matrix.clone()
    damped.diagonal().add_(damping)
    inverse = _inverse(damped)
    if inverse is None and damped.dtype != torch.float64:
        inverse = _inverse(damped.double())
    if inverse is None:
        values, vectors = eigh(matrix)
        return ((vectors / (values.clamp(min=0) + damping)) @ vectors.T).to(dtype)
    return inverse.to(dtype)


def _inverse(matrix: Tensor) -> Tensor | None:
    """A^{-1}, or None where a pivot is not positive.

    By halves: with T = C B^{-1} and the Schur complement S = D - T C^T,

        [B C^T; C D]^{-1} = [B^{-1} + T^T S^{-1} T, -T^T S^{-1}; -S^{-1} T, S^{-1}].

    The halves are products of large matrices, which run at several times the speed of a LAPACK factorisation.
    """
    size = len(matrix)
    if size <= LEAF:
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return None if failed else torch.cholesky_inverse(factor)
    half = size // 2
    head, corner = matrix[:half, :half], matrix[half:, :half]
    first = _inverse(head)
    if first is None:
        return None
    across = matmul(corner, first)
    second = _inverse(matrix[half:, half:] - matmul(across, corner.T))
    if second is None:
        return None
    inverse = torch.empty_like(matrix)
    below = matmul(second, across)
    inverse[:half, :half] = first
    add_product(inverse[:half, :half], across.T, below)
    inverse[half:, half:] = second
    inverse[half:, :half] = below.neg_()
    inverse[:half, half:] = below.T
    return inverse
