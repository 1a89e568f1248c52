"""Brute force, slow and plainly right: what the engine is held against.

Nothing here knows dynaxx. One example at a time goes through the user's model, every output coordinate is
differentiated by one call of autograd, and the matrices are then written down as the formulas say. Float64 throughout.

Shapes: Q unmasked positions of one example (1 where there is no sequence axis), C outputs per position, p parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IGNORE = -100


# ---------------------------------------------------------------------------------------------------------------------
# The output space: I(z), score and divergence of each likelihood, z of shape (C,)


def metric(kind: str, z: Tensor, variance: float = 1.0) -> Tensor:
    """I(z), the covariance of the score, of shape (C, C)."""
    if kind == "categorical":
        p = z.softmax(0)
        return torch.diag(p) - torch.outer(p, p)
    if kind == "bernoulli":
        p = z.sigmoid()
        return torch.diag(p * (1 - p))
    if kind == "gaussian":
        return torch.eye(len(z), dtype=z.dtype) / variance
    if kind == "heteroscedastic":
        _, log_variance = z.chunk(2)
        return torch.diag(torch.cat([(-log_variance).exp(), torch.full_like(log_variance, 0.5)]))
    if kind == "poisson":
        return torch.diag(z.exp())
    raise AssertionError(kind)


def score(kind: str, z: Tensor, y: Tensor, variance: float = 1.0) -> Tensor:
    """d log p(y|z) / dz, of shape (C,)."""
    if kind == "categorical":
        one_hot = torch.zeros_like(z)
        one_hot[int(y)] = 1
        return one_hot - z.softmax(0)
    if kind == "bernoulli":
        return y - z.sigmoid()
    if kind == "gaussian":
        return (y - z) / variance
    if kind == "heteroscedastic":
        mean, log_variance = z.chunk(2)
        precision = (-log_variance).exp()
        return torch.cat([(y - mean) * precision, 0.5 * (y - mean) ** 2 * precision - 0.5])
    if kind == "poisson":
        return y - z.exp()
    raise AssertionError(kind)


def divergence(kind: str, z: Tensor, w: Tensor, variance: float = 1.0) -> Tensor:
    """KL(p(.|z) || p(.|w)) in nats, a scalar."""
    if kind == "categorical":
        return (z.softmax(0) * (z.log_softmax(0) - w.log_softmax(0))).sum()
    if kind == "bernoulli":
        p, q = z.sigmoid(), w.sigmoid()
        return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    if kind == "gaussian":
        return (z - w).square().sum() / (2 * variance)
    if kind == "heteroscedastic":
        (m, s), (n, t) = z.chunk(2), w.chunk(2)
        return 0.5 * (t - s + (s - t).exp() + (m - n) ** 2 * (-t).exp() - 1).sum()
    if kind == "poisson":
        return (z.exp() * (z - w) - z.exp() + w.exp()).sum()
    raise AssertionError(kind)


# ---------------------------------------------------------------------------------------------------------------------
# The model: one example at a time


@dataclass(frozen=True)
class Example:
    """Outputs (Q, C), their Jacobian (Q, C, p), and the labels of the unmasked positions (None without labels)."""

    outputs: Tensor
    jacobian: Tensor
    labels: Tensor | None


def parameters(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """name -> parameter in the model's order: all that require grad, or those named."""
    every = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return every if names is None else {name: every[name] for name in every if name in set(names)}


def part(batch: Any, start: int, stop: int) -> Any:
    """The batch of the examples from ``start`` up to ``stop``."""
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {key: part(value, start, stop) for key, value in batch.items()}
    return tuple(part(value, start, stop) for value in batch)


def pick(batch: Any, n: int) -> Any:
    """The batch that holds example ``n`` alone."""
    return part(batch, n, n + 1)


def length(batch: Any) -> int:
    """Number of examples in a batch."""
    if isinstance(batch, Tensor):
        return len(batch)
    return length(next(iter(batch.values() if isinstance(batch, Mapping) else batch)))


def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Outputs (N, ..., C) and labels (or None) of a batch: x, (x, y), or a dict with ``labels``."""
    if isinstance(batch, Mapping):
        out = model(**batch)
        return getattr(out, "logits", out), batch.get("labels")
    inputs, labels = batch if isinstance(batch, tuple) else (batch, None)
    out = model(inputs)
    return getattr(out, "logits", out), labels


def unmasked(kind: str, outputs: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Outputs (Q, C) and labels (Q,) or (Q, C') of the positions of one example that count."""
    outputs = outputs.reshape(-1, outputs.shape[-1])
    if labels is None:
        return outputs, None
    if kind == "categorical":
        labels = labels.reshape(-1)
        return outputs[labels != IGNORE], labels[labels != IGNORE]
    return outputs, labels.reshape(len(outputs), -1)


