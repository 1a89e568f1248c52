"""One small regression for each likelihood that is not categorical."""

import torch
from torch import nn

from architectures.case import N, case, labels


def _regression(outputs):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


@case("gaussian")
def gaussian():
    return _regression(2), (torch.randn(N, 4), torch.randn(N, 2))


@case("gaussian", 0.25)
def gaussian_variance():
    return _regression(2), (torch.randn(N, 4), torch.randn(N, 2))


@case("heteroscedastic")
def heteroscedastic():
    return _regression(2), (torch.randn(N, 4), torch.randn(N, 1))


@case("bernoulli")
def bernoulli():
    return _regression(3), (torch.randn(N, 4), labels(N, 3, classes=2).to(torch.float64))


@case("poisson")
def poisson():
    return _regression(2), (torch.randn(N, 4), torch.poisson(torch.full((N, 2), 2.0)))


class _PerToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)).cumsum(1))


@case("gaussian")
def gaussian_sequence():
    return _PerToken(), (torch.randn(N, 3, 3), torch.randn(N, 3, 2))
