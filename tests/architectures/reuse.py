"""Weights used more than once, or outside the module that holds them."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from architectures.case import N, case, labels


class _CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.again, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.again(torch.tanh(self.again(x)))))


@case()
def called_twice():
    return _CalledTwice(), (torch.randn(N, 4), labels(N))


class _UsedOutside(nn.Module):
    """The weight of a layer also enters by a plain function."""

    def __init__(self):
        super().__init__()
        self.encode, self.head = nn.Linear(4, 5), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x + functional.linear(torch.tanh(self.encode(x)), self.encode.weight.T))


@case()
def used_outside_its_module():
    return _UsedOutside(), (torch.randn(N, 4), labels(N))


class _OnlyFunctional(nn.Module):
    """A layer is a mere container: only its parameters are used, its forward never is."""

    def __init__(self):
        super().__init__()
        self.store, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(functional.linear(x, self.store.weight, self.store.bias)))


@case()
def used_only_by_function():
    return _OnlyFunctional(), (torch.randn(N, 4), labels(N))


class _SameInstanceTwice(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second, self.head = self.first, nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.sin(self.second(torch.tanh(self.first(x)))))


@case()
def one_module_two_names():
    return _SameInstanceTwice(), (torch.randn(N, 4), labels(N))


class _LoopOverTime(nn.Module):
    """A recurrent network written by hand: the same layers once per time step, so that calls vary with the data."""

    def __init__(self):
        super().__init__()
        self.inner, self.step, self.head = nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.zeros(len(x), 4, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = torch.tanh(self.inner(x[:, t]) + self.step(h))
        return self.head(h)


@case()
def loop_over_time():
    return _LoopOverTime(), (torch.randn(N, 3, 3), labels(N))


class _Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


@case()
def gradient_checkpointing():
    return _Checkpointed(), (torch.randn(N, 4), labels(N))