def examples(model: nn.Module, batch: Any, kind: str, names: Sequence[str] | None = None) -> list[Example]:
    """Jacobians by one backward pass per output coordinate and example."""
    selected = list(parameters(model, names).values())
    found = []
    for n in range(length(batch)):
        outputs, labels = unmasked(kind, *forward(model, pick(batch, n)))
        rows = []
        for coordinate in outputs.flatten():
            pulled = torch.autograd.grad(coordinate, selected, retain_graph=True, allow_unused=True)
            flat = [(torch.zeros_like(w) if g is None else g).flatten() for w, g in zip(selected, pulled, strict=True)]
            rows.append(torch.cat(flat))
        size = sum(w.numel() for w in selected)
        jacobian = torch.stack(rows) if rows else torch.zeros(0, size, dtype=outputs.dtype)
        found.append(Example(outputs.detach(), jacobian.reshape(*outputs.shape, size), labels))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The matrices


def exact_fisher(rows: Sequence[Example], kind: str, variance: float = 1.0) -> Tensor:
    """F = (1/N) sum_n sum_q J_nq^T I(z_nq) J_nq, of shape (p, p)."""
    size = rows[0].jacobian.shape[-1]
    total = torch.zeros(size, size, dtype=rows[0].jacobian.dtype)
    for row in rows:
        for z, jacobian in zip(row.outputs, row.jacobian, strict=True):
            total += jacobian.T @ metric(kind, z, variance) @ jacobian
    return total / len(rows)


def empirical_fisher(rows: Sequence[Example], kind: str, variance: float = 1.0) -> Tensor:
    """(1/N) sum_n s_n s_n^T with s_n the gradient of example n's log probability, summed over its positions first."""
    size = rows[0].jacobian.shape[-1]
    total = torch.zeros(size, size, dtype=rows[0].jacobian.dtype)
    for row in rows:
        assert row.labels is not None
        gradient = torch.zeros(size, dtype=total.dtype)
        for z, jacobian, y in zip(row.outputs, row.jacobian, row.labels, strict=True):
            gradient += jacobian.T @ score(kind, z, y, variance)
        total += torch.outer(gradient, gradient)
    return total / len(rows)


def mean_divergence(model: nn.Module, batch: Any, kind: str, step: Tensor, variance: float = 1.0) -> float:
    """(1/N) sum_n KL(w || w + step) in nats; ``step`` is laid out in the model's parameter order."""
    selected = parameters(model)

    def outputs() -> list[Tensor]:
        with torch.no_grad():
            return [unmasked(kind, *forward(model, pick(batch, n)))[0] for n in range(length(batch))]

    before, saved = outputs(), [value.detach().clone() for value in selected.values()]
    with torch.no_grad():
        pieces = step.split([value.numel() for value in selected.values()])
        for value, piece in zip(selected.values(), pieces, strict=True):
            value.add_(piece.reshape(value.shape))
        after = outputs()
        for value, old in zip(selected.values(), saved, strict=True):
            value.copy_(old)
    total = 0.0
    for old, new in zip(before, after, strict=True):
        total += sum(float(divergence(kind, z, w, variance)) for z, w in zip(old, new, strict=True))
    return total / len(before)


def hessian(model: nn.Module, batch: Any, loss: Callable[[Tensor, Any], Tensor]) -> Tensor:
    """Dense Hessian of the loss of one batch by two loops of autograd, of shape (p, p)."""
    selected = list(parameters(model).values())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value = loss(*forward(model, batch))
        first = torch.autograd.grad(value, selected, create_graph=True, allow_unused=True)
        flat = torch.cat(
            [torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in zip(selected, first, strict=True)]
        )
        rows = []
        for entry in flat:
            if not entry.requires_grad:
                rows.append(torch.zeros(len(flat), dtype=flat.dtype))
                continue
            second = torch.autograd.grad(entry, selected, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        torch.zeros_like(w).flatten() if g is None else g.flatten()
                        for w, g in zip(selected, second, strict=True)
                    ]
                )
            )
    return torch.stack(rows)


def gradient(model: nn.Module, batch: Any, loss: Callable[[Tensor, Any], Tensor]) -> Tensor:
    """Gradient of the loss of one batch, (p,)."""
    selected = list(parameters(model).values())
    pulled = torch.autograd.grad(loss(*forward(model, batch)), selected, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in zip(selected, pulled, strict=True)]
    )


