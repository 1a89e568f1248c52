"""Distances between models, or between the data points of one model, from their predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynaxx.assembly.sweep import bar
from dynaxx.errors import InputError, choose, require_memory
from dynaxx.likelihoods.simplex import exponential_excess
from dynaxx.manifold.checks import example_weights, points, probabilities, shape

CHUNK = 2**18  # numbers in one temporary: 2 MB, which stay in a cache
NEAR = 1e-6  # nats; below it a divergence from a matrix product has lost digits to cancellation


@torch.no_grad()
def distances(
    P: Tensor | Sequence[Tensor],
    Q: Tensor | Sequence[Tensor] | None = None,
    *,
    kind: str = "bhattacharyya",
    weights: Tensor | None = None,
    ceiling: float | None = None,
    progress: bool = False,
) -> Tensor:
    """Distances between models by what they predict, averaged over N examples.

    With BC_n = sum_c sqrt(p_nc q_nc), means over n, and what each is for a small step d of the weights:

        hellinger       sqrt mean (1 - BC_n)                     a length;  its square is  1/8 d^T F d
        geodesic        sqrt mean arccos^2 BC_n                  a length;  its square is  1/4 d^T F d
        bhattacharyya   -mean ln BC_n                            a squared length,         1/8 d^T F d
        intensive       -8 mean ln BC_n                          a squared length,             d^T F d
        kl              mean sum_c p_nc ln(p_nc / q_nc), nats    not symmetric,            1/2 d^T F d
        euclidean       mean |p_n - q_n|^2                       a squared length, for regression (below)

    geodesic is the length of the shortest path on the product of N unit spheres, one per example, divided by sqrt N.
    For regression pass ``embed(..., likelihood="gaussian")`` and kind="euclidean": that is the intensive distance of
    normal distributions, 8 times their Bhattacharyya distance and twice their divergence. ``inpca`` takes the squared
    lengths as they are, and hellinger and geodesic squared.

    Args:
        P: (M, N, C) probabilities of M models on the same N examples, or a list of M tensors (N, C). Rows are
            normalised in float64. From ``embed``: ``embed(...) ** 2``.
        Q: (M', N, C), the models to compare with; default P itself, and then the diagonal is exactly zero.
        kind: one of the above.
        weights: (N,) of the examples, not negative; scaled to sum one.
        ceiling: nats. Where two predictions have nothing in common, bhattacharyya, intensive and kl are infinite, and
            one such example makes the mean infinite. Infinities are kept; a ceiling bounds -ln BC_n (or the divergence)
            of each example instead.
        progress: show a progress bar.

    Returns:
        (M, M') float64 on P's device; [u, v] belongs to P[u] and Q[v].

    Raises:
        InputError: shapes differ, rows are no probabilities, weights or ceiling make no sense.
        SizeError: it would not fit into memory.

    Cost: M M' N C multiplications and M M' N logarithms (half of that without Q); 24 (M + M') N C + 8 M M' bytes at
    most. Close predictions keep their digits: 1 - BC is a sum of squared differences of roots, and nothing cancels.

    Source: Quinn et al. 2019 (intensive distance); Mao et al. 2024 (mean over examples).

    >>> P = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]])
    >>> distances(P, kind="geodesic") / torch.pi
    tensor([[0.0000, 0.2500],
            [0.2500, 0.0000]], dtype=torch.float64)
    >>> distances(P[:1], P, kind="kl")
    tensor([[0., inf]], dtype=torch.float64)
    """
    measure = _KINDS[choose("kind", kind, _KINDS)]
    if ceiling is not None and not (ceiling > 0 and measure.unbounded):
        raise InputError(
            f"ceiling={ceiling!r} with kind={kind!r}; a ceiling is a positive number of nats, for bhattacharyya, "
            f"intensive and kl"
        )
    left = points("P", P)
    right = left if Q is None else points("Q", Q)
    if left.shape[1:] != right.shape[1:]:
        raise InputError(
            f"P has shape {tuple(left.shape)} and Q {tuple(right.shape)}; both need the same examples and classes"
        )
    scale = example_weights(weights, left.shape[1]).to(left.device)
    work = 8 * (3 * left.numel() + (3 * right.numel() if Q is not None else 0) + len(left) * len(right))
    require_memory(
        f"distances of {len(left)} and {len(right)} models on {left.shape[1]} examples",
        work,
        "take fewer examples: their number only sets how well the means are known",
    )
    kept = scale > 0
    p = measure.prepare("P", left[:, kept])
    q = p if Q is None else measure.prepare("Q", right[:, kept])
    return _all_pairs(p, q, scale[kept], measure, ceiling, Q is None, progress)


def between_examples(
    P: Tensor, *, kind: str = "bhattacharyya", ceiling: float | None = None, progress: bool = False
) -> Tensor:
    """Distances between the data points of one model: each is a distribution over classes.

    Args:
        P: (N, C) probabilities of one model.
        kind, ceiling, progress: as for ``distances``.

    Returns:
        (N, N) float64. Two confident predictions of different classes are infinitely far apart, or nearly so.

    Raises:
        InputError: as for ``distances``.

    Cost: N^2 C / 2 multiplications, 8 N^2 bytes.

    >>> between_examples(torch.eye(2), kind="hellinger")
    tensor([[0., 1.],
            [1., 0.]], dtype=torch.float64)
    """
    if not isinstance(P, Tensor) or P.dim() != 2:
        raise InputError(f"P {shape(P)} must have shape (N, C), the predictions of one model; distances() takes many")
    return distances(P[:, None], kind=kind, ceiling=ceiling, progress=progress)


@dataclass(frozen=True)
class _Kind:
    """How one distance is made.

    Args:
        prepare: (name, values (M, N, C)) -> checked points of the same shape, float64.
        each: (p (n, a, C), q (n, b, C)) -> (n, a, b), per example.
        finish: from the mean over examples to the distance.
        unbounded: whether it can be infinite.
        symmetric: whether it is its own transpose.
        refine: (p (k, N, C), q (k, N, C)) -> (k, N) per example, for pairs so close that ``each`` lost digits.
    """

    prepare: Callable[[str, Tensor], Tensor]
    each: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]
    unbounded: bool = False
    symmetric: bool = True
    refine: Callable[[Tensor, Tensor], Tensor] | None = None


def _all_pairs(
    p: Tensor, q: Tensor, scale: Tensor, kind: _Kind, ceiling: float | None, same: bool, progress: bool
) -> Tensor:
    """(M, M') of the weighted mean over examples, block by block; p and q are (M, N, C)."""
    out = p.new_zeros(len(p), len(q))
    mirrored = same and kind.symmetric
    limit = torch.inf if ceiling is None else ceiling
    with bar(list(_blocks(len(p), max(1, CHUNK // len(q)))), progress, "rows of distances") as rows:
        for start, stop in rows:
            first = start if mirrored else 0
            block = p.new_zeros(stop - start, len(q) - first)
            for low, high in _blocks(p.shape[1], max(1, CHUNK // block.numel())):
                a, b = (x[:, low:high].transpose(0, 1).contiguous() for x in (p[start:stop], q[first:]))
                block += torch.einsum("n,nab->ab", scale[low:high], kind.each(a, b).clamp_max_(limit))
            if kind.refine is not None:
                _refine(block, p[start:stop], q[first:], scale, kind.refine, limit)
            out[start:stop, first:] = block
            if mirrored:
                out[first:, start:stop] = block.T
    return kind.finish(out)


def _refine(
    block: Tensor, p: Tensor, q: Tensor, scale: Tensor, exact: Callable[[Tensor, Tensor], Tensor], limit: float
) -> None:
    rows, columns = (block < NEAR).nonzero(as_tuple=True)
    size = max(1, CHUNK // max(1, p[0].numel()))
    for low, high in _blocks(len(rows), size):
        i, j = rows[low:high], columns[low:high]
        block[i, j] = exact(p[i], q[j]).clamp_max_(limit) @ scale


def _blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(count, start + size)


# Per example. r and s are square roots of probabilities.


def _squared_differences(r: Tensor, s: Tensor) -> Tensor:
    # not by a matrix product, whose difference of large numbers would lose what two close predictions differ in
    return torch.cdist(r, s, compute_mode="donot_use_mm_for_euclid_dist").square()


def _one_minus_affinity(r: Tensor, s: Tensor) -> Tensor:
    return _squared_differences(r, s) / 2


def _minus_log_affinity(r: Tensor, s: Tensor) -> Tensor:
    gap = _one_minus_affinity(r, s)
    # next to orthogonal rows it is 1 - gap that would cancel, and the sum of products has only positive terms
    return torch.where(gap < 0.5, -torch.log1p(-gap.clamp_max(0.5)), -(r @ s.mT).log())


def _squared_angle(r: Tensor, s: Tensor) -> Tensor:
    return (2 * torch.asin((_squared_differences(r, s).sqrt() / 2).clamp_max(1.0))).square()


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    never = q == 0
    cross = p @ q.log().masked_fill(never, 0.0).mT
    value = torch.special.xlogy(p, p).sum(-1, keepdim=True) - cross
    return value.clamp_min(0.0).masked_fill(p @ never.to(p.dtype).mT > 0, torch.inf)


def _close_divergence(p: Tensor, q: Tensor) -> Tensor:
    # p ln(p/q) - p + q = p (exp(w) - 1 - w) >= 0 with w = ln(q/p): a sum without cancellation
    w = (q.log() - p.log()).masked_fill((p == 0) | (q == 0), 0.0)
    value = torch.where(p == 0, q, p * exponential_excess(w)).sum(-1)
    return value.masked_fill(((q == 0) & (p > 0)).any(-1), torch.inf)


def _roots(name: str, values: Tensor) -> Tensor:
    return probabilities(name, values).sqrt()


def _finite(name: str, values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{name} holds nan or inf; give finite predictions")
    return values.double()


def _same(mean: Tensor) -> Tensor:
    return mean


_KINDS = {
    "bhattacharyya": _Kind(_roots, _minus_log_affinity, _same, unbounded=True),
    "intensive": _Kind(_roots, _minus_log_affinity, lambda mean: 8 * mean, unbounded=True),
    "hellinger": _Kind(_roots, _one_minus_affinity, torch.sqrt),
    "geodesic": _Kind(_roots, _squared_angle, torch.sqrt),
    "kl": _Kind(probabilities, _divergence, _same, unbounded=True, symmetric=False, refine=_close_divergence),
    "euclidean": _Kind(_finite, _squared_differences, _same),
}
