"""What scale.py varies: one model family per axis, fresh from initialisation, and the quantities it takes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from workloads import Block, cnn

import dynaxx
from dynaxx.linalg import quadrature

Made = tuple[nn.Module, Tensor]
SAMPLED = ("diagonal", "trace", "kfac")
PRUNING = ("magnitude", "obd", "obs32")
PRODUCTS = 4  # of the 512 that a snapshot of so large a model takes


@dataclass(frozen=True)
class Axis:
    """One thing that grows.

    Args:
        title: of the figure's axis.
        values: what it takes.
        make: value -> (model in evaluation mode, inputs).
        quantities: names in QUANTITIES.
        warm: a small value, for what libraries load at first use.
        most: quantity -> largest value that it is measured at.
    """

    title: str
    values: tuple[int, ...]
    make: Callable[[int], Made]
    quantities: tuple[str, ...] = SAMPLED
    warm: int = 1
    most: tuple[tuple[str, int], ...] = ()

    def values_of(self, quantity: str) -> tuple[int, ...]:
        return tuple(v for v in self.values if v <= dict(self.most).get(quantity, v))


class Language(nn.Module):
    """Tied embeddings, position embeddings, pre-norm blocks, norm, head."""

    def __init__(self, vocabulary: int, width: int, blocks: int, length: int, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads, 4 * width) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(places[None]))))


def mlp(examples: int = 256, inputs: int = 256, width: int = 512, outputs: int = 10) -> Made:
    model = nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )  # fmt: skip
    return model.eval(), torch.randn(examples, inputs)


def language(
    examples: int = 8, length: int = 64, blocks: int = 2, width: int = 128, vocabulary: int = 1000, heads: int = 4
) -> Made:
    model = Language(vocabulary, width, blocks, length, heads)
    return model.eval(), torch.randint(vocabulary, (examples, length))


def large(millions: int) -> Made:
    """110: 12 blocks of width 768, vocabulary 32,000, 2 sequences of 128 tokens. Otherwise a small one."""
    if millions < 100:
        return language(2, 8, 1, 8, 50)
    return language(2, 128, 12, 768, 32_000, 12)


def sampled(model: nn.Module, x: Tensor, form: str) -> Any:
    return dynaxx.fisher(model, x, form=form, estimator="monte_carlo")


def economy(model: nn.Module, x: Tensor) -> Any:
    """The cheapest preset of the monitor."""
    from dynaxx.monitor.monitor import Monitor

    with Monitor(model, x, preset="economy") as monitor:
        return monitor.measure(0)


def quadrature_start(model: nn.Module, x: Tensor) -> Any:
    """The first of a snapshot's products; its 8 probes of 64 steps come one after another and hold no more."""
    return quadrature(dynaxx.fisher(model, x), probes=1, steps=PRODUCTS, reorthogonalise=False)


def pruned(model: nn.Module, x: Tensor, criterion: str, **options: Any) -> Any:
    return dynaxx.prune(model, x, sparsity=0.9, criterion=criterion, **options)


QUANTITIES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "diagonal": lambda model, x: sampled(model, x, "diagonal"),
    "trace": lambda model, x: sampled(model, x, "implicit").trace(),
    "kfac": lambda model, x: sampled(model, x, "kfac"),
    "diagonal_exact": lambda model, x: dynaxx.fisher(model, x, form="diagonal"),
    "snapshot": quadrature_start,
    "economy": economy,
    "gram": lambda model, x: sampled(model, x, "gram").spectrum(),
    "magnitude": lambda model, x: pruned(model, x, "magnitude"),
    "obd": lambda model, x: pruned(model, x, "obd", estimator="monte_carlo"),
    "obs32": lambda model, x: pruned(model, x, "obs", curvature="block", block=32),
}

AXES = {
    "examples": Axis(
        "examples N (MLP)", (64, 512, 4096), lambda n: mlp(examples=n), (*SAMPLED, "diagonal_exact"), 4
    ),
    "outputs": Axis(
        "outputs C (MLP)", (10, 1000, 50_000), lambda c: mlp(32, width=256, outputs=c),
        (*SAMPLED, "diagonal_exact"), 4, (("diagonal_exact", 10), ("kfac", 1000)),
    ),
    "parameters": Axis("parameters p (MLP)", (128, 512, 2048), lambda w: mlp(width=w), warm=4),
    "sequence": Axis("sequence length T (transformer)", (32, 128, 512), lambda t: language(length=t), warm=4),
    "depth": Axis("blocks (transformer)", (1, 4, 16), lambda b: language(blocks=b), warm=1),
    "vocabulary": Axis("vocabulary", (50_000,), lambda v: language(8, 32, 1, 64, v), ("diagonal", "trace"), 50),
    "images": Axis(
        "images (CNN)", (128,), lambda n: (cnn().eval(), torch.randn(n, 3, 32, 32)), (*SAMPLED, "diagonal_exact"), 2
    ),
    "large": Axis("million parameters", (110,), large, (*SAMPLED, "snapshot", "economy", "gram", *PRUNING), 1),
}  # fmt: skip
