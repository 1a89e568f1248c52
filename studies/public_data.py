"""The public image sets and tables the sloppiness studies train on, and Gaussian noise in their place."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from runs import require_hash
from torch import Tensor
from torch.nn import functional

FILES = {
    "cifar10": (
        "cifar10/cifar10_lossless_4k_train_1k_test.npz",
        "ebd865e0e9bef401b7b5523a35f80e436500ca6c22c81c536dcc7ee2f7925afa",
    ),
    "cifar10_jpeg": (
        "cifar10/cifar10_jpeg_10k_train_2k_test.npz",
        "3fdea285b5c137118c2c5fe05606673250e44546a2f182d7171c968ba62c3efb",
    ),
    "mnist": (
        "mnist/mnist_10k_train_10k_test.npz",
        "a8000c82b6acd137758c38b0c77d4fbb7ee93650e6ea67f5f588dedd4ff11e80",
    ),
    "fashion_mnist": (
        "fashion_mnist/fashion_mnist_10k_train_10k_test.npz",
        "0568f0084bf5fba1dabcaac011758bfbec2f611c0c1701020769f9ab7451223c",
    ),
    "boston": (
        "boston/BostonHousing.csv",
        "ab16ba38fbbbbcc69fe930aab1293104f1442c8279c130d9eba03dd864bef675",
    ),
    "california_housing": (
        "california_housing/housing.csv",
        "8a3727f4cf54ac1a327f69b1d5b4db54c5834ea81c6e4efc0d163300022a685e",
    ),
}
TARGET = {"boston": "medv", "california_housing": "median_house_value"}
LEFT_OUT = {"california_housing": ("ocean_proximity",)}  # words; rows with an empty cell are left out too


@dataclass(frozen=True)
class Split:
    """Inputs and labels (or targets (N, 1)), to train on and to judge by."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def double(self) -> Split:
        """The same with inputs, and targets that are numbers, in float64."""
        return Split(*(t.double() if t.is_floating_point() else t for t in (self.x, self.y, self.x_test, self.y_test)))


def images(data: Path, name: str, train: int, test: int, pool: int = 1) -> Split:
    """The first so many images (N, C, H, W) of a set, in [0, 1]; colours are standardised by the training images.

    Args:
        pool: side of the squares whose mean takes the place of their pixels.

    Raises:
        Skipped: the file is not there.
    """
    with np.load(_file(data, name), allow_pickle=False) as held:
        x, y = (torch.from_numpy(held[key]) for key in ("x_train", "y_train"))
        x_test, y_test = (torch.from_numpy(held[key]) for key in ("x_test", "y_test"))
    if len(x) < train or len(x_test) < test:
        raise ValueError(f"{name} has {len(x)} and {len(x_test)} images; {train} and {test} were asked for")
    inputs = [_pixels(part, pool) for part in (x[:train], x_test[:test])]
    if inputs[0].shape[1] == 3:
        mean, spread = inputs[0].mean((0, 2, 3), keepdim=True), inputs[0].std((0, 2, 3), keepdim=True)
        inputs = [(part - mean) / spread for part in inputs]
    return Split(inputs[0], y[:train].long(), inputs[1], y_test[:test].long())


def table(data: Path, name: str, train: int, seed: int) -> Split:
    """Rows of a table in random order: standardised columns to predict a standardised one from.

    Raises:
        Skipped: the file is not there.
    """
    with open(_file(data, name), encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if all(row.values())]
    columns = [key for key in rows[0] if key != TARGET[name] and key not in LEFT_OUT.get(name, ())]
    values = torch.tensor([[float(row[key]) for key in (*columns, TARGET[name])] for row in rows])
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    mean, spread = values[:train].mean(0), values[:train].std(0)
    values = (values - mean) / spread
    return Split(values[:train, :-1], values[:train, -1:], values[train:, :-1], values[train:, -1:])


def noise(train: int, test: int, width: int, classes: int, seed: int) -> Split:
    """Independent normal inputs (N, width) and labels that have nothing to do with them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(train + test, width, generator=generator)
    y = torch.randint(classes, (train + test,), generator=generator)
    return Split(x[:train], y[:train], x[train:], y[train:])


def _file(data: Path, name: str) -> Path:
    place, sha256 = FILES[name]
    return require_hash(data / place, sha256)


def _pixels(given: Tensor, pool: int) -> Tensor:
    x = given.float() / 255
    x = x.permute(0, 3, 1, 2) if x.dim() == 4 else x[:, None]
    return functional.avg_pool2d(x, pool).contiguous() if pool > 1 else x.contiguous()
