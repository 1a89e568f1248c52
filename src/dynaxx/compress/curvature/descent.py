"""Conjugate gradients that stop by what the minimum is worth, not by a residual."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Apply = Callable[[Tensor], Tensor]
STEPS = 1000


def descend(apply: Apply, precondition: Apply, residual: Tensor, energy: float, accuracy: float) -> Tensor:
    """x near the minimum of E(x) = energy - <r, x> + 1/2 <x, H x>.

    What is left to gain is 1/2 r^T H^{-1} r for the residual r. A preconditioner P near H^{-1} makes 1/2 r^T P r of it,
    which is at hand in every step.

    Args:
        apply: H, symmetric and positive definite; tensors of any one shape.
        precondition: P, the same.
        residual: r at x = 0. It is overwritten.
        energy: E(0).
        accuracy: stop where 1/2 r^T P r is at most this times E(x).
    """
    x, direction = residual.new_zeros(residual.shape), residual.new_zeros(residual.shape)
    before = 0.0
    for _ in range(STEPS):
        z = precondition(residual)
        rho = float((residual * z).sum())
        if not rho > 2 * accuracy * energy:  # also where rounding is all that is left
            break
        direction = z.add_(direction, alpha=rho / before if before else 0.0)
        image = apply(direction)
        step = rho / float((direction * image).sum())
        x.add_(direction, alpha=step)
        residual.sub_(image, alpha=step)
        energy -= 0.5 * step * rho
        before = rho
    return x
