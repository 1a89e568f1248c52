"""Shortest paths between predictions, and how far along one a model is.

Square roots of probabilities are points of a unit sphere per example; the shortest path runs on a great circle of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.manifold.checks import example_weights, points, probabilities, shape

HALVINGS = 60  # of the unit interval: below the spacing of float64


@torch.no_grad()
def geodesic(P: Tensor, Q: Tensor, t: float | Tensor) -> Tensor:
    """Predictions at a share t of the shortest path from P to Q.

        sqrt g_t = (sin((1 - t) phi) sqrt p + sin(t phi) sqrt q) / sin phi,     cos phi = sum_c sqrt(p_c q_c)

    example by example: the geodesic of the Fisher metric on the product of simplices, run at constant speed.

    Args:
        P, Q: (..., C) probabilities of two models on the same examples.
        t: a number, or (T,) of them; 0 is P, 1 is Q.

    Returns:
        (..., C) float64 probabilities, or (T, ..., C).

    Raises:
        InputError: shapes differ, rows are no probabilities, or t leaves [0, 1].

    Cost: T times the size of P.

    Source: Mao et al. 2024.

    >>> geodesic(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if not (isinstance(P, Tensor) and isinstance(Q, Tensor)) or P.shape != Q.shape or P.dim() == 0:
        raise InputError(f"P {shape(P)} and Q {shape(Q)} must have the same shape (..., C)")
    share = torch.as_tensor(t, dtype=torch.float64, device=P.device)
    if share.dim() > 1 or not bool(((share >= 0) & (share <= 1)).all()):
        raise InputError(f"t={t!r} must be numbers in [0, 1], one or a list of them")
    p, q = probabilities("P", P).sqrt(), probabilities("Q", Q).sqrt()
    share = share.reshape(*share.shape, *[1] * P.dim())
    start, end = _mixture(share, _angle(p, q)[..., None])
    return (start * p + end * q).square()


@torch.no_grad()
def progress(
    P: Tensor | Sequence[Tensor], *, end: Tensor, start: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """How far models are along the shortest path from ignorance to truth: 0 knows nothing, 1 is always right.

        s = argmin over t in [0, 1] of  mean_n arccos^2 <sqrt p_n, sqrt g_nt>

    the foot of the shortest line from the model to the path, in the geodesic distance of ``distances``. (Mao et al.
    minimise the mean of arccos instead.) Each example's angle is convex in t, as both ends and the model lie in the
    positive orthant, so the minimum is one, and halving the interval by the sign of the derivative finds it.

    Args:
        P: (M, N, C) probabilities of M models, or a list of M tensors (N, C).
        end: where the path ends: (N, C) probabilities, or (N,) labels for the truth.
        start: (N, C) where it begins; default the uniform distribution.
        weights: (N,) of the examples.

    Returns:
        (M,) float64. How far off the path a model is: ``distances(P, geodesic(start, end, s), kind="geodesic")``.

    Raises:
        InputError: shapes differ, rows are no probabilities, labels are out of range.

    Cost: 60 passes over M N numbers.

    Source: Mao et al. 2024 (progress along the geodesic); convexity derived here.

    >>> labels = torch.tensor([0, 2])
    >>> models = geodesic(ignorance(2, 3), truth(labels, 3), torch.tensor([0.25, 0.5]))
    >>> progress(models, end=labels)
    tensor([0.2500, 0.5000], dtype=torch.float64)
    """
    models = points("P", P)
    _, count, classes = models.shape
    if not isinstance(end, Tensor):
        raise InputError(f"end is {shape(end)}; give (N,) labels or (N, C) probabilities as a tensor")
    target = end if end.is_floating_point() else truth(end, classes)
    origin = ignorance(count, classes) if start is None else start
    for name, given in (("end", target), ("start", origin)):
        if tuple(given.shape) != (count, classes):
            raise InputError(f"{name} {shape(given)} does not fit P {shape(models)}; it must be ({count}, {classes})")
    scale = example_weights(weights, count).to(models.device)
    u = probabilities("P", models).sqrt()
    p, q = (probabilities(name, x.to(u.device)).sqrt() for name, x in (("start", origin), ("end", target)))
    angle = _angle(p, q)
    to_start, to_end = (u * p).sum(-1), (u * q).sum(-1)

    low, high = u.new_zeros(len(u), 1), u.new_ones(len(u), 1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        a, b = _mixture(middle, angle)
        away = torch.acos((a * to_start + b * to_end).clamp(-1.0, 1.0))
        # d/dt arccos^2(c) = -2 (theta / sin theta) dc/dt, whose first factor is smooth where theta is zero
        speed = torch.cos(middle * angle) * to_end - torch.cos((1 - middle) * angle) * to_start
        slope = -(scale * speed / torch.sinc(angle / torch.pi) / torch.sinc(away / torch.pi)).sum(-1, keepdim=True)
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return ((low + high) / 2).squeeze(-1)


def ignorance(count: int, classes: int) -> Tensor:
    """The uniform distribution for each of ``count`` examples, (N, C) float64.

    >>> ignorance(1, 4)
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]], dtype=torch.float64)
    """
    return torch.full((count, classes), 1 / classes, dtype=torch.float64)


def truth(labels: Tensor, classes: int) -> Tensor:
    """Certainty of the labels: one-hot rows, (N, C) float64.

    Args:
        labels: (N,) class indices.
        classes: C.

    Raises:
        InputError: a label is not one of 0 to C - 1.

    >>> truth(torch.tensor([1]), 3)
    tensor([[0., 1., 0.]], dtype=torch.float64)
    """
    wrong = (labels < 0) | (labels >= classes)
    if labels.is_floating_point() or labels.dim() != 1 or bool(wrong.any()):
        given = int(labels[wrong][0]) if labels.dim() == 1 and bool(wrong.any()) else shape(labels)
        raise InputError(f"labels must be (N,) class indices from 0 to {classes - 1}; got {given}")
    return torch.nn.functional.one_hot(labels.long(), classes).double()


def _angle(p: Tensor, q: Tensor) -> Tensor:
    """arccos <p, q> between unit vectors, from the chord, which keeps the digits of small angles."""
    return 2 * torch.asin(((p - q).norm(dim=-1) / 2).clamp_max(1.0))


def _mixture(t: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """sin((1 - t) phi) / sin phi and sin(t phi) / sin phi, with their limits 1 - t and t where phi is zero."""
    whole = torch.sinc(angle / torch.pi)
    return tuple(part * torch.sinc(part * angle / torch.pi) / whole for part in (1 - t, t))  # type: ignore[return-value]
