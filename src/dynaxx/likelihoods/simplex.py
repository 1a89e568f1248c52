"""A point of the probability simplex given by logits, in coordinates that stay exact next to its corners."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

_SERIES_RADIUS = 0.25


def exponential_excess(w: Tensor) -> Tensor:
    """exp(w) - 1 - w >= 0, to full relative accuracy.

    >>> exponential_excess(torch.tensor(1e-8, dtype=torch.float64)).item()
    5.0000000166...e-17
    """
    small = torch.where(w.abs() < _SERIES_RADIUS, w, torch.zeros_like(w))
    series = torch.ones_like(w)
    for power in range(14, 2, -1):  # w**13 / 15! is below rounding inside the radius
        series = 1 + series * small / power
    return torch.where(w.abs() < _SERIES_RADIUS, small.square() / 2 * series, torch.expm1(w) - w)


class SimplexPoint:
    """p = softmax(z), seen from its most likely class t.

    Near a corner 1 - p_t cancels when p is computed first (from a margin of 16 in float32, 36 in float64). Here the
    tail delta = 1 - p_t is the primary quantity: delta = sigmoid(logsumexp_{j != t} z_j - z_t), and p_t = sigmoid of
    minus that.

    Args:
        z: logits (..., C) in float32 or float64, C >= 2. -inf is a class that cannot happen.

    Derived here; held against 700-digit arithmetic in the tests.
    """

    def __init__(self, z: Tensor) -> None:
        self.z = z

    @cached_property
    def _largest(self) -> tuple[Tensor, Tensor]:
        peak, top = self.z.max(-1, keepdim=True)
        return peak, top

    @property
    def peak(self) -> Tensor:
        """z_t, shape (..., 1)."""
        return self._largest[0]

    @property
    def top(self) -> Tensor:
        """t, the most likely class, shape (..., 1)."""
        return self._largest[1]

    @cached_property
    def is_top(self) -> Tensor:
        """Where t is, bool of shape (..., C)."""
        return torch.zeros_like(self.z, dtype=torch.bool).scatter(-1, self.top, True)

    @cached_property
    def _others(self) -> Tensor:
        return (self.z - self.peak).masked_fill(self.is_top, -torch.inf)

    @cached_property
    def alone(self) -> Tensor:
        """Whether no other class can happen, bool of shape (..., 1)."""
        return torch.isneginf(self._others.amax(-1, keepdim=True))

    @cached_property
    def log_odds(self) -> Tensor:
        """log of delta / (1 - delta), shape (..., 1)."""
        # the filled zeros keep the derivative of a lone class from becoming inf - inf
        tail = torch.logsumexp(self._others.masked_fill(self.alone, 0.0), -1, keepdim=True)
        return tail.masked_fill(self.alone, -torch.inf)

    @cached_property
    def log_normaliser(self) -> Tensor:
        """log of the sum of exp z, shape (..., 1)."""
        return self.peak + functional.softplus(self.log_odds)

    def pick(self, v: Tensor) -> Tensor:
        """v_t, shape (..., 1), for v of shape (..., C) or broadcastable to it."""
        return _entry(v, self.top)

    def balance(self, u: Tensor) -> Tensor:
        """u, changed to u_t := -sum of the others: what is in the range of I(z) sums to zero, and u_t alone loses
        digits."""
        top = self.top.expand(*u.shape[:-1], 1)
        rest = u.scatter_(-1, top, 0.0)
        return rest.scatter_(-1, top, -rest.sum(-1, keepdim=True))

    @cached_property
    def log_p(self) -> Tensor:
        """log p, shape (..., C); log p_t = -log(1 + exp(log_odds)) without cancellation."""
        return self.z - self.peak - functional.softplus(self.log_odds)

    @cached_property
    def p(self) -> Tensor:
        """p, shape (..., C). Every entry is right to its last digits; only differences from one would cancel."""
        return torch.softmax(self.z, -1)

    @cached_property
    def root(self) -> Tensor:
        """sqrt(p), shape (..., C), from logits: it outlives the underflow of p and has a derivative where p = 0."""
        return (0.5 * torch.log_softmax(self.z, -1)).exp_()

    @cached_property
    def tail(self) -> Tensor:
        """delta = 1 - p_t, shape (..., 1)."""
        return torch.sigmoid(self.log_odds)

    @cached_property
    def root_tail(self) -> Tensor:
        """sqrt(delta), shape (..., 1)."""
        return (0.5 * functional.logsigmoid(self.log_odds)).exp()

    @cached_property
    def top_probability(self) -> Tensor:
        """p_t, shape (..., 1)."""
        return torch.sigmoid(-self.log_odds)

    @cached_property
    def within_tail(self) -> Tensor:
        """q = p / delta off the top class, 0 at it, shape (..., C): sums to one however small delta is."""
        # from differences among the others: at a margin of 700 exp(log p - log delta) would lose two digits
        others = self.z.masked_fill(self.is_top, -torch.inf).masked_fill(self.alone, 0.0)
        return torch.softmax(others, -1).masked_fill(self.alone, 0.0)

    @cached_property
    def complement(self) -> Tensor:
        """1 - p, shape (..., C). Only the top class can exceed 1/2, so only there the subtraction would cancel."""
        return torch.where(self.is_top, self.tail, 1 - self.p)

    @cached_property
    def support_size(self) -> Tensor:
        """Number of classes with a finite logit, shape (..., 1)."""
        return (self.z > -torch.inf).sum(-1, keepdim=True)

    def apply(self, v: Tensor) -> Tensor:
        """I v = p (v - p.v)."""
        return product(self.p, self.top, v)

    def apply_scaled(self, v: Tensor) -> Tensor:
        """I v / delta: stays of order one where I underflows."""
        v = v - self.pick(v)
        mean = (self.within_tail * v).sum(-1, keepdim=True)
        return torch.where(self.is_top, -self.top_probability * mean, self.within_tail * (v - self.tail * mean))

    def scaled_metric(self) -> Tensor:
        """I / delta, shape (..., C, C): ones and smaller, so that an eigensolver sees a well scaled matrix."""
        q, at_top = self.within_tail, self.is_top.to(self.p.dtype)
        # p_i q_j has everything but the column of t, where p_i is delta q_i and the entry wants p_t q_i
        dense = -(self.p.unsqueeze(-1) * q.unsqueeze(-2)) - (self.top_probability * q).unsqueeze(-1) * at_top.unsqueeze(
            -2
        )
        diagonal = torch.where(self.is_top, self.top_probability, q * self.complement)
        return torch.diagonal_scatter(dense, diagonal, dim1=-2, dim2=-1)


def product(p: Tensor, top: Tensor, v: Tensor) -> Tensor:
    """(diag(p) - p p^T) v, (..., C). Constants are in the null space, so v_t is taken off first and nothing cancels.

    Args:
        p: (..., C). top: the most likely class, (..., 1).
    """
    v = v - _entry(v, top)
    return p * (v - (p * v).sum(-1, keepdim=True))


def _entry(v: Tensor, top: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(v.shape[:-1], top.shape[:-1])
    return v.expand(*batch, v.shape[-1]).gather(-1, top.expand(*batch, 1))


def divergence(z0: Tensor, z1: Tensor) -> Tensor:
    """KL(softmax(z0) || softmax(z1)) in nats, shape (...), as a sum of terms >= 0.

    With d = z1 - z0 and w = d - E_{p0} d,

        KL = log E_{p0} exp(w) = log1p( sum_j p0_j (exp(w_j) - 1 - w_j) ),

    so that logits 1e-8 apart give 1e-16 with all its digits, where sum p0 (log p0 - log p1) returns noise. An error
    in the mean of w enters at second order only. Own derivation.
    """
    point = SimplexPoint(z0)
    outside, forbidden = torch.isneginf(z0), torch.isneginf(z1)
    infinite = (forbidden & ~outside).any(-1)
    step = (z1 - z0).masked_fill(outside | forbidden, 0.0)
    at_top = point.pick(step)
    step = (step - at_top).masked_fill(outside, 0.0)
    mean = (point.p * step).sum(-1, keepdim=True)
    w = step - mean
    # where p0 = 0 the sum still has what p1 puts there
    log_term = torch.where(outside, z1 - point.log_normaliser - at_top - mean, point.log_p + w)
    near = point.p * exponential_excess(w.clamp(-1.0, 1.0))
    far = log_term.exp() - (point.p * (1 + w)).masked_fill(outside, 0.0)
    total = torch.where((w.abs() < 1) & ~outside, near, far).sum(-1)
    value = torch.where(torch.isinf(total), torch.logsumexp(log_term, -1), torch.log1p(total))
    return value.masked_fill(infinite, torch.inf)
