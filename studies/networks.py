"""The networks of the sloppiness studies, how they are trained, and how a number is told over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from runs import CONFIDENCE
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

Optimiser = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def perceptron(widths: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths, first inputs, last outputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [activation()] if i else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def all_cnn(width: int, classes: int = 10, channels: int = 3) -> nn.Sequential:
    """All-CNN-C (Springenberg et al. 2015): nine convolutions, BatchNorm after all but the last, the mean over places.

    Args:
        width: channels of the first three layers, 96 in the paper; the other six have twice as many.
    """
    plan = [(width, 3, 1), (width, 3, 1), (width, 3, 2), (2 * width, 3, 1), (2 * width, 3, 1), (2 * width, 3, 2)]
    plan += [(2 * width, 3, 1), (2 * width, 1, 1)]
    layers: list[nn.Module] = []
    for after, size, stride in plan:
        convolution = nn.Conv2d(channels, after, size, stride, padding=size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        channels = after
    return nn.Sequential(*layers, nn.Conv2d(channels, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def small_cnn(width: int, classes: int = 10, channels: int = 1) -> nn.Sequential:
    """Three convolutions with BatchNorm, the mean over places, a linear head."""
    layers: list[nn.Module] = []
    for after, stride in ((width, 1), (2 * width, 2), (2 * width, 2)):
        layers += [nn.Conv2d(channels, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        channels = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Transformer(nn.Module):
    """Patches of an image, encoder layers with the norm first, the mean over patches, a linear head."""

    def __init__(self, side: int, patch: int, width: int, depth: int, heads: int, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 1, H, W)."""
        return self.head(self.encoder(self.patches(x).flatten(2).mT + self.places).mean(1))


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimiser: Optimiser,
    *,
    epochs: int,
    batch: int,
    seed: int,
    final: float = 0.0,
    batches: Sequence[slice] | None = None,
    augment: bool = False,
    on_step: Callable[[], Any] = lambda: None,
) -> None:
    """Train in place; the learning rate falls as a cosine to ``final`` of its start, epoch by epoch.

    Args:
        batches: the same ones in each epoch, in place of a random order.
        augment: shift and mirror images at random.
        on_step: called after each step.
    """
    generator = torch.Generator().manual_seed(seed)
    made = optimiser(model.parameters())
    start = made.param_groups[0]["lr"]
    model.train()
    for epoch in range(epochs):
        made.param_groups[0]["lr"] = start * (final + (1 - final) * (1 + math.cos(math.pi * epoch / epochs)) / 2)
        order: Iterable[Any] = torch.randperm(len(x), generator=generator).split(batch) if batches is None else batches
        for part in order:
            made.zero_grad()
            shown = moved(x[part], generator) if augment else x[part]
            loss_of(model(shown), y[part]).backward()
            made.step()
            on_step()
    model.eval()


def moved(x: Tensor, generator: torch.Generator, reach: int = 4) -> Tensor:
    """Images (N, C, H, W), each shifted by up to ``reach`` pixels along both axes, half of them mirrored."""
    n, _, height, width = x.shape
    dy, dx = torch.randint(2 * reach + 1, (2, n, 1), generator=generator)
    columns = dx + torch.arange(width)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    rows = (dy + torch.arange(height))[:, None, :, None]
    padded = functional.pad(x, (reach,) * 4)
    return padded[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows,
                  columns[:, None, None, :]]  # fmt: skip


def loss_of(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy (nats) of labels, or half the mean squared error of targets."""
    return functional.mse_loss(z, y) / 2 if y.is_floating_point() else functional.cross_entropy(z, y)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """What the model says in evaluation mode, which it stays in."""
    model.eval()
    return torch.cat([model(part) for part in x.split(batch)])


def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of examples classified wrong; of targets the share of their variance that is left."""
    z = outputs(model, x)
    if y.is_floating_point():
        return float((z - y).square().mean() / (y - y.mean()).square().mean())
    return float((z.argmax(1) != y).double().mean())


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean with a t interval over independent seeds; no interval for one."""
    n, mean = len(values), statistics.fmean(values)
    half = math.nan
    if n > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return {"value": mean, "low": mean - half, "high": mean + half, "seeds": n}


def rounded(values: Iterable[float], digits: int = 5) -> list[float]:
    """Numbers for a file: as many significant digits as a figure shows."""
    return [float(f"{float(value):.{digits}g}") for value in values]
