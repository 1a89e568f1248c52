"""Inputs that break naive formulas, and references that share no code with the library."""

import itertools

import mpmath
import torch
from torch import Tensor

from dynaxx.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Likelihood, Poisson

INF = float("inf")
DIAGONAL: list[Likelihood] = [
    Bernoulli(),
    Gaussian(variance=0.7),
    Gaussian(variance=torch.tensor([0.5, 1.0, 2.0, 4.0])),
    HeteroscedasticGaussian(),
    Poisson(),
]
EVERY: list[Likelihood] = [Categorical(), *DIAGONAL]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def adversarial(outputs: int) -> Tensor:
    """Uniform, ties, near ties, staircases and one-hot to margin 700, masked classes; every cyclic order of each."""
    k = torch.arange(outputs, dtype=torch.float64)
    rows = [torch.zeros(outputs, dtype=torch.float64)]
    for margin in (1e-14, 1e-8, 1e-4, 0.5, 3.0, 20.0, 40.0, 80.0, 300.0, 700.0):
        rows += [-margin * (k > 0), -margin * (k > 1), -(margin * k).clamp_max(700.0), -margin * (k == outputs - 1)]
        rows += [-margin * (k > 0) - 1e-7 * k, -1e-9 * (k > 0) - margin * (k > 1), -margin * (k > 0) - 0.1 * k**2]
        rows += [torch.where(k == 1, -INF, -margin * (k > 0)), torch.where(k > 1, -INF, -margin * (k > 0))]
    rows.append(torch.where(k > 0, -INF, k))
    return torch.cat([torch.stack(rows).roll(shift, -1) for shift in range(outputs)])


def many(outputs: int, count: int) -> Tensor:
    """``adversarial`` filled up to ``count`` positions with random logits of every scale from 1e-6 to 100."""
    hard = adversarial(outputs)
    rest = count - len(hard)
    return torch.cat([hard, draw(rest, outputs, seed=1) * torch.logspace(-6, 2, rest, dtype=torch.float64)[:, None]])


def exact_probabilities(logits: list[float], digits: int = 700) -> list[mpmath.mpf]:
    with mpmath.workdps(digits):
        weights = [mpmath.exp(mpmath.mpf(x)) if x > -INF else mpmath.mpf(0) for x in logits]
        total = mpmath.fsum(weights)
        return [w / total for w in weights]


def exact_metric(logits: list[float], scale: bool = False) -> Tensor:
    """diag(p) - p p^T in 700 digits, rounded once; divided by its trace if ``scale``."""
    with mpmath.workdps(700):
        p = exact_probabilities(logits)
        rows = [[(a if i == j else 0) - a * b for j, b in enumerate(p)] for i, a in enumerate(p)]
        trace = mpmath.fsum(rows[i][i] for i in range(len(p))) if scale else mpmath.mpf(1)
        return torch.tensor([[float(x / trace) for x in row] for row in rows], dtype=torch.float64)


def sign_patterns(size: int) -> Tensor:
    """All 2^size vectors of signs."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=size)), dtype=torch.float64)


def outer(columns: Tensor) -> Tensor:
    return columns @ columns.mT
