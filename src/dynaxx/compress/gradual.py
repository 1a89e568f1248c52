"""Pruning in steps: a little, look again where the model now is, a little more; and damping chosen on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dynaxx.compress.criteria import UNTRAINED, Saliency, prunable_parameters
from dynaxx.compress.criteria.ranking import damped, mean_eigenvalue
from dynaxx.compress.divergence import divergence, outputs
from dynaxx.compress.masks import counts, require_sparsity
from dynaxx.compress.result import PruningResult
from dynaxx.compress.schedule import cubic, exponential
from dynaxx.errors import InputError
from dynaxx.model.calibrate import calibrate
from dynaxx.model.data import Data
from dynaxx.model.network import Output
from dynaxx.model.reading import device_of
from dynaxx.model.selection import unwrap

if TYPE_CHECKING:
    from dynaxx.compress.recipe import Recipe

Told = Callable[[int, int], object]
"""Called with (steps done, steps)."""
GRID = (1e-3, 1e-2, 0.1, 1.0, 10.0)
"""Dampings that "auto" tries, times F's mean eigenvalue."""
HELD_OUT = 0.25
"""Share of the examples that "auto" keeps from the curvature and chooses on."""


def gradual(
    recipe: Recipe,
    model: nn.Module,
    data: Any,
    sparsity: float,
    live: dict[str, Tensor] | None = None,
    progress: Told | None = None,
) -> PruningResult:
    """Prune a copy of the model in ``recipe.rounds`` steps, each from curvature taken where the last one ended.

    What has gone stays away, what is left goes on moving, and BatchNorm is re-estimated after each step. On a quadratic
    loss the predictions of the steps add up to the increase exactly: every step starts from the optimum on the weights
    that are there.

    Memory: a copy of the model, two with damping "auto".
    """
    require_sparsity(sparsity)
    work = copy.deepcopy(unwrap(model))
    measured, held = _parted(work, data) if recipe.damping == "auto" else (data, None)
    dense = outputs(work, held, likelihood=recipe.likelihood, predict=recipe.predict) if held is not None else []
    kept, total = counts(live) if live else (1, 1)
    schedule = exponential if recipe.criterion == "synflow" else cubic
    targets = schedule(sparsity, recipe.rounds, 1 - kept / total)
    masks, shares, dampings, result = dict(live or {}), dict[str, float](), list[float](), None
    for step, target in enumerate(targets):
        found = recipe.saliency(work, measured, masks or None, step)
        if held is not None:
            found = _chosen(recipe, work, found, target, masks, measured, held, dense)
        result = recipe.decide(found, target, masks or None)
        masks = result.masks
        _settle(recipe, work, result, measured)
        dampings.append(found.damping)
        for name, share in (result.predicted or {}).items():
            shares[name] = shares.get(name, 0.0) + share
        if progress is not None:
            progress(step + 1, len(targets))
    assert result is not None
    for row in result.report["layers"]:
        if row["name"] in shares:
            row["predicted"] = shares[row["name"]]
    return replace(
        result,
        predicted=shares or None,
        predicted_loss_increase=sum(shares.values()) if shares else None,
        report=result.report | {"sparsity": float(sparsity), "dampings": dampings},
    )


def _settle(recipe: Recipe, model: nn.Module, result: PruningResult, data: Any) -> None:
    result.apply(model)
    if data is not None and recipe.criterion not in UNTRAINED:
        calibrate(model, data, predict=recipe.predict)


def _chosen(
    recipe: Recipe,
    model: nn.Module,
    found: Saliency,
    sparsity: float,
    live: dict[str, Tensor],
    measured: Any,
    held: Any,
    dense: list[Output],
) -> Saliency:
    """The saliency with the damping of the grid whose pruned model stays closest to the dense one on held-out data."""
    prunable, unit, tried = prunable_parameters(model, recipe.params), mean_eigenvalue(found), []
    for factor in GRID:
        candidate = damped(found, factor * unit, prunable)
        scratch = copy.deepcopy(model)
        try:
            _settle(recipe, scratch, recipe.decide(candidate, sparsity, live or None), measured)
        except InputError:  # a damping below rounding is no candidate
            continue
        after = outputs(scratch, held, likelihood=recipe.likelihood, predict=recipe.predict)
        tried.append((float(divergence(dense, after, recipe.likelihood).mean()), candidate))
    if not tried:
        raise InputError("no damping of the grid gives an inverse on this data; give one with damping=")
    return min(tried, key=lambda pair: pair[0])[1]


def _parted(model: nn.Module, data: Any) -> tuple[list[Any], list[Any]]:
    """The first three quarters of the examples, and the rest, as batches.

    Raises:
        InputError: there are fewer than eight.
    """
    batches = list(Data(data, device_of(model)))
    count = sum(batch.count for batch in batches)
    cut = count - round(HELD_OUT * count)
    if count < 8:
        raise InputError(f"damping='auto' chooses on a quarter of the data, and there are {count} examples; give more")
    first: list[Any] = []
    last: list[Any] = []
    for batch in batches:
        inside = min(max(cut - batch.start, 0), batch.count)
        if inside:
            first.append(_raw(batch.part(0, inside).raw))
        if inside < batch.count:
            last.append(_raw(batch.part(inside, batch.count).raw))
    return first, last


def _raw(raw: Any) -> Any:
    return tuple(raw) if isinstance(raw, list) else raw
