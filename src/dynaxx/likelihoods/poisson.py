"""Counts: log-rate outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynaxx.likelihoods.base import keeps_precision, working_dtype
from dynaxx.likelihoods.diagonal import DiagonalLikelihood
from dynaxx.likelihoods.simplex import exponential_excess

# H = 1/2 log(2 pi e r) - sum_i a_i r^-i for rate r (Evans & Boersma 1988); from r = 64 its error is below 2e-12
_ENTROPY_SERIES = (1 / 12, 1 / 24, 19 / 360, 9 / 80, 863 / 2520, 1375 / 1008)
_SERIES_FROM = 64.0
_SERIES_TERMS = 200  # P(Y > 200) < 1e-38 at rate 64
# beyond, cephes' gammaincc (torch's and scipy's) errs in the upper tail: by 1e-5 of it at 1e6, all of it at 1e9
_BISECT_TO = 1e5


class Poisson(DiagonalLikelihood):
    """y_c ~ Poisson(exp(z_c)), independent over outputs, with I(z) = diag(exp z).

    z are log rates of shape (..., C), y counts of the same shape (float or integer). A log rate of -inf is a count
    that stays 0.

    >>> likelihood, z = Poisson(), torch.tensor([0.0, math.log(2.0)], dtype=torch.float64)
    >>> likelihood.information(z), likelihood.log_prob(z, torch.tensor([0, 0]))
    (tensor([1., 2.], dtype=torch.float64), tensor(-3., dtype=torch.float64))
    """

    @keeps_precision
    def information(self, z: Tensor) -> Tensor:
        """The rate exp z, shape (..., C)."""
        return z.exp()

    @keeps_precision
    def root_information(self, z: Tensor) -> Tensor:
        """exp(z / 2), shape (..., C)."""
        return (0.5 * z).exp()

    @keeps_precision
    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """sum_c y z - exp z - log y!, shape (...)."""
        y = self._aligned(z, y)
        return ((y * z).masked_fill(y == 0, 0.0) - z.exp() - torch.lgamma(y + 1)).sum(-1)

    @keeps_precision
    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """y - exp z, shape (..., C)."""
        return self._aligned(z, y) - z.exp()

    def quantile(self, z: Tensor, u: Tensor) -> Tensor:
        """Smallest count k with P(Y <= k) >= u, for u of shape (..., C) in [2^-54, 1 - 2^-53].

        To a rate of 1e5 by bisection of P(Y <= k) = Q(k + 1, rate), the regularised gamma function, over integers in
        float64 (about log2(24 sqrt(rate) + 60) evaluations); above, by expansion of the inverse (``gamma_inverse``).
        """
        self.check_shape(z)
        self._require_uniforms(z, u)
        rate, u = torch.broadcast_tensors(z.double().exp(), u.double())
        near = rate.clamp_max(_BISECT_TO)
        # Bernstein: less than 1e-17 of the mass lies beyond, on either side
        reach = 12 * near.sqrt() + 30
        low, high = (near - reach).floor().clamp_min(-1.0), (near + reach).ceil()
        for _ in range(math.ceil(math.log2(float((high - low).amax()))) + 1 if near.numel() else 0):
            middle = ((low + high) / 2).floor()
            # the lower end is a count whose probability is too small, and -1 always is
            short = (middle < 0) | (torch.special.gammaincc(middle.clamp_min(0.0) + 1, near) < u)
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return torch.where(rate > _BISECT_TO, gamma_inverse(rate, u).floor(), high).to(working_dtype(z))

    @keeps_precision
    def divergence(self, z0: Tensor, z1: Tensor) -> Tensor:
        """sum_c r0 (exp(w) - 1 - w) in nats, w = z1 - z0, r0 = exp z0, shape (...)."""
        self.check_shape(z1)
        never, rate = torch.isneginf(z0), z0.exp()
        w = (z1 - z0).masked_fill(never, 0.0)
        near = rate * exponential_excess(w.clamp(-1.0, 1.0))
        far = z1.exp() - (rate * (1 + w)).masked_fill(never, 0.0)
        return torch.where((w.abs() < 1) & ~never, near, far).sum(-1)

    @keeps_precision
    def entropy(self, z: Tensor) -> Tensor:
        """Entropy in nats, summed over outputs, shape (...): a series in the counts, an asymptotic one from rate 64."""
        rate = z.exp()
        small = rate.clamp_max(_SERIES_FROM)
        direct = torch.zeros_like(z)
        for count in range(_SERIES_TERMS):
            log_p = (count * small.log() if count else 0.0) - small - math.lgamma(count + 1)
            p = log_p.exp()
            direct = direct - (p * log_p).masked_fill(p == 0, 0.0)
        large = rate.clamp_min(_SERIES_FROM)
        asymptotic = 0.5 * (math.log(2 * math.pi * math.e) + large.log())
        for power, coefficient in enumerate(_ENTROPY_SERIES, start=1):
            asymptotic = asymptotic - coefficient * large**-power
        return torch.where(rate < _SERIES_FROM, direct, asymptotic).sum(-1)

    _outputs_rule = "log rates must be finite or -inf"
    _labels_text = "labels are counts 0, 1, 2, ..."

    def _bad_outputs(self, z: Tensor) -> Tensor:
        return torch.isnan(z) | torch.isposinf(z)

    def _bad_labels(self, z: Tensor, y: Tensor) -> Tensor:
        return ~((y >= 0) & (y == y.floor()) & torch.isfinite(y))


def gamma_inverse(rate: Tensor, u: Tensor) -> Tensor:
    """The x with Q(x, rate) = u for large rates, in powers of sqrt(rate); its error is 5 rate^(-3/2) at 5 deviations.

    Source: Giles 2016 (Algorithm 955), the normal expansion with three terms; the error measured in 30 digits.
    """
    w, root = torch.special.ndtri(u), rate.sqrt()
    first = 1 / 3 + w.square() / 6
    second = -(w / 36 + w**3 / 72) / root
    third = (-8 / 405 + 7 * w.square() / 810 + w**4 / 270) / rate
    return rate + root * w + first + second + third
