"""What the command line's tests name by import strings."""

import torch
from torch import nn

number = 3


def model():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def data():
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return [(x[:30], y[:30]), (x[30:60], y[30:60])], (x[60:], y[60:])


def train_alone():
    return data()[0]


def validation():
    return data()[1]


def broken():
    raise RuntimeError("no weights here")


def not_a_model():
    return {"weights": 1}