def offsets(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, slice]:
    """name -> its coordinates in the model's parameter order."""
    found, start = {}, 0
    for name, value in parameters(model, names).items():
        found[name] = slice(start, start + value.numel())
        start += value.numel()
    return found


def keep_blocks(dense: Tensor, where: Mapping[str, slice], blocks: Iterable[Sequence[str]]) -> Tensor:
    """The dense matrix with everything outside the blocks (tuples of parameter names) set to zero."""
    keep = torch.zeros_like(dense, dtype=torch.bool)
    for block in blocks:
        for a, b in itertools.product(block, block):
            keep[where[a], where[b]] = True
    return torch.where(keep, dense, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# K-FAC by the textbook


@dataclass(frozen=True)
class Factors:
    """Kronecker factors of one layer, F ~ G (x) A over the matrix [weight, bias] laid out row by row."""

    inputs: Tensor  # A, (I + 1, I + 1), or (I, I) without bias
    outputs: Tensor  # G, (O, O)
    bias: bool

    def dense(self) -> Tensor:
        """G (x) A, reordered to weight (row by row) then bias."""
        full = torch.kron(self.outputs, self.inputs)
        if not self.bias:
            return full
        rows, columns = len(self.outputs), len(self.inputs)
        index = torch.arange(rows * columns).reshape(rows, columns)
        order = torch.cat([index[:, :-1].flatten(), index[:, -1]])
        return full[order][:, order]


def _unfold(layer: nn.Module, a: Tensor) -> Tensor:
    """Inputs of one example of a Linear or Conv2d as (T, I): what the weight multiplies at each position."""
    if isinstance(layer, nn.Conv2d):
        assert layer.groups == 1
        assert layer.padding_mode == "zeros"
        assert not isinstance(layer.padding, str)
        columns = torch.nn.functional.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return columns[0].T
    return a.reshape(-1, a.shape[-1])


def kfac_factors(
    model: nn.Module, layer: nn.Module, batch: Any, kind: str, sharing: str, variance: float = 1.0
) -> Factors:
    """Factors of one layer from the exact output metric.

    expand: A = (1/N) sum_nt a a^T,                   G = (1/NT) sum_nt sum_c g g^T
    reduce: A = (1/N) sum_n (sum_t a)(sum_t a)^T,     G = (1/N) sum_n sum_c (mean_t g)(mean_t g)^T
    """
    bias = layer.bias is not None
    inputs: Tensor | float = 0.0
    outputs: Tensor | float = 0.0
    count = length(batch)
    for n in range(count):
        seen: list[tuple[Tensor, Tensor]] = []
        handle = layer.register_forward_hook(lambda _, args, out, seen=seen: seen.append((args[0], out)))
        try:
            z, _ = unmasked(kind, *forward(model, pick(batch, n)))
        finally:
            handle.remove()
        ((a, out),) = seen
        a = _unfold(layer, a.detach())
        if bias:
            a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], dim=1)
        positions = len(a)
        reduced = a.sum(0, keepdim=True) if sharing == "reduce" else a
        inputs = inputs + reduced.T @ reduced / count
        for q, row in enumerate(z):
            values, vectors = torch.linalg.eigh(metric(kind, row.detach(), variance))
            for value, vector in zip(values.clamp(min=0), vectors.T, strict=True):
                (g,) = torch.autograd.grad(z[q] @ vector * value.sqrt(), out, retain_graph=True)
                g = g[0].flatten(1).T if isinstance(layer, nn.Conv2d) else g.reshape(-1, g.shape[-1])
                g = g.mean(0, keepdim=True) if sharing == "reduce" else g / math.sqrt(positions)
                outputs = outputs + g.T @ g / count
    assert isinstance(inputs, Tensor)
    assert isinstance(outputs, Tensor)
    return Factors(inputs, outputs, bias)


# ---------------------------------------------------------------------------------------------------------------------
# Random signs, all of them


def symmetric_factor(z: Tensor) -> Tensor:
    """L = diag(sqrt p) - p sqrt(p)^T of a categorical, (C, C): column c is sqrt(p_c) (e_c - p)."""
    p = z.softmax(0)
    return torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())


def enumerate_signs(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, entry by entry, of (G xi)(G xi)^T over all signs xi in {-1, 1}^M, for G of shape (p, M)."""
    draws = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=factor.shape[1])), dtype=factor.dtype)
    pushed = draws @ factor.T
    squares = pushed[:, :, None] * pushed[:, None, :]
    return squares.mean(0), squares.var(0, unbiased=False)


def distance(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted|_F / |wanted|_F, and plain |found|_F where nothing was wanted."""
    scale = float(wanted.norm())
    return float((found - wanted).norm()) / (scale if scale > 0 else 1.0)
