"""Conjugate gradients that stop by what the minimum is worth, not by a residual."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

Apply = Callable[[Tensor], Tensor]
STEPS = 1000
RECENT = 8  # an eighth of the steps


def descend(apply: Apply, precondition: Apply, residual: Tensor, energy: float, accuracy: float) -> Tensor:
    """x near the minimum of E(x) = energy - <r, x> + 1/2 <x, H x>.

    What is left to gain is 1/2 r^T H^{-1} r for the residual r. Two estimates of it are at hand in every step: the same
    with P, good where P is near H^{-1}, and what the last eighth of the steps has gained, good where steps gain evenly.
    The larger one counts; neither is a bound.

    Args:
        apply: H, symmetric and positive definite; tensors of any one shape.
        precondition: P, the same.
        residual: r at x = 0. It is overwritten.
        energy: E(0).
        accuracy: stop where what is left to gain is at most this times E(x).
    """
    x, direction = residual.new_zeros(residual.shape), residual.new_zeros(residual.shape)
    before, gains = 0.0, list[float]()
    for _ in range(STEPS):
        z = precondition(residual)
        rho = float((residual * z).sum())
        left = max(rho / 2, sum(gains[-math.ceil(len(gains) / RECENT) :]))
        if left <= accuracy * energy or not rho > 0:  # or rounding is all that there is, as below
            break
        direction = z.add_(direction, alpha=rho / before if before else 0.0)
        image = apply(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0:
            break
        step = rho / curvature
        x.add_(direction, alpha=step)
        residual.sub_(image, alpha=step)
        gains.append(0.5 * step * rho)
        energy -= gains[-1]
        before = rho
    return x
