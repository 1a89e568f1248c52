"""One of C classes per position: softmax outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.likelihoods import envelopes, factors
from dynaxx.likelihoods.base import Likelihood, keeps_precision, require_dense, working
from dynaxx.likelihoods.secular import scaled_top_eigenpair
from dynaxx.likelihoods.simplex import SimplexPoint, divergence, product

_FACTORS: dict[str, Callable[[SimplexPoint, Tensor], Tensor]] = {
    "symmetric": factors.symmetric,
    "householder": factors.householder,
    "cholesky": factors.cholesky,
}
DENSE_LIMIT = 2048


class Categorical(Likelihood):
    """p(y = c|z) = softmax(z)_c, with I(z) = diag(p) - p p^T.

    z are logits of shape (..., C), C >= 2, and y int64 class indices of shape (...). A logit of -inf is a class that
    cannot happen. All is computed from logits and keeps relative accuracy to margins of hundreds.

    >>> likelihood, z = Categorical(), torch.tensor([0.0, 1.0, -torch.inf], dtype=torch.float64)
    >>> likelihood.metric(z).round(decimals=4)
    tensor([[ 0.1966, -0.1966, -0.0000],
            [-0.1966,  0.1966, -0.0000],
            [-0.0000, -0.0000,  0.0000]], dtype=torch.float64)
    >>> columns = likelihood.columns(z, kind="cholesky")
    >>> columns.shape, bool(torch.allclose(columns @ columns.mT, likelihood.metric(z)))
    (torch.Size([3, 2]), True)
    """

    @keeps_precision
    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """log p_y, shape (...), for y of shape (...)."""
        y = self._aligned(z, y)
        log_p = SimplexPoint(z).log_p
        return log_p.expand(*y.shape, z.shape[-1]).gather(-1, y.unsqueeze(-1)).squeeze(-1)

    @keeps_precision
    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """e_y - p, shape (..., C). The entry of y is the sum of the other probabilities, never 1 - p_y."""
        y = self._aligned(z, y)
        p = SimplexPoint(z).p.expand(*y.shape, z.shape[-1])
        others = p.scatter(-1, y.unsqueeze(-1), 0.0)
        total = others.sum(-1, keepdim=True)
        return others.neg_().scatter_(-1, y.unsqueeze(-1), total)

    def uniform_shape(self, z: Tensor) -> tuple[int, ...]:
        """One number per position: (...)."""
        return tuple(z.shape[:-1])

    def quantile(self, z: Tensor, u: Tensor) -> Tensor:
        """Smallest class y with P(Y <= y) >= u, in float64, for u of shape (...) or (K, ...); int64 of the shape of u.

        Scaled by the last cumulative sum rather than by one: no u < 1 runs past the end or hits a class of
        probability zero.
        """
        self.check_shape(z)
        if u.dim() < z.dim() - 1 or tuple(u.shape[u.dim() - z.dim() + 1 :]) != tuple(z.shape[:-1]):
            raise InputError(f"u has shape {tuple(u.shape)}; one number per position is {tuple(z.shape[:-1])}")
        batch = z.shape[:-1]
        cumulative = SimplexPoint(z.double()).p.cumsum(-1)
        # searchsorted wants the draws of a position on its last axis
        draws = u.double().reshape(-1, *batch).movedim(0, -1) * cumulative[..., -1:]
        classes = torch.searchsorted(cumulative.contiguous(), draws.contiguous())
        return classes.clamp_max(z.shape[-1] - 1).movedim(-1, 0).reshape(u.shape)

    @keeps_precision
    def metric(self, z: Tensor) -> Tensor:
        """diag(p) - p p^T, shape (..., C, C)."""
        require_dense(z, "use apply(z, v) or factor(z, xi), which take O(C)")
        point = SimplexPoint(z)
        dense = -point.p.unsqueeze(-1) * point.p.unsqueeze(-2)
        return torch.diagonal_scatter(dense, point.p * point.complement, dim1=-2, dim2=-1)

    @keeps_precision
    def apply(self, z: Tensor, v: Tensor) -> Tensor:
        """p (v - p.v), shape (..., C), in O(C)."""
        return SimplexPoint(z).apply(v)

    def product_at(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """As a function of v; holds p, (..., C)."""
        self.check_shape(z)
        point = SimplexPoint(working(z))
        p, top = point.p, point.top
        return lambda v: product(p, top, v).to(z.dtype)

    @keeps_precision
    def trace(self, z: Tensor) -> Tensor:
        """1 - |p|^2 = sum p (1 - p), shape (...)."""
        point = SimplexPoint(z)
        return (point.p * point.complement).sum(-1)

    @keeps_precision
    def spectrum_bounds(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """max(p_2, n/(n-1) p_t (1-p_t)) <= lambda <= min(p_t, 1 - |p|^2, 2 p_t (1-p_t)), n classes with finite logits.

        The ratio of the two is below 2, and 1 for n = 2. Derived here from Gershgorin and a Rayleigh quotient.
        """
        point = SimplexPoint(z)
        variance = point.top_probability * point.tail
        count = point.support_size.to(z.dtype)
        second = (point.within_tail * point.tail).amax(-1, keepdim=True)
        lower = torch.maximum(second, variance * count / (count - 1).clamp_min(1.0))
        trace = (point.p * point.complement).sum(-1, keepdim=True)
        upper = torch.minimum(torch.minimum(point.top_probability, trace), 2 * variance)
        return lower.squeeze(-1), upper.squeeze(-1)

    @keeps_precision
    def top_eigenpair(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Largest eigenvalue (...) and unit eigenvector (..., C), exactly, in at most 12 passes over C (secular.py)."""
        point = SimplexPoint(z)
        scaled, vector = scaled_top_eigenpair(point)
        return (point.tail * scaled).squeeze(-1), vector

    def noise_size(self, z: Tensor, kind: str = "symmetric") -> int:
        """C for "symmetric", C - 1 for "householder", "cholesky" and "eigen"."""
        return z.shape[-1] - (self._kind(kind) != "symmetric")

    @keeps_precision
    def factor(self, z: Tensor, xi: Tensor, kind: str = "symmetric") -> Tensor:
        """L xi, shape (..., C); factors.py says what the kinds are and which to take.

        Cost: O(C), with a sort for "cholesky"; "eigen" decomposes a C x C matrix per position and takes C <= 2048.
        """
        self._require_noise(xi, self.noise_size(z, kind), f"kind={kind!r}")
        if kind == "eigen":
            return factors.eigen(self._dense_point(z, "kind"), xi)
        return _FACTORS[kind](SimplexPoint(z), xi)

    def lower_noise_size(self, z: Tensor, rank: int = 1, method: str = "eigen") -> int:
        """min(rank, C - 1): with C - 1 columns the lower envelope is I itself."""
        self._lower_method(method)
        return self._rank(rank, z.shape[-1] - 1)

    @keeps_precision
    def lower_factor(self, z: Tensor, xi: Tensor, rank: int = 1, method: str = "eigen") -> Tensor:
        """B xi with B B^T <= I(z) for every z (envelopes.py), shape (..., C)."""
        size = self.lower_noise_size(z, rank, method)
        self._require_noise(xi, size, f"the lower envelope of rank {size}")
        if method == "cholesky":
            return factors.cholesky(SimplexPoint(z), xi)
        if method == "nystrom":
            columns = envelopes.lower_nystrom(SimplexPoint(z), size)
        else:
            columns = envelopes.lower_eigen(SimplexPoint(z) if size == 1 else self._dense_point(z, "method"), size)
        return (columns @ xi.to(columns.dtype).unsqueeze(-1)).squeeze(-1)

    def upper_noise_size(self, z: Tensor, method: str = "diagonal", rank: int = 8) -> int:
        """C, and min(rank, C - 1) more for "tail"."""
        extra = self._rank(rank, z.shape[-1] - 1) if self._upper_method(method) == "tail" else 0
        return z.shape[-1] + extra

    @keeps_precision
    def upper_factor(self, z: Tensor, xi: Tensor, method: str = "diagonal", rank: int = 8) -> Tensor:
        """B xi with B B^T >= I(z) for every z (envelopes.py), shape (..., C)."""
        size = self.upper_noise_size(z, method, rank)
        self._require_noise(xi, size, f"the upper envelope {method!r}")
        point = SimplexPoint(z)
        if method == "tail":
            return envelopes.upper_tail(point, xi, size - z.shape[-1])
        return envelopes.upper_diagonal(point, xi) if method == "diagonal" else envelopes.upper_laplacian(point, xi)

    @keeps_precision
    def divergence(self, z0: Tensor, z1: Tensor) -> Tensor:
        """sum p0 log(p0 / p1) in nats, shape (...), as a sum of nonnegative terms; inf where p1 = 0 < p0."""
        self.check_shape(z1)
        return divergence(z0, z1)

    @keeps_precision
    def entropy(self, z: Tensor) -> Tensor:
        """-sum p log p in nats, shape (...)."""
        point = SimplexPoint(z)
        return -(point.p * point.log_p.masked_fill(point.p == 0, 0.0)).sum(-1)

    def check_shape(self, z: Tensor) -> None:
        """z is floating point of shape (..., C) with C >= 2."""
        self._require_floating(z)
        if z.shape[-1] < 2:
            raise InputError(
                f"Categorical(): z has shape {tuple(z.shape)}, {z.shape[-1]} logit per position, where a softmax needs "
                f"two classes or more; for one yes-or-no output use the bernoulli likelihood"
            )

    _outputs_rule = "logits must be finite or -inf (a masked class), at least one of them finite"

    def _bad_outputs(self, z: Tensor) -> Tensor:
        # the largest is NaN where any is, and not finite where all are -inf or one is +inf
        return ~torch.isfinite(z.amax(-1))

    def _labels_rule(self, z: Tensor) -> str:
        return (
            f"the model has {z.shape[-1]} outputs, so classes are 0 to {z.shape[-1] - 1}; mask positions with "
            f"ignore_index (-100) before they get here"
        )

    def _bad_labels(self, z: Tensor, y: Tensor) -> Tensor:
        return (y < 0) | (y >= z.shape[-1])

    def _aligned(self, z: Tensor, y: Tensor) -> Tensor:
        batch = tuple(z.shape[:-1])
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise InputError(
                f"Categorical(): y has dtype {y.dtype}; class indices are int64 of shape {batch}: use y.long() for "
                f"indices, y.argmax(-1) for one-hot rows, or the bernoulli likelihood for several labels at once"
            )
        if tuple(y.shape[max(y.dim() - len(batch), 0) :]) != batch:
            raise InputError(
                f"Categorical(): y has shape {tuple(y.shape)} and z {tuple(z.shape)}; class indices must have shape "
                f"{batch}, one per position: use y.argmax(-1) for one-hot rows, y.squeeze(-1) for a column"
            )
        return y.long()

    @staticmethod
    def _dense_point(z: Tensor, option: str) -> SimplexPoint:
        outputs = z.shape[-1]
        if outputs > DENSE_LIMIT:
            raise InputError(
                f"{option}='eigen' would decompose a {outputs} x {outputs} matrix per position (limit {DENSE_LIMIT}); "
                f"use {option}='cholesky', which is closed form and O(C)"
            )
        require_dense(z, f"take fewer positions at a time, or {option}='cholesky', which is O(C)")
        return SimplexPoint(z.double())
