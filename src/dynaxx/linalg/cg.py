"""Conjugate gradients for several right-hand sides at once."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dynaxx.errors import ConvergenceWarning, InputError
from dynaxx.linalg.protocol import Operator, dimension, product, require_count

Apply = Callable[[Tensor], Tensor]


class Solution(NamedTuple):
    """What ``cg`` found: ``value`` in the shape of b; ``residual`` |b - (A + damping I) x| / |b|, computed anew from
    the answer, one per column (a 0-d tensor for a vector b); ``iterations`` steps taken; ``converged`` for every
    column.
    """

    value: Tensor
    residual: Tensor
    iterations: int
    converged: bool


def cg(
    op: Operator,
    b: Tensor,
    *,
    damping: float = 0.0,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    preconditioner: Operator | Apply | None = None,
    x0: Tensor | None = None,
) -> Solution:
    """Solve (A + damping I) x = b for a symmetric positive definite A + damping I.

    Each step minimises (x - x*)^T (A + damping I) (x - x*) over one more Krylov direction. The residual that the
    recurrence carries drifts away from the true one, so the true one is computed at the end of a run; where it is still
    above the tolerance, the iteration starts again from it, for as long as that at least halves it.

    Args:
        op: symmetric operator (p, p).
        b: (p,) or (p, k). Columns share the products and leave them as they converge.
        damping: >= 0, in units of A's eigenvalues.
        tolerance: on |b - (A + damping I) x| / |b|, each column.
        max_iterations: steps in all; default min(10 p, 1000).
        preconditioner: approximates (A + damping I)^-1 and is positive definite; a callable on (p, k), or anything with
            ``@``.
        x0: where to start, in the shape of b; default 0.

    Returns:
        Solution. A ConvergenceWarning is issued where ``converged`` is False.

    Raises:
        InputError: shapes, dtypes or numbers that cannot be used; a direction d with d^T (A + damping I) d <= 0 to
            rounding: A is singular or indefinite (a Hessian away from a minimum), and needs more damping.

    Cost: one product per step and one per run; 4 tensors in the shape of b.

    Source: Hestenes & Stiefel, Methods of conjugate gradients for solving linear systems, J. Res. NBS 49 (1952).

    >>> solution = cg(torch.diag(torch.tensor([1., 3.])), torch.tensor([2., 8.]), damping=1.0)
    >>> solution.value.round(decimals=4), solution.converged
    (tensor([1., 2.]), True)
    """
    p = dimension(op)
    _check(op, p, b, damping, tolerance, x0)
    limit = min(10 * p, 1000) if max_iterations is None else require_count("max_iterations", max_iterations)
    columns = b.detach().reshape(p, -1)
    # Unit right-hand sides, so that residuals are relative as they stand; by the largest entry first, because squares
    # of small gradients underflow in float32.
    peak = columns.abs().amax(0)
    zero = peak == 0
    peak = torch.where(zero, 1, peak)
    scale = peak * torch.where(zero, 1, (columns / peak).norm(dim=0))
    target = columns / scale

    def apply(v: Tensor) -> Tensor:
        return product(op, v) + damping * v if damping else product(op, v)

    x = torch.zeros_like(target) if x0 is None else x0.detach().reshape(p, -1) / scale
    x[:, zero] = 0
    residual = target - apply(x) if x0 is not None else target.clone()
    relative = residual.norm(dim=0)
    active = relative > tolerance
    steps = 0
    while bool(active.any()) and steps < limit:
        run = _Run(apply, _as_callable(preconditioner), x[:, active], residual[:, active])
        steps += run.until(tolerance / 2, limit - steps, damping)
        x[:, active] = run.x
        residual[:, active] = target[:, active] - apply(x[:, active])
        before, relative = relative, residual.norm(dim=0)
        active = (relative > tolerance) & (relative < before / 2)
    converged = bool((relative <= tolerance).all())
    if not converged:
        warnings.warn(
            f"cg stopped after {steps} steps (max_iterations={limit}) at a relative residual of "
            f"{float(relative.max()):.2g}, tolerance {tolerance:g}; raise max_iterations or damping, give a "
            f"preconditioner, or accept this tolerance in {op.dtype}",
            ConvergenceWarning,
            stacklevel=2,
        )
    relative = relative if b.dim() == 2 else relative[0]
    return Solution((x * scale).reshape(b.shape), relative, steps, converged)


class _Run:
    """One run of the recurrence from x (p, k) with its residual; columns leave as they converge."""

    def __init__(self, apply: Apply, precondition: Apply, x: Tensor, residual: Tensor) -> None:
        self.apply, self.precondition = apply, precondition
        self.x = x.clone()
        self.residual = residual.clone()
        self.live = torch.arange(x.shape[1], device=x.device)
        # The largest |A d| / |d| seen: what a curvature has to be measured against to be told from rounding.
        self.stretch = torch.zeros((), dtype=x.dtype, device=x.device)

    def until(self, goal: float, limit: int, damping: float) -> int:
        """Step until every column's residual is at most ``goal``; the number of steps taken."""
        z = self.precondition(self.residual)
        direction, rho = z.clone(), self._rho(z)
        for step in range(1, limit + 1):
            image = self.apply(direction)
            curvature = (direction * image).sum(0)
            keep = self._may_go_on(direction, image, curvature, damping)
            alpha = torch.where(keep, rho / torch.where(keep, curvature, 1), 0)
            self.x[:, self.live] += alpha * direction
            self.residual -= alpha * image
            keep &= self.residual.norm(dim=0) > goal
            if not bool(keep.all()):
                self.live, self.residual = self.live[keep], self.residual[:, keep]
                direction, rho = direction[:, keep], rho[keep]
                if not len(self.live):
                    return step
            z = self.precondition(self.residual)
            previous, rho = rho, self._rho(z)
            direction = z + (rho / previous) * direction
        return limit

    def _rho(self, z: Tensor) -> Tensor:
        rho = (self.residual * z).sum(0)
        if not bool((rho > 0).all()):
            raise InputError(
                f"the preconditioner gave r^T P r = {float(rho.min()):.3g} for a residual r; it must be positive "
                "definite (damp it), or leave preconditioner=None"
            )
        return rho

    def _may_go_on(self, direction: Tensor, image: Tensor, curvature: Tensor, damping: float) -> Tensor:
        """Columns with positive curvature. Without it a column stops if its residual is rounding anyhow, and is refused
        otherwise.
        """
        eps = torch.finfo(direction.dtype).eps
        square = direction.square().sum(0)
        if not bool(torch.isfinite(curvature).all()):
            raise InputError(
                "the operator's product holds NaN or infinite entries; check the model's parameters and data for them"
            )
        self.stretch = torch.maximum(self.stretch, (image.norm(dim=0) / square.sqrt()).max())
        positive = curvature > eps * self.stretch * square
        refused = ~positive & (self.residual.norm(dim=0) > 1e3 * eps)
        if bool(refused.any()):
            least = float((curvature / square)[refused].min())
            raise InputError(
                f"cg with damping={damping:g} met a direction of curvature d^T A d / d^T d = {least:.3g} (damping "
                "included): the operator is singular or indefinite there, as a Hessian is away from a minimum; give "
                f"damping above {max(-least, 0.0) + damping:.3g}"
            )
        return positive


