"""From saliencies to masks: which weights stay, for an exact sparsity and with nothing left to chance."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dynaxx import counter
from dynaxx.compress.patterns import Pattern, grouped, spread
from dynaxx.errors import InputError, choose

SCOPES = ("global", "layer", "erk")


def select(
    scores: Mapping[str, Tensor],
    ties: Mapping[str, Tensor],
    sparsity: float,
    scope: str = "global",
    pattern: Pattern | None = None,
    live: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Boolean masks that drop exactly round(sparsity * n) of n weights, those of the least score.

    Args:
        scores: name -> saliency, larger is more worth keeping.
        ties: name -> second key for equal scores; equal in that too, the weight that comes first is dropped first.
        sparsity: share of the weights to drop, in [0, 1). With a pattern of blocks it is the share of the blocks.
        scope: "global" ranks all weights together; "layer" drops the same share of each tensor; "erk" shares out the
            same number of weights by Erdos-Renyi-Kernel density, proportional to (sum of the axes) / (product of the
            axes), so that large tensors lose more.
        pattern: None; (rows, columns) drops whole blocks by their summed score; "n:m" keeps the n best of every m
            consecutive inputs, whatever the scope; ``sparsity`` is then 1 - n/m. Tensors that a pattern does not
            divide are left whole.
        live: name -> weights that are still there; the others go first and never come back.

    Returns:
        name -> mask of the tensor's shape, True where the weight stays.

    Raises:
        InputError: sparsity is outside [0, 1), the scope is unknown, a score is NaN, nothing would be left, or the
            pattern divides no tensor.

    Source of "erk": Evci et al., Rigging the lottery, ICML 2020.

    >>> scores = {"w": torch.tensor([3.0, 0.0, 0.0, 2.0])}
    >>> select(scores, {"w": torch.tensor([1.0, 5.0, 4.0, 1.0])}, 0.25)["w"].tolist()
    [True, True, False, True]
    """
    require_sparsity(sparsity)
    choose("scope", scope, SCOPES)
    if live is not None:
        scores = {n: s.masked_fill(~live[n], -math.inf) if n in live else s for n, s in scores.items()}
    if pattern is not None:
        masks = _patterned(scores, ties, sparsity, scope, pattern)
    else:
        masks = _ranked(scores, ties, sparsity, scope)
    return (
        masks if live is None else {name: mask & live[name] if name in live else mask for name, mask in masks.items()}
    )


def _patterned(
    scores: Mapping[str, Tensor], ties: Mapping[str, Tensor], sparsity: float, scope: str, pattern: Pattern
) -> dict[str, Tensor]:
    fitting = [name for name in scores if pattern.fits(scores[name])]
    if not fitting:
        raise InputError(
            f"pattern={pattern.text!r} divides no prunable weight; shapes are "
            f"{[tuple(score.shape) for score in scores.values()][:5]}"
        )
    masks = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    if pattern.of:
        return masks | {name: pattern.best(scores[name], ties[name]) for name in fitting}
    sums = {name: grouped(scores[name], pattern).sum(-1) for name in fitting}
    second = {name: grouped(ties[name], pattern).sum(-1) for name in fitting}
    kept = _ranked(sums, second, sparsity, scope)
    return masks | {name: spread(kept[name], scores[name], pattern) for name in fitting}


def _ranked(scores: Mapping[str, Tensor], ties: Mapping[str, Tensor], sparsity: float, scope: str) -> dict[str, Tensor]:
    if scope == "global":
        names = list(scores)
        kept = _keep(
            torch.cat([scores[n].flatten() for n in names]),
            torch.cat([ties[n].flatten() for n in names]),
            sparsity,
            ", ".join(names),
        )
        parts = kept.split([scores[name].numel() for name in names])
        return {name: part.view_as(scores[name]) for name, part in zip(names, parts, strict=True)}
    shares = erk({name: tuple(score.shape) for name, score in scores.items()}, sparsity) if scope == "erk" else {}
    return {
        name: _keep(score.flatten(), ties[name].flatten(), shares.get(name, sparsity), name).view_as(score)
        for name, score in scores.items()
    }


def erk(shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """Sparsity of each tensor by Erdos-Renyi-Kernel density; they add up to exactly round(sparsity * n) weights.

    Tensors that would have a density above 1 stay dense, and the others make up for it.

    >>> {name: round(value, 2) for name, value in erk({"a": (10, 10), "b": (100, 100)}, 0.9).items()}
    {'a': 0.08, 'b': 0.91}
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kept = sum(sizes.values()) - round(sparsity * sum(sizes.values()))
    dense: set[str] = set()
    while True:
        free = [name for name in shapes if name not in dense]
        budget = kept - sum(sizes[name] for name in dense)
        scale = budget / sum(sum(shapes[name]) for name in free)
        over = [name for name in free if scale * sum(shapes[name]) > sizes[name]]
        if not over:
            break
        dense |= set(over)
    exact = {name: sizes[name] if name in dense else scale * sum(shapes[name]) for name in shapes}
    counts = {name: math.floor(value) for name, value in exact.items()}
    # the largest remainders take what rounding down has left
    for name in sorted(exact, key=lambda n: counts[n] - exact[n])[: kept - sum(counts.values())]:
        counts[name] += 1
    return {name: 1 - counts[name] / sizes[name] for name in shapes}


def shuffled(masks: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Each mask's weights in random places of the same tensor: the control that tells a choice of weights from a choice
    of how many per layer.

    >>> mask = torch.tensor([True, True, False, False, False])
    >>> int(shuffled({"w": mask})["w"].sum())
    2
    """
    found, start = {}, 0
    for name, mask in masks.items():
        keys = torch.arange(start, start + mask.numel(), device=mask.device)
        order = torch.argsort(counter.uniform(seed, keys))
        found[name] = mask.flatten()[order].view_as(mask)
        start += mask.numel()
    return found


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
    kept = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    if drop == 0:
        return kept
    # the order is that of (score, tie, position), and only at the threshold is there anything to order
    threshold = scores.kthvalue(drop).values
    kept = scores > threshold
    equal = (scores == threshold).nonzero()[:, 0]
    gone = drop - (len(scores) - int(kept.sum()) - len(equal))
    kept[equal[torch.argsort(ties[equal], stable=True)[gone:]]] = True
    return kept


def counts(masks: Mapping[str, Tensor]) -> tuple[int, int]:
    """(weights kept, weights in all) under the masks."""
    return sum(int(mask.sum()) for mask in masks.values()), sum(math.prod(mask.shape) for mask in masks.values())
