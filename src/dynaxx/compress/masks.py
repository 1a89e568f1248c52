"""From saliencies to masks: which weights stay, for an exact sparsity and with nothing left to chance."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dynaxx.errors import InputError, choose

SCOPES = ("global", "layer")


def select(
    scores: Mapping[str, Tensor], ties: Mapping[str, Tensor], sparsity: float, scope: str = "global"
) -> dict[str, Tensor]:
    """Boolean masks that drop exactly round(sparsity * n) of n weights, those of the least score.

    Args:
        scores: name -> saliency, larger is more worth keeping.
        ties: name -> second key for equal scores; equal in that too, the weight that comes first is dropped first.
        sparsity: share of the weights to drop, in [0, 1).
        scope: "global" ranks all weights together, "layer" drops the same share of each tensor.

    Returns:
        name -> mask of the tensor's shape, True where the weight stays.

    Raises:
        InputError: sparsity is outside [0, 1), the scope is unknown, a score is NaN, or nothing would be left.

    >>> scores = {"w": torch.tensor([3.0, 0.0, 0.0, 2.0])}
    >>> select(scores, {"w": torch.tensor([1.0, 5.0, 4.0, 1.0])}, 0.25)["w"].tolist()
    [True, True, False, True]
    """
    require_sparsity(sparsity)
    if choose("scope", scope, SCOPES) == "layer":
        return {
            name: _keep(scores[name].flatten(), ties[name].flatten(), sparsity, name).view_as(scores[name])
            for name in scores
        }
    names = list(scores)
    kept = _keep(
        torch.cat([scores[n].flatten() for n in names]),
        torch.cat([ties[n].flatten() for n in names]),
        sparsity,
        ", ".join(names),
    )
    parts = kept.split([scores[name].numel() for name in names])
    return {name: part.view_as(scores[name]) for name, part in zip(names, parts, strict=True)}


def require_sparsity(sparsity: float) -> None:
    """Refuse a sparsity that is no number in [0, 1).

    Raises:
        InputError: it is not.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        hint = (
            f"; for {sparsity} percent give {sparsity / 100:g}"
            if isinstance(sparsity, (int, float)) and 1 <= sparsity <= 100
            else ""
        )
        raise InputError(f"sparsity={sparsity!r} is not in [0, 1); it is the share of weights to drop{hint}")


def _keep(scores: Tensor, ties: Tensor, sparsity: float, where: str) -> Tensor:
    if bool(torch.isnan(scores).any()):
        raise InputError(
            f"{int(torch.isnan(scores).sum())} saliencies of {where} are NaN; check the model's weights and outputs"
        )
    drop = round(sparsity * len(scores))
    if drop >= len(scores) > 0:
        raise InputError(
            f"sparsity={sparsity} drops all {len(scores)} weights of {where}; lower it, or use scope='global'"
        )
    # two stable sorts, the second key first: the order is that of (score, tie, position)
    order = torch.argsort(ties, stable=True)
    order = order[torch.argsort(scores[order], stable=True)]
    kept = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    kept[order[:drop]] = False
    return kept


def counts(masks: Mapping[str, Tensor]) -> tuple[int, int]:
    """(weights kept, weights in all) under the masks."""
    return sum(int(mask.sum()) for mask in masks.values()), sum(math.prod(mask.shape) for mask in masks.values())
