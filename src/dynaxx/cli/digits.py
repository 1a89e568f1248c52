"""The demo's data and models: scikit-learn's 8 x 8 handwritten digits, a perceptron and a small convolutional net."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dynaxx.errors import InputError

TRAIN, VALIDATION = 1000, 400  # and the other 397 of 1797 are the test set


@dataclass(frozen=True)
class Digits:
    """Three parts of the digits: a loader that shuffles with its own generator, and two batches."""

    train: DataLoader[tuple[Tensor, ...]]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits(seed: int = 0, batch_size: int = 50) -> Digits:
    """1000 digits to train on, 400 to validate, 397 to test, drawn by ``seed``; pixels in [0, 1], shape (N, 1, 8, 8).

    Raises:
        InputError: scikit-learn, which carries the data, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the demo's data comes with scikit-learn, which is not installed; install dynaxx[demo]"
        ) from error
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    images = torch.as_tensor(data.images, dtype=torch.float32)[order].unsqueeze(1) / 16
    labels = torch.as_tensor(data.target, dtype=torch.int64)[order]
    parts = [
        (images[cut], labels[cut])
        for cut in (slice(TRAIN), slice(TRAIN, TRAIN + VALIDATION), slice(TRAIN + VALIDATION, None))
    ]
    generator = torch.Generator().manual_seed(seed)
    return Digits(
        DataLoader(TensorDataset(*parts[0]), batch_size=batch_size, shuffle=True, generator=generator),
        parts[1],
        parts[2],
    )


def mlp() -> nn.Module:
    """64-64-32-10, 6570 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    """Two convolutions with pooling and two linear layers, 3658 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
