"""The Lanczos process: a symmetric operator as a tridiagonal matrix on its Krylov space."""

from typing import NamedTuple

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.linalg.orthogonal import project_out, vanished
from dynaxx.linalg.protocol import Operator, dimension, product, require_count, require_room


class Tridiagonal(NamedTuple):
    """``alpha`` (j,) the diagonal, ``beta`` (j - 1,) the off-diagonal, ``basis`` (p, j) orthonormal: A Q = Q T + a
    last-column residual.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor

    def matrix(self) -> Tensor:
        """T, (j, j), float64."""
        alpha, beta = self.alpha.to(torch.float64), self.beta.to(torch.float64)
        return torch.diag(alpha) + torch.diag(beta, 1) + torch.diag(beta, -1)


def tridiagonal(op: Operator, start: Tensor, steps: int) -> Tridiagonal:
    """Lanczos from a start vector, with full reorthogonalisation (twice).

        A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1},    q_1 = start / |start|

    In exact arithmetic Q^T A Q = T, and e_1^T f(T) e_1 is the Gauss quadrature of q_1^T f(A) q_1: exact once j reaches
    the number of distinct eigenvalues that the start vector touches.

    Args:
        op: symmetric operator (p, p).
        start: (p,), not zero.
        steps: at most this many.

    Returns:
        Tridiagonal, with fewer than ``steps`` rows when the Krylov space is exhausted (then A Q = Q T to rounding).

    Raises:
        InputError: the start vector has the wrong shape, is zero or not finite.
        SizeError: ``steps`` vectors do not fit.

    Cost: one product a step, 4 p j flops a step to stay orthogonal; memory p x steps.

    Source: Lanczos, J. Res. NBS 45 (1950); Golub & Van Loan, Matrix Computations, 10.1.

    >>> tridiagonal(torch.diag(torch.tensor([1., 3.])), torch.tensor([1., 1.]), steps=5).matrix().round().tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    """
    p = dimension(op)
    if start.shape != (p,):
        raise InputError(f"the start vector has shape {tuple(start.shape)}; the operator takes ({p},)")
    length = start.norm()
    if not (0 < float(length) < float("inf")):
        raise InputError(f"the start vector has length {float(length)}; give a finite vector that is not zero")
    alpha, beta, basis, reached = _process(op, (start / length)[:, None], require_count("steps", steps))
    j = int(reached[0])
    return Tridiagonal(alpha[:j, 0], beta[: j - 1, 0], basis[0, :, :j])


class Coefficients(NamedTuple):
    """``alpha``, ``beta`` (steps, b) of b Lanczos processes, and how many steps each made (b,), int64 on the CPU; what
    lies beyond is zero.
    """

    alpha: Tensor
    beta: Tensor
    reached: Tensor


def krylov(op: Operator, starts: Tensor, steps: int) -> Coefficients:
    """The Lanczos process from several unit vectors (p, b) at once, fully reorthogonalised, one product a step."""
    alpha, beta, _, reached = _process(op, starts, steps)
    return Coefficients(alpha, beta, reached)


def short_recurrence(op: Operator, starts: Tensor, steps: int) -> Coefficients:
    """The same from the last two vectors alone, which stay orthogonal to each other and drift from the rest.

    Memory 4 p b.
    """
    p, b = starts.shape
    steps = min(steps, p)
    alpha = torch.zeros(steps, b, dtype=op.dtype, device=op.device)
    beta = torch.zeros_like(alpha)
    reached = torch.full((b,), steps)
    scale = torch.zeros(b, dtype=op.dtype, device=op.device)
    before, q = torch.zeros(1, b, dtype=op.dtype, device=op.device), starts.to(op.dtype)
    for j in range(steps):
        w = product(op, q)
        scale = torch.maximum(scale, w.norm(dim=0))
        alpha[j] = (q * w).sum(0)
        w = w - alpha[j] * q
        if j:
            w -= beta[j - 1] * before
        norm = w.norm(dim=0)
        exhausted = vanished(norm, scale)
        reached = torch.where(exhausted.cpu() & (reached == steps), j + 1, reached)
        beta[j] = torch.where(exhausted, 0, norm)
        before, q = q, w.mul_(torch.where(exhausted, 0, 1 / norm))
        if bool((reached <= j + 1).all()):
            break
    return Coefficients(alpha, beta, reached)


def _process(op: Operator, starts: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The Lanczos process from several unit vectors at once, sharing products: one per step for all of them.

    Args:
        starts: (p, b), unit columns.

    Returns:
        alpha (steps, b), beta (steps, b), basis (b, p, steps), and how many steps each column reached (b,), int64 on
        the CPU. Rows beyond that are zero.
    """
    p, b = starts.shape
    steps = min(steps, p)
    require_room("the Lanczos basis", op, steps * b, "take fewer steps")
    basis = torch.zeros(b, p, steps, dtype=op.dtype, device=op.device)
    alpha = torch.zeros(steps, b, dtype=op.dtype, device=op.device)
    beta = torch.zeros_like(alpha)
    reached = torch.full((b,), steps)
    scale = torch.zeros(b, dtype=op.dtype, device=op.device)
    q = starts.to(op.dtype)
    for j in range(steps):
        basis[:, :, j] = q.T
        w = product(op, q)
        scale = torch.maximum(scale, w.norm(dim=0))
        coefficients, rest = project_out(basis[:, :, : j + 1], w.T[:, :, None])
        alpha[j] = coefficients[:, j, 0]
        norm = rest[:, :, 0].norm(dim=1)
        exhausted = vanished(norm, scale)
        reached = torch.where(exhausted.cpu() & (reached == steps), j + 1, reached)
        # An exhausted column carries zeros from here on: its products and coefficients are zero too.
        beta[j] = torch.where(exhausted, 0, norm)
        q = torch.where(exhausted, 0, rest[:, :, 0].T / torch.where(exhausted, 1, norm))
        if bool((reached <= j + 1).all()):
            break
    return alpha, beta, basis, reached
