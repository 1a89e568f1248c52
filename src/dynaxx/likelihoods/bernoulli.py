"""Independent yes-or-no labels: sigmoid outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dynaxx.likelihoods.base import keeps_precision, working, working_dtype
from dynaxx.likelihoods.diagonal import DiagonalLikelihood
from dynaxx.likelihoods.simplex import divergence


class Bernoulli(DiagonalLikelihood):
    """p(y_c = 1|z) = sigmoid(z_c) for each of C labels, with I(z) = diag(p (1 - p)), p (1 - p) = sigmoid(z)
    sigmoid(-z).

    z are logits of shape (..., C), y zeros and ones of the same shape. Logits of -inf and inf are certain labels.

    >>> likelihood, z = Bernoulli(), torch.tensor([0.0, -2.0], dtype=torch.float64)
    >>> likelihood.information(z)
    tensor([0.2500, 0.1050], dtype=torch.float64)
    >>> likelihood.log_prob(z, torch.tensor([1, 0]))
    tensor(-0.8201, dtype=torch.float64)
    """

    @keeps_precision
    def information(self, z: Tensor) -> Tensor:
        """p (1 - p), shape (..., C)."""
        return torch.sigmoid(z) * torch.sigmoid(-z)

    @keeps_precision
    def root_information(self, z: Tensor) -> Tensor:
        """sqrt(p (1 - p)) = exp((log p + log(1 - p)) / 2)."""
        return (0.5 * (logsigmoid(z) + logsigmoid(-z))).exp()

    @keeps_precision
    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """sum_c y log p + (1 - y) log(1 - p), shape (...)."""
        y = self._aligned(z, y)
        # a certain label has one infinite logarithm, which counts only where it contradicts y
        yes = (y * logsigmoid(z)).masked_fill(y == 0, 0.0)
        no = ((1 - y) * logsigmoid(-z)).masked_fill(y == 1, 0.0)
        return (yes + no).sum(-1)

    @keeps_precision
    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """y - p, written y (1 - p) - (1 - y) p so that nothing cancels, shape (..., C)."""
        y = self._aligned(z, y)
        return y * torch.sigmoid(-z) - (1 - y) * torch.sigmoid(z)

    def quantile(self, z: Tensor, u: Tensor) -> Tensor:
        """1 where u > P(Y = 0), else 0, for u of shape (..., C)."""
        self.check_shape(z)
        self._require_uniforms(z, u)
        return (u.double() > torch.sigmoid(-z.double())).to(working_dtype(z))

    @keeps_precision
    def divergence(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Sum over labels of the divergence of two-class softmaxes, shape (...), without cancellation."""
        self.check_shape(z1)
        # logits (min(-z, 0), min(z, 0)) differ by z and stay below inf
        pair = lambda z: torch.stack([(-z).clamp_max(0.0), z.clamp_max(0.0)], -1)  # noqa: E731
        return divergence(pair(z0), pair(working(z1))).sum(-1)

    @keeps_precision
    def entropy(self, z: Tensor) -> Tensor:
        """-sum_c p log p + (1 - p) log(1 - p) in nats, shape (...)."""
        terms = [torch.sigmoid(s).mul(logsigmoid(s)).masked_fill(torch.isneginf(s), 0.0) for s in (z, -z)]
        return -(terms[0] + terms[1]).sum(-1)

    _outputs_rule = "logits must be numbers, not NaN"
    _labels_text = "labels are 0 or 1, one per output; mask ignored positions (-100) before they get here"

    def _bad_outputs(self, z: Tensor) -> Tensor:
        return torch.isnan(z)

    def _bad_labels(self, z: Tensor, y: Tensor) -> Tensor:
        return (y != 0) & (y != 1)
