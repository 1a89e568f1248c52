"""What the pruning studies prune: a perceptron on MNIST, pretrained residual networks on CIFAR-10, and their images."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from runs import Skipped
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    """How much of everything: examples behind a curvature, held out for choices, for BatchNorm; training; steps."""

    curvature: int = 400
    held: int = 500
    calibration: int = 1000
    train: int = 8500
    epochs: int = 20
    steps: int = 4  # per sparsity of the list, for the recomputed methods
    grid: tuple[float, ...] = (1e-2, 0.1, 1.0)


CHOSEN = 500  # CIFAR training images on which a learning rate is chosen
FULL = Sizes()
RESNET = Sizes(curvature=256, held=128, calibration=500, steps=2, grid=(0.1, 1.0, 10.0))
RESNET56 = replace(RESNET, steps=1)
QUICK = Sizes(curvature=300, held=200, train=3000, epochs=5, steps=3, grid=(1e-2, 0.1))


@dataclass(frozen=True)
class Case:
    """A dense model and its images: for curvature, for choices, for BatchNorm, for the test; and for fine-tuning: those
    to train on, and those on which its learning rate is chosen.
    """

    model: nn.Module
    curvature: Tensor
    held: Tensor
    calibration: Tensor
    test: tuple[Tensor, Tensor]
    labels: Tensor  # of the curvature's images, for the empirical Fisher
    train: tuple[Tensor, Tensor]
    chosen: tuple[Tensor, Tensor]


def answers(model: nn.Module, images: tuple[Tensor, Tensor]) -> Tensor:
    """Which answers are right, (N,) booleans."""
    with torch.no_grad():
        pieces = zip(images[0].split(125), images[1].split(125), strict=True)
        return torch.cat([model(x).argmax(1) == y for x, y in pieces])


def packed(right: Tensor) -> str:
    """Booleans as text: eight in a byte, compressed."""
    return base64.b85encode(zlib.compress(numpy.packbits(right.numpy()).tobytes(), 9)).decode()


def unpacked(text: str, count: int) -> Tensor:
    """What ``packed`` was given."""
    held = numpy.frombuffer(zlib.decompress(base64.b85decode(text)), numpy.uint8)
    return torch.as_tensor(numpy.unpackbits(held, count=count)).bool()


def hits(model: nn.Module, images: tuple[Tensor, Tensor]) -> int:
    """Right answers."""
    return int(answers(model, images).sum())


def mlp_images(data: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """MNIST's images and labels, for training and for the test."""
    path = data / "mnist" / "mnist_10k_train_10k_test.npz"
    if not path.is_file():
        raise Skipped(f"{path.name} is not there")
    held = numpy.load(path)
    train, test = ((_mnist(held[f"x_{part}"]), torch.as_tensor(held[f"y_{part}"]).long()) for part in ("train", "test"))
    return train, test


def perceptron(seed: int) -> nn.Sequential:
    """784-40-20-10, untrained; torch's random numbers go on from there."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10))


def train_perceptron(
    model: nn.Module, images: tuple[Tensor, Tensor], sizes: Sizes, seed: int | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> nn.Module:  # fmt: skip
    """Trained in place on the first images, with weights outside the masks at zero; in evaluation mode."""
    if seed is not None:
        torch.manual_seed(seed)
    (x, y), parameters = images, dict(model.named_parameters())

    @torch.no_grad()
    def hold() -> None:
        for name, mask in (masks or {}).items():
            parameters[name].mul_(mask)

    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = sizes.epochs * (sizes.train // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
    hold()
    for _ in range(sizes.epochs):
        for part in torch.randperm(sizes.train)[: sizes.train // 100 * 100].split(100):
            optimiser.zero_grad()
            functional.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
            hold()
            schedule.step()
    return model.eval()


def mlp_case(sizes: Sizes, data: Path, seed: int) -> Case:
    """The perceptron trained on MNIST."""
    (x, y), test = mlp_images(data)
    model = train_perceptron(perceptron(seed), (x, y), sizes)
    order = torch.randperm(sizes.train)[: sizes.curvature]  # curvature where it was trained, choices where it was not
    rest = slice(sizes.train, len(x) - sizes.held)
    return Case(
        model, x[order], x[-sizes.held :], x[order], test, y[order],
        (x[: sizes.train], y[: sizes.train]), (x[rest], y[rest]),
    )  # fmt: skip


def _mnist(images: Any) -> Tensor:
    return (torch.as_tensor(images).float().view(-1, 784) / 255 - 0.1307) / 0.3081


class Block(nn.Module):
    """Two 3x3 convolutions; where the size changes, the shortcut takes every second pixel and adds empty channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.empty = stride, (width - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H/stride, W/stride)."""
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.empty, self.empty))
        return functional.relu(out + x)


class ResNet(nn.Module):
    """He et al. (2016) for CIFAR-10, three stages of ``depth`` blocks."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            blocks = [
                Block(widths[stage - 1] if i == 0 else widths[stage], widths[stage], 2 if i == 0 and stage > 1 else 1)
                for i in range(depth)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = functional.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))


def resnet_case(layers: int, sizes: Sizes, data: Path, seed: int) -> Case:
    """A pretrained ResNet; the seed chooses which training images are for what."""
    weights = data / "models" / "pytorch_resnet_cifar10" / f"resnet{layers}.safetensors"
    images = data / "cifar10" / "cifar10_lossless_4k_train_1k_test.npz"
    for path in (weights, images):
        if not path.is_file():
            raise Skipped(f"{path.name} is not there")
    model = ResNet((layers - 2) // 6)
    model.load_state_dict(load_file(weights), strict=False)  # the counts of batches are not in the file
    held = numpy.load(images)
    x, y = _cifar(held["x_train"]), torch.as_tensor(held["y_train"]).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    first, second = sizes.curvature, sizes.curvature + sizes.held
    test = _cifar(held["x_test"]), torch.as_tensor(held["y_test"]).long()
    train, chosen = torch.cat([order[:first], order[second:-CHOSEN]]), order[-CHOSEN:]
    return Case(
        model.eval(), x[order[:first]].contiguous(), _last(x[order[first:second]]),
        _last(x[order[second : second + sizes.calibration]]), test, y[order[:first]],
        (x[train], y[train]), (_last(x[chosen]), y[chosen]),
    )  # fmt: skip


def _cifar(images: Any) -> Tensor:
    x = torch.as_tensor(images).float().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return _last((x - mean) / std)


def _last(x: Tensor) -> Tensor:
    """Channels last in memory: forward passes, much of the study's time, are a quarter faster."""
    return x.contiguous(memory_format=torch.channels_last)


def case_of(model: str, sizes: Sizes, data: Path, seed: int) -> Case:
    """By name: ``mlp``, ``resnet20``, ``resnet56``."""
    return mlp_case(sizes, data, seed) if model == "mlp" else resnet_case(int(model[6:]), sizes, data, seed)


def sizes_of(model: str, quick: bool) -> Sizes:
    """Of that name's study."""
    return QUICK if quick else {"mlp": FULL, "resnet20": RESNET, "resnet56": RESNET56}[model]
