"""Real labels with normal noise: of known variance, or with a variance the network gives as well."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.likelihoods.base import keeps_precision, working, working_dtype
from dynaxx.likelihoods.diagonal import DiagonalLikelihood
from dynaxx.likelihoods.simplex import exponential_excess

_LOG_TWO_PI = math.log(2 * math.pi)
_OUTPUTS_RULE = "outputs must be finite"
_LABELS_RULE = "labels must be finite; drop or impute missing ones before they get here"


class Gaussian(DiagonalLikelihood):
    """y ~ N(z, variance), independent over outputs, with I(z) = diag(1 / variance).

    z are means of shape (..., C), in the labels' units; y has the same shape, or (...) for C = 1.

    The negative log-likelihood is (y - z)^2 / (2 variance), so torch's MSELoss(reduction="sum"), which lacks the 2,
    corresponds to variance=0.5.

    Args:
        variance: of the labels, in squared units of y: a number, or a tensor (C,) for one per output.

    Raises:
        InputError: variance is not positive and finite, or has more than one axis.

    >>> likelihood, z = Gaussian(variance=4.0), torch.tensor([[1.0, 2.0]])
    >>> likelihood.metric(z)
    tensor([[[0.2500, 0.0000],
             [0.0000, 0.2500]]])
    >>> likelihood.divergence(z, z + 2)
    tensor([1.])
    """

    def __init__(self, variance: float | Tensor = 1.0) -> None:
        value = torch.as_tensor(variance, dtype=torch.float64).detach()
        if value.dim() > 1 or not bool((torch.isfinite(value) & (value > 0)).all()):
            raise InputError(f"variance={variance!r} must be positive and finite, a number or a tensor of shape (C,)")
        self.variance = value

    def __repr__(self) -> str:
        return f"Gaussian(variance={self.variance.tolist()})"

    @keeps_precision
    def information(self, z: Tensor) -> Tensor:
        """1 / variance, shape (..., C)."""
        return self._variance(z).reciprocal().expand_as(z)

    @keeps_precision
    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """-1/2 sum_c log(2 pi variance) + (y - z)^2 / variance, shape (...)."""
        variance = self._variance(z)
        return -0.5 * ((self._aligned(z, y) - z).square() / variance + variance.log() + _LOG_TWO_PI).sum(-1)

    @keeps_precision
    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """(y - z) / variance, shape (..., C)."""
        return (self._aligned(z, y) - z) / self._variance(z)

    def quantile(self, z: Tensor, u: Tensor) -> Tensor:
        """z + sqrt(variance) Phi^{-1}(u), for u of shape (..., C)."""
        self.check_shape(z)
        self._require_uniforms(z, u)
        deviation = self._variance(z.double()).sqrt()
        return (z.double() + deviation * torch.special.ndtri(u.double())).to(working_dtype(z))

    @keeps_precision
    def divergence(self, z0: Tensor, z1: Tensor) -> Tensor:
        """sum_c (z0 - z1)^2 / (2 variance) in nats, shape (...)."""
        self.check_shape(z1)
        return 0.5 * ((z0 - z1).square() / self._variance(z0)).sum(-1)

    @keeps_precision
    def entropy(self, z: Tensor) -> Tensor:
        """Differential entropy 1/2 sum_c log(2 pi e variance) in nats, shape (...): the same for every z."""
        return 0.5 * (self._variance(z).log() + _LOG_TWO_PI + 1).expand_as(z).sum(-1)

    def check_shape(self, z: Tensor) -> None:
        """z is floating point of shape (..., C), C that of the variance where it has one."""
        super().check_shape(z)
        if self.variance.dim() == 1 and self.variance.shape[0] not in (1, z.shape[-1]):
            raise InputError(
                f"{self}: {self.variance.shape[0]} variances for outputs of shape {tuple(z.shape)}; give one, or "
                f"one for each of the {z.shape[-1]} outputs"
            )

    def _variance(self, z: Tensor) -> Tensor:
        return self.variance.to(device=z.device, dtype=z.dtype)

    _outputs_rule = _OUTPUTS_RULE
    _labels_text = _LABELS_RULE

    def _bad_outputs(self, z: Tensor) -> Tensor:
        return ~torch.isfinite(z)

    def _bad_labels(self, z: Tensor, y: Tensor) -> Tensor:
        return ~torch.isfinite(y)


class HeteroscedasticGaussian(DiagonalLikelihood):
    """y ~ N(mean, exp(s)) with both from the network: z = (mean_1..mean_D, s_1..s_D), s = log variance.

    I(z) = diag(exp(-s), 1/2). z has shape (..., 2D) and y (..., D), or (...) for D = 1.

    >>> likelihood, z = HeteroscedasticGaussian(), torch.tensor([3.0, 0.0])
    >>> likelihood.information(z), likelihood.sample(z).shape
    (tensor([1.0000, 0.5000]), torch.Size([1]))
    """

    @keeps_precision
    def information(self, z: Tensor) -> Tensor:
        """exp(-s) for the means, 1/2 for the log variances, shape (..., 2D)."""
        _, log_variance = z.chunk(2, -1)
        return torch.cat([(-log_variance).exp(), torch.full_like(log_variance, 0.5)], -1)

    def units(self, z: Tensor) -> int:
        """D, half the number of outputs."""
        return z.shape[-1] // 2

    def output_size(self, units: int) -> int:
        """2D outputs for D labels."""
        return 2 * units

    @keeps_precision
    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """-1/2 sum_d log(2 pi) + s + (y - mean)^2 exp(-s), shape (...)."""
        mean, log_variance = z.chunk(2, -1)
        return -0.5 * ((self._aligned(z, y) - mean).square() * (-log_variance).exp() + log_variance + _LOG_TWO_PI).sum(
            -1
        )

    @keeps_precision
    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """((y - mean) exp(-s), ((y - mean)^2 exp(-s) - 1) / 2), shape (..., 2D)."""
        mean, log_variance = z.chunk(2, -1)
        residual, precision = self._aligned(z, y) - mean, (-log_variance).exp()
        return torch.cat([residual * precision, 0.5 * (residual.square() * precision - 1)], -1)

    def quantile(self, z: Tensor, u: Tensor) -> Tensor:
        """mean + exp(s/2) Phi^{-1}(u), for u of shape (..., D)."""
        self.check_shape(z)
        self._require_uniforms(z, u)
        mean, log_variance = z.double().chunk(2, -1)
        return (mean + (0.5 * log_variance).exp() * torch.special.ndtri(u.double())).to(working_dtype(z))

    @keeps_precision
    def divergence(self, z0: Tensor, z1: Tensor) -> Tensor:
        """1/2 sum_d exp(w) - 1 - w + (mean0 - mean1)^2 exp(-s1) in nats, w = s0 - s1, shape (...)."""
        self.check_shape(z1)
        (mean0, s0), (mean1, s1) = z0.chunk(2, -1), working(z1).chunk(2, -1)
        return 0.5 * (exponential_excess(s0 - s1) + (mean0 - mean1).square() * (-s1).exp()).sum(-1)

    @keeps_precision
    def entropy(self, z: Tensor) -> Tensor:
        """Differential entropy 1/2 sum_d log(2 pi e) + s in nats, shape (...)."""
        _, log_variance = z.chunk(2, -1)
        return 0.5 * (log_variance + _LOG_TWO_PI + 1).sum(-1)

    def check_shape(self, z: Tensor) -> None:
        """z is floating point of shape (..., 2D)."""
        super().check_shape(z)
        if z.shape[-1] % 2:
            raise InputError(
                f"{self}: z has shape {tuple(z.shape)}, an odd number of outputs; give D means, then D log "
                f"variances, 2D in all, or use Gaussian(variance=...) for means alone"
            )

    _outputs_rule = _OUTPUTS_RULE
    _labels_text = _LABELS_RULE

    def _bad_outputs(self, z: Tensor) -> Tensor:
        return ~torch.isfinite(z)

    def _bad_labels(self, z: Tensor, y: Tensor) -> Tensor:
        return ~torch.isfinite(y)
