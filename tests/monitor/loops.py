"""A small training with everything a monitor could disturb: dropout, BatchNorm, momentum, three random states."""

import random

import numpy
import torch
from torch import nn
from torch.nn import functional

STEPS = 12


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def data(count=24, seed=1):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 3


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
}


def train(net, optimizer, monitor=None, steps=STEPS, wrapped=None):
    """A plain loop with dropout; draws from torch's, numpy's and Python's random numbers between steps."""
    x, y = data()
    torch.manual_seed(7)
    random.seed(7)
    numpy.random.seed(7)  # noqa: NPY002  the global state is what is being watched
    drawn = []
    for _ in range(steps):
        rows = torch.randperm(len(x))[:12]
        loss = functional.cross_entropy((wrapped or net)(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        if monitor is not None:
            monitor.observe(loss=loss)
        optimizer.step()
        drawn.append((float(torch.rand(1)), random.random(), numpy.random.rand()))  # noqa: NPY002
    return drawn


def everything(net, optimizer):
    """Weights, buffers, gradients, optimizer state, as bytes."""
    out = {name: value.numpy().tobytes() for name, value in net.state_dict().items()}
    out |= {f"{name}.grad": p.grad.numpy().tobytes() for name, p in net.named_parameters()}
    for i, state in optimizer.state_dict()["state"].items():
        out |= {f"{i}.{k}": v.numpy().tobytes() for k, v in state.items() if isinstance(v, torch.Tensor)}
    return out
