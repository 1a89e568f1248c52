"""What the functions of this folder take: points, probabilities, weights; each checked before work starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynaxx.errors import InputError


def probabilities(name: str, values: Tensor) -> Tensor:
    """Rows of ``values`` (..., C), checked to be probabilities and normalised in float64.

    Raises:
        InputError: they are negative, not finite, or do not sum to one.
    """
    tolerance = max(1e-4, 16 * torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0)
    values = values.double()
    total = values.sum(-1, keepdim=True)
    wrong = ~((values >= 0).all(-1) & ((total.squeeze(-1) - 1).abs() <= tolerance))
    if bool(wrong.any()):
        where = tuple(int(i) for i in wrong.nonzero()[0])
        raise InputError(
            f"{name}: the row at {where} is not a distribution: it sums to {float(total[where]):.6g}, its least entry "
            f"is {float(values[where].min()):.3g}. Give probabilities: softmax of logits, or embed(...) ** 2; for "
            f"regression kind='euclidean'"
        )
    return values / total


def points(name: str, given: Tensor | Sequence[Tensor]) -> Tensor:
    """(M, N, C) of M models on N examples, from a tensor or a list.

    Raises:
        InputError: it has another shape.
    """
    if isinstance(given, (list, tuple)) and given and all(isinstance(one, Tensor) for one in given):
        if len({one.shape for one in given}) > 1:
            raise InputError(f"{name}: models with predictions of different shapes; all need the same examples")
        given = torch.stack(list(given))
    if not isinstance(given, Tensor) or given.dim() != 3 or 0 in given.shape:
        raise InputError(
            f"{name} {shape(given)} must have shape (M, N, C): M models, N examples, C classes; between_examples() "
            f"takes the (N, C) of one model"
        )
    return given.detach()


def shape(given: object) -> str:
    """How a message names what it got."""
    return f"of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"of type {type(given).__name__}"


def example_weights(weights: Tensor | None, count: int) -> Tensor:
    """(N,) float64 that sum to one; equal ones by default.

    Raises:
        InputError: they are not N numbers >= 0 with a positive sum.
    """
    if weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    given = torch.as_tensor(weights, dtype=torch.float64).detach()
    if given.shape != (count,) or not bool((torch.isfinite(given) & (given >= 0)).all()) or not float(given.sum()) > 0:
        raise InputError(
            f"weights {shape(given)} must be {count} finite numbers, one per example, none negative, not all zero"
        )
    return given / given.sum()