def _as_callable(preconditioner: Operator | Apply | None) -> Apply:
    if preconditioner is None:
        return lambda v: v
    if callable(preconditioner):
        return lambda v: preconditioner(v).detach()
    return lambda v: product(preconditioner, v)


def _check(op: Operator, p: int, b: Tensor, damping: float, tolerance: float, x0: Tensor | None) -> None:
    for name, tensor in {"b": b, "x0": x0}.items():
        if tensor is None:
            continue
        if tensor.dim() not in (1, 2) or tensor.shape[0] != p or tensor.numel() == 0:
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)}; the operator takes ({p},) or ({p}, k) with k >= 1"
            )
        if tensor.dtype != op.dtype or tensor.device != op.device:
            raise InputError(
                f"{name} is {tensor.dtype} on {tensor.device}; use {name}.to({op.dtype}) on {op.device}, as the "
                "operator is"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{name} of shape {tuple(tensor.shape)} holds NaN or infinite entries; there is nothing to solve for"
            )
    if x0 is not None and x0.shape != b.shape:
        raise InputError(f"x0 has shape {tuple(x0.shape)}; give it the shape of b, {tuple(b.shape)}")
    if not damping >= 0:
        raise InputError(f"damping={damping!r} is not a number >= 0; damping=0 solves with the operator as it is")
    if not tolerance > 0:
        raise InputError(f"tolerance={tolerance!r} is not a number > 0; 1e-6 is the default")
