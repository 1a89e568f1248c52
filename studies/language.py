"""A small next-token model over characters, trained on the Python documentation text that CPython carries.

Rotary positions, root-mean-square norms, a gated feed-forward net, and one table for embedding and head.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional


def documentation() -> str:
    """The text of ``help()``'s topics, printable ASCII and line ends only."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    return "".join(c for c in text if c == "\n" or " " <= c <= "~")


def digest(text: str) -> str:
    """Identifies a text: it differs between versions of CPython."""
    return hashlib.sha256(text.encode()).hexdigest()


def encode(text: str) -> tuple[Tensor, int]:
    """Characters as indices into the sorted set of them, and how many there are."""
    characters = sorted(set(text))
    index = {c: i for i, c in enumerate(characters)}
    return torch.tensor([index[c] for c in text]), len(characters)


class Block(nn.Module):
    """Causal attention with rotary positions, then a gated feed-forward net, each behind a norm."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """(N, T, width) to the same; angles (T, width / heads / 2)."""
        a = self.attention_norm(x)
        q, k, v = (
            layer(a).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(rotate(q, angles), rotate(k, angles), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        f = self.feed_norm(x)
        return x + self.down(functional.silu(self.gate(f)) * self.up(f))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + size/2}) of the last axis of (N, heads, T, size) by angles (T, size / 2)."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class NextToken(nn.Module):
    """Logits (N, T, C) of the token after each of (N, T)."""

    def __init__(self, size: int, width: int = 64, hidden: int = 160, blocks: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(size, width)
        self.blocks = nn.ModuleList([Block(width, hidden, heads) for _ in range(blocks)])
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, size, bias=False)
        self.head.weight = self.table.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.5 / width**0.5)
        self.pairs = width // heads // 2

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits at every position."""
        x = self.table(tokens)
        places = torch.arange(tokens.shape[1], dtype=x.dtype, device=x.device)
        rates = 1000.0 ** (-torch.arange(self.pairs, dtype=x.dtype, device=x.device) / self.pairs)
        for block in self.blocks:
            x = block(x, places[:, None] * rates)
        return self.head(self.norm(x))


def layer_of(name: str) -> str:
    """Where a parameter stands; the one table is embedding and head at once."""
    if name.startswith("blocks."):
        return f"layer {name.split('.')[1]}"
    return "tied table" if name.startswith(("table", "head")) else "last norm"


def windows(tokens: Tensor, count: int, length: int, seed: int) -> Tensor:
    """``count`` random stretches of ``length`` tokens, (count, length)."""
    starts = torch.randint(len(tokens) - length, (count,), generator=torch.Generator().manual_seed(seed))
    return tokens[starts[:, None] + torch.arange(length)]


def train(model: NextToken, tokens: Tensor, *, steps: int, batch: int, length: int, seed: int) -> list[float]:
    """AdamW on random windows, the rate falling linearly to zero; returns the losses in nats per token."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    losses = []
    model.train()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        window = windows(tokens, batch, length + 1, seed + step)
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@torch.no_grad()
def surprise(model: NextToken, window: Tensor) -> float:
    """Mean loss per token on windows (N, T + 1), nats."""
    return float(functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()))
