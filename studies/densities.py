"""Diagonals by layer: densities on a log scale, shares of small entries, and the order lower <= F <= upper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from runs import jackknife
from torch import Tensor, nn

import dynaxx

SMALL = 1e-5
EDGES = [round(-14 + 0.25 * i, 2) for i in range(73)]  # log10 of an entry; what lies outside is counted at the ends
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# of a root of an entry along two routes: relative, and relative to the layer's root mean square where positions cancel
ROUNDING = {torch.float32: (1e-4, 1e-5), torch.float64: (1e-10, 1e-12)}


def brackets(model: nn.Module, blocks: Sequence[Any], **options: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Diagonals of the lower bound (p,), of F block by block (B, p) and of the upper bound (p,), with their layout."""
    lower: Tensor | None = None
    upper: Tensor | None = None
    middle: list[Tensor] = []
    total = 0
    for block in blocks:
        bounds = dynaxx.bracket(model, block, form="diagonal", **options)
        count = bounds.estimate.count
        low, mid, high = bounds.diagonal()
        lower = low * count if lower is None else lower + low * count
        upper = high * count if upper is None else upper + high * count
        middle.append(mid)
        total += count
    assert lower is not None
    assert upper is not None
    return lower / total, torch.stack(middle), upper / total, bounds.estimate.layout


def by_layer(slices: Mapping[str, slice], layer_of: Callable[[str], str]) -> dict[str, list[slice]]:
    """Layer -> where its entries stand, in the model's order."""
    layers: dict[str, list[slice]] = {}
    for name, where in slices.items():
        layers.setdefault(layer_of(name), []).append(where)
    return layers


def describe(lower: Tensor, blocks: Tensor, upper: Tensor, places: Sequence[slice], examples: int) -> dict[str, Any]:
    """One layer's entries under the mean convention, F = (1/N) sum_n F_n, with intervals from the blocks.

    Args:
        blocks: (B, p) diagonals of equal blocks of the ``examples``.
    """
    low, high = (torch.cat([values[where] for where in places]).double() for values in (lower, upper))
    parts = torch.cat([blocks[:, where] for where in places], 1)
    F = parts.mean(0, dtype=torch.float64)
    positive = F > 0
    logs = F[positive].log10()
    count = len(parts)
    without = [(F * count - part.double()) / (count - 1) for part in parts]  # each block left out in turn
    return {
        "entries": len(F),
        "zeros": float((~positive).double().mean()),
        "histogram": torch.histc(logs.clamp(EDGES[0], EDGES[-1]), len(EDGES) - 1, EDGES[0], EDGES[-1]).tolist(),
        "quantiles": _quantiles(logs),
        "mean": jackknife([float(values.mean()) for values in without], float(F.mean())),
        "small": jackknife([float((values < SMALL).double().mean()) for values in without], _share(F, SMALL)),
        "small_of_sum": _share(F, SMALL / examples),
        "small_lower": _share(low, SMALL),
        "small_upper": _share(high, SMALL),
        "trace": float(F.sum()),
        "lower_trace_share": float(low.sum() / F.sum()),
        "upper_trace_share": float(high.sum() / F.sum()),
        "lower_share": _quantiles(low[positive] / F[positive]),
        "upper_share": _quantiles(high[positive] / F[positive]),
        "violations": {
            "lower": _broken(low, F, lower.dtype),
            "upper": _broken(F, high, lower.dtype),
        },
    }


def _broken(small: Tensor, large: Tensor, dtype: torch.dtype) -> int:
    """Entries where small <= large fails by more than rounding."""
    relative, floor = ROUNDING[dtype]
    typical = large[large > 0].mean().sqrt()  # rows of absent tokens are zero and say nothing of the scale
    return int((small.sqrt() > large.sqrt() * (1 + relative) + floor * typical).sum())


def _share(values: Tensor, below: float) -> float:
    return float((values < below).double().mean())


def _quantiles(values: Tensor) -> list[float]:
    """QUANTILES, from the sorted values (torch.quantile refuses more than 2^24)."""
    if not len(values):
        return [math.nan] * len(QUANTILES)
    ordered = values.sort().values
    return [float(ordered[round(q * (len(ordered) - 1))]) for q in QUANTILES]


def output_space(z: Tensor) -> dict[str, float]:
    """Mean confidence, and traces of the envelopes over that of I(z), all positions together. No model is needed."""
    likelihood = dynaxx.likelihoods.Categorical()
    z = z.reshape(-1, z.shape[-1]).double()
    trace = float(likelihood.trace(z).sum())
    found = {"confidence": float(z.softmax(-1).amax(-1).mean()), "trace": trace / len(z)}
    for name, columns in (
        ("lower_eigen", likelihood.lower(z, 1, "eigen")),
        ("lower_cholesky", likelihood.lower(z, 1, "cholesky")),
        ("upper_diagonal", likelihood.upper(z, "diagonal")),
        ("upper_laplacian", likelihood.upper(z, "laplacian")),
        ("upper_tail", likelihood.upper(z, "tail", 8)),
    ):
        found[name] = float(columns.square().sum()) / trace
    return found
