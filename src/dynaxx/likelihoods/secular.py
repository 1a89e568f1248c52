"""The top eigenpair of diag(p) - p p^T from logits: a scalar equation without poles, solved by safeguarded Newton.

Derived here. Textbook solvers take p, form p - lambda and return garbage or NaN from a margin of 20
(float32) or 40 (float64), and at near ties; here every difference is an expm1 and everything is measured in units of
the tail delta.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynaxx.likelihoods.simplex import SimplexPoint

ITERATIONS = 12


def scaled_top_eigenpair(point: SimplexPoint) -> tuple[Tensor, Tensor]:
    """(mu, v) with I v = delta mu v, |v| = 1: the largest eigenvalue in units of delta = 1 - p_t.

    With 2 the second class, q = p / delta off the top, gap = p_t - p_2 and d_j = q_2 - q_j, mu = q_2 + x where x in
    (0, gap/delta) is the root of the decreasing function

        h(x) = x (p_t - q_2 - x) + (gap - delta x) (q_2^2 + sum_{j != t,2} q_j^2 x / (x + d_j)),

    and v_t = p_t / (gap - delta x), v_2 = -q_2 / x, v_j = -q_j / (x + d_j). Exact ties at the top have mu delta = p_t
    and v = (e_t - e_2) / sqrt(2); a lone class has I = 0, answered by (0, e_t).

    Returns:
        mu of shape (..., 1) in [0, 2] and v of shape (..., C) with v_t > 0. v is ill-posed where the top eigenvalue
        is nearly multiple (uniform p): any vector of that eigenspace is right.

    Cost: at most 12 passes over C, 5 to 7 as a rule.
    """
    delta, p_t, q = point.tail, point.top_probability, point.within_tail
    others = point.z.masked_fill(point.is_top, -torch.inf)
    z_2, second = others.max(-1, keepdim=True)
    # a lone class has no second one; computed as a tie and overwritten at the end
    z_2 = torch.where(point.alone, point.peak, z_2)
    is_second = torch.zeros_like(point.is_top).scatter(-1, second, True) & ~point.is_top
    q_2 = torch.where(is_second, q, torch.zeros_like(q)).sum(-1, keepdim=True)
    gap = -p_t * torch.expm1(z_2 - point.peak)
    outer = ~(point.is_top | is_second)
    squares = q.square().masked_fill(~outer, 0.0)
    distance = torch.where(outer, -q_2 * torch.expm1(others - z_2), torch.ones_like(q))

    tied = gap <= torch.finfo(gap.dtype).tiny ** 0.5
    x = _root(p_t, delta, q_2, gap, squares, distance, point.support_size.to(gap.dtype), tied)
    # one common factor x (gap - delta x) / gap clears the denominators that vanish near ties
    inside = 1 - delta * (x / gap)
    v_outer = -q * x * inside / (x + distance)
    v = torch.where(point.is_top, p_t * (x / gap), torch.where(is_second, -q_2 * inside, v_outer))
    tie = point.is_top.to(v.dtype) - is_second.to(v.dtype)
    v = torch.where(tied, tie, v)
    v = torch.where(point.alone, point.is_top.to(v.dtype), v)
    v = v / v.abs().amax(-1, keepdim=True)
    v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    # p_t / delta at a tie is q_2, because p_2 = p_t there
    mu = torch.where(tied, q_2, q_2 + x)
    return mu.masked_fill(point.alone, 0.0), v


def _root(
    p_t: Tensor, delta: Tensor, q_2: Tensor, gap: Tensor, squares: Tensor, distance: Tensor, count: Tensor, done: Tensor
) -> Tensor:
    """Newton from above, bisection where a step leaves the bracket; positions that are done stand still."""
    tolerance = 4 * torch.finfo(gap.dtype).eps
    # slack at both ends: the closed-form bounds cancel near ties, and a root outside the bracket stalls at its end
    low = (0.999 * (count / (count - 1).clamp_min(1.0) * p_t - q_2) - 2 * tolerance).clamp_min(0.0)
    purity = squares.sum(-1, keepdim=True) + q_2.square()
    x = torch.minimum(2 * p_t, 2 - delta - delta * purity) - q_2
    high = torch.minimum(gap / delta, 1.001 * x + 1e-3 * q_2)
    x = torch.minimum(torch.maximum(x, low), high)
    for _ in range(ITERATIONS):
        shifted = x + distance
        weight = q_2.square() + (squares * (x / shifted)).sum(-1, keepdim=True)
        slope = (squares * distance / shifted.square()).sum(-1, keepdim=True)
        pole = gap - delta * x
        value = x * (p_t - q_2 - x) + pole * weight
        derivative = (p_t - q_2 - 2 * x) - delta * weight + pole * slope
        low = torch.where(~done & (value > 0), x, low)
        high = torch.where(~done & (value <= 0), x, high)
        step = -value / derivative
        proposal = x + step
        small = step.abs() <= tolerance * x.abs()
        outside = ~((proposal > low) & (proposal < high)) & ~small
        proposal = torch.where(outside, 0.5 * (low + high), proposal)
        x = torch.where(done, x, proposal)
        done = done | small
        if bool(done.all()):
            break
    return x
