"""The three models that everything is timed on, with their data: seeded, synthetic, after 25 steps of SGD.

    mlp    784-1024-1024-10, ReLU                                                  512 examples    1.864 M parameters
    cnn    six convolutions with two skips, two linear layers, no BatchNorm        128 images      0.559 M
    lm     four pre-norm transformer blocks, d 128, vocabulary 1000, untied head   16 x 64 tokens  1.059 M

A network fresh from initialisation has a flat, featureless metric; 25 steps give it the outliers that eigenvalue
solvers meet in practice.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
STEPS, LEARNING_RATE, TRAINING_BATCH = 25, 0.05, 64
CLASSES, VOCABULARY, TOKENS = 10, 1000, 64


@dataclass(frozen=True)
class Workload:
    """A model in evaluation mode and one batch."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor

    @property
    def count(self) -> int:
        """Examples in the batch."""
        return len(self.x)

    @property
    def loss(self) -> nn.Module:
        """Mean negative log likelihood, over tokens for the language model."""
        return nn.CrossEntropyLoss()

    def untouched(self) -> Workload:
        """The same with a model of its own, for the baseline."""
        return Workload(self.name, copy.deepcopy(self.model), self.x, self.y)

    def double(self) -> Workload:
        """The same in float64, for references."""
        x = self.x.double() if self.x.is_floating_point() else self.x
        return Workload(self.name, copy.deepcopy(self.model).double(), x, self.y)

    def part(self, count: int, tokens: int | None = None) -> Workload:
        """The first ``count`` examples, cut to ``tokens`` positions where there are positions."""
        x, y = self.x[:count], self.y[:count]
        if tokens is not None and y.dim() == 2:
            x, y = x[:, :tokens], y[:, :tokens]
        return Workload(self.name, self.model, x, y)


def gradient(workload: Workload) -> None:
    """q0, the unit of every figure: forward and backward of the mean loss into ``.grad``."""
    workload.model.zero_grad(set_to_none=True)
    output = workload.model(workload.x)
    workload.loss(output.flatten(0, -2), workload.y.flatten()).backward()


class Residual(nn.Module):
    """x + relu(inner(x))."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.activation = inner, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.activation(self.inner(x))


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


class Attention(nn.Module):
    """Four heads, causal, separate projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        # written out, because the fused kernel has no second derivative and some peers need one
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(ahead, float("-inf")).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.before_attention, self.before_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.feed_forward(self.before_feed_forward(x))


class LanguageModel(nn.Module):
    """Token and position embeddings, blocks, norm, head."""

    def __init__(self, width: int = 128, blocks: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.02 * torch.randn(TOKENS, width))
        self.blocks = nn.Sequential(*[Block(width, heads, 4 * width) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def mlp() -> nn.Module:
    """784-1024-1024-10."""
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, CLASSES)
    )  # fmt: skip


def cnn() -> nn.Module:
    """Six convolutions, two of them around skips, then two linear layers."""
    pair = nn.Sequential(convolution(128, 128), nn.ReLU(), convolution(128, 128))
    return nn.Sequential(
        convolution(3, 32), nn.ReLU(), convolution(32, 64, 2), nn.ReLU(), Residual(convolution(64, 64)),
        convolution(64, 128, 2), nn.ReLU(), Residual(pair), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, CLASSES),
    )  # fmt: skip


MODELS = {"mlp": mlp, "cnn": cnn, "lm": LanguageModel}
BATCH = {"mlp": 512, "cnn": 128, "lm": 16}


def images(shape: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
    """Class means under noise of unit variance."""
    y = torch.randint(CLASSES, (count,))
    means = torch.randn(CLASSES, *shape)
    return 0.3 * means[y] + torch.randn(count, *shape), y


def sequences(count: int) -> tuple[Tensor, Tensor]:
    """A noisy deterministic walk over the vocabulary: the next token is predictable half of the time."""
    tokens = torch.randint(VOCABULARY, (count, TOKENS + 1))
    for place in range(TOKENS):
        known = torch.rand(count) < 0.5
        tokens[:, place + 1] = torch.where(known, (7 * tokens[:, place] + 3) % VOCABULARY, tokens[:, place + 1])
    return tokens[:, :-1], tokens[:, 1:]


def make(name: str, device: str = "cpu", seed: int = SEED, batch: int | None = None) -> Workload:
    """Build, draw the data, train 25 steps.

    Args:
        name: "mlp", "cnn" or "lm".
        device: where it runs; everything is drawn and trained on the CPU, so that all devices see the same weights.
        seed: of weights and data.
        batch: examples; the workload's own number by default.
    """
    count = BATCH[name] if batch is None else batch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name]()
        size = max(BATCH[name], count)
        x, y = sequences(size) if name == "lm" else images((784,) if name == "mlp" else (3, 32, 32), size)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        for _ in range(STEPS):
            rows = torch.randint(size, (TRAINING_BATCH if name != "lm" else 8,))
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]).flatten(0, -2), y[rows].flatten()).backward()
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return Workload(name, model.eval().to(device), x[:count].to(device), y[:count].to(device))
