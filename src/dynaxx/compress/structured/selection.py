"""Which units go: the cheapest first, until the model is small enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from dynaxx.errors import InputError, choose

SCOPES = ("global", "layer")


def select(
    scores: Mapping[str, Tensor],
    ties: Mapping[str, Tensor],
    cost: Callable[[Mapping[str, int]], float],
    target: float,
    *,
    scope: str = "global",
    cap: float = 0.9,
) -> dict[str, Tensor]:
    """Masks over units that drop the fewest, in ascending order of score, for which the cost is at most ``target``.

    Args:
        scores: group -> (units,), larger is more worth keeping.
        ties: group -> second key for equal scores.
        cost: of a model that keeps so many units of each group; never grows as units go.
        target: in the units of ``cost``.
        scope: "global" ranks the units of all groups together, "layer" by their rank within the group, so that each
            loses the same share.
        cap: largest share of a group that may go; one unit always stays.

    Returns:
        group -> boolean (units,), True where the unit stays.

    Raises:
        InputError: the target cannot be reached; the message says what can.

    Cost: log2 of the number of units times the price of ``cost``.

    >>> masks = select({"a": torch.tensor([3.0, 1.0, 2.0])}, {"a": torch.zeros(3)}, lambda kept: kept["a"], 2)
    >>> masks["a"].tolist()
    [True, False, True]
    """
    choose("scope", scope, SCOPES)
    if isinstance(cap, bool) or not isinstance(cap, (int, float)) or not 0 < cap <= 1:
        raise InputError(f"cap={cap!r} is not in (0, 1]; it is the largest share of a layer's channels that may go")
    names, numbers, values, ranks = list(scores), [], [], []
    for number, name in enumerate(names):
        score, size = scores[name].double().cpu(), len(scores[name])
        if bool(torch.isnan(score).any()):
            raise InputError(f"scores of {name!r} are NaN; check the model's weights and outputs")
        order = torch.argsort(ties[name].double().cpu(), stable=True)
        order = order[torch.argsort(score[order], stable=True)]
        rank = torch.empty(size, dtype=torch.long)
        rank[order] = torch.arange(size)
        ranks.append(rank)
        numbers.append(torch.full((size,), number))
        values.append((rank + 1) / size if scope == "layer" else score)
    sizes = [len(rank) for rank in ranks]
    allowed = [min(size - 1, math.floor(cap * size)) for size in sizes]
    group, rank, value = torch.cat(numbers), torch.cat(ranks), torch.cat([v.double() for v in values])
    # within a group by rank, which knows the ties; stable, so equal scores go in the model's order
    order = torch.argsort(rank, stable=True)
    order = order[torch.argsort(value[order], stable=True)]
    order = order[rank[order] < torch.tensor(allowed)[group[order]]]

    def left(drops: int) -> dict[str, int]:
        gone = torch.bincount(group[order[:drops]], minlength=len(names)).tolist()
        return {name: size - lost for name, size, lost in zip(names, sizes, gone, strict=True)}

    least = cost(left(len(order)))
    if least > target:
        dense = cost(left(0))
        raise InputError(
            f"reduction={1 - target / dense:.3g} cannot be reached: without all units that may go, {least / dense:.1%} "
            f"of the operations stay. Ask for less, raise cap={cap}, or protect fewer layers"
        )
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(left(middle)) <= target else (middle + 1, high)
    kept = torch.ones(len(group), dtype=torch.bool)
    kept[order[:low]] = False
    edges = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    return {name: kept[a:b] for name, (a, b) in zip(names, pairwise(edges), strict=True)}


def require_reduction(reduction: float) -> None:
    """Refuse a reduction that is no number in (0, 1).

    Raises:
        InputError: it is not.
    """
    if isinstance(reduction, bool) or not isinstance(reduction, (int, float)) or not 0 < reduction < 1:
        raise InputError(f"reduction={reduction!r} is not in (0, 1); it is the share of the operations to take away")
