"""Pruning methods of the study, and what one of them does to one model at every sparsity."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pruning_models import Case, Sizes, answers, hits, packed
from torch import Tensor, nn

from dynaxx.compress.criteria import prunable_parameters
from dynaxx.compress.criteria.ranking import damped, mean_eigenvalue
from dynaxx.compress.divergence import divergence, outputs
from dynaxx.compress.masks import shuffled
from dynaxx.compress.recipe import Recipe
from dynaxx.compress.result import PruningResult
from dynaxx.model.calibrate import calibrate

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"criterion": "magnitude"},
    "magnitude, layer": {"criterion": "magnitude", "scope": "layer"},
    "magnitude, ERK": {"criterion": "magnitude", "scope": "erk"},
    "random": {"criterion": "random"},
    "lowest Fisher": {"criterion": "fisher"},
    "OBD": {"criterion": "obd"},
    "OBS": {"criterion": "obs", "curvature": "rows"},
    "OBS, mask only": {"criterion": "obs", "curvature": "rows", "compensation": "none"},
    "OBS, blocks of 32": {"criterion": "obs", "curvature": "block"},
    "OBS, K-FAC": {"criterion": "obs", "curvature": "kfac"},
    "OBS, observed labels": {"criterion": "obs", "curvature": "rows", "estimator": "empirical"},
    "magnitude + OBS update": {"criterion": "magnitude", "compensation": "obs", "curvature": "rows"},
    "magnitude + OBS update, recomputed": {"criterion": "magnitude", "compensation": "obs", "curvature": "rows"},
    "OBS, recomputed": {"criterion": "obs", "curvature": "rows"},
    "OBS, K-FAC, recomputed": {"criterion": "obs", "curvature": "kfac", "estimator": "monte_carlo"},
    "magnitude + K-FAC update": {"criterion": "magnitude", "compensation": "obs", "curvature": "kfac"},
    "magnitude + K-FAC update, recomputed": {
        "criterion": "magnitude",
        "compensation": "obs",
        "curvature": "kfac",
        "estimator": "monte_carlo",
    },
    "SNIP": {"criterion": "snip"},
    "GraSP": {"criterion": "grasp"},
    "SynFlow": {"criterion": "synflow"},
}
Norms = tuple[bool, ...]
"""BatchNorm statistics that are tried: True for new ones, False for the dense model's."""
NEW: Norms = (True,)
RECOMPUTED = {name for name in METHODS if name.endswith("recomputed")}


def file_name(name: str) -> str:
    """Of a method's cells."""
    return name.lower().replace(", ", "_").replace(" + ", "_and_").replace(" ", "_")


def pruned(
    case: Case, name: str, sizes: Sizes, seed: int, sparsities: Sequence[float] = SPARSITIES, norms: Norms = NEW
) -> Iterator[tuple[float, PruningResult, nn.Module, float]]:
    """(sparsity, result, the model under it with BatchNorm re-estimated, damping) for every sparsity."""
    recipe = Recipe(seed=seed, **METHODS[name])
    data: Any = [(x, y) for x, y in zip(case.curvature.split(128), case.labels.split(128), strict=True)]
    dense = outputs(case.model, case.held)
    if recipe.repeats:  # SynFlow's own hundred rounds
        for sparsity in sparsities:
            result = recipe.prune(case.model, data, sparsity)
            yield sparsity, *closest(case, case.model, [(0.0, result)], dense, norms)
        return
    if name not in RECOMPUTED:
        found = recipe.saliency(case.model, data)
        for sparsity in sparsities:
            yield sparsity, *best(case, recipe, case.model, found, sparsity, None, dense, sizes, norms)
        return
    work, live, step = case.model, None, 0
    targets = [0.0, *sparsities]
    for low, high in pairwise(targets):
        for j in range(1, sizes.steps + 1):  # the same share of what is left each time
            target = 1 - (1 - low) * ((1 - high) / (1 - low)) ** (j / sizes.steps)
            found, step = recipe.saliency(work, data, live, step), step + 1
            result, work, damping = best(case, recipe, work, found, target, live, dense, sizes, norms)
            live = result.masks
        yield high, result, work, damping


def best(
    case: Case,
    recipe: Recipe,
    model: nn.Module,
    found: Any,
    sparsity: float,
    live: Mapping[str, Tensor] | None,
    dense: Any,
    sizes: Sizes,
    norms: Norms = NEW,
) -> tuple[PruningResult, nn.Module, float]:
    """The damping of the grid (and BatchNorm, kept or new) whose model stays closest to the dense one on the held-out
    images.
    """
    prunable = prunable_parameters(model)
    unit = mean_eigenvalue(found) if recipe.coupled else 0.0

    def tried() -> Iterator[tuple[float, PruningResult]]:  # one at a time: each holds weights of its own
        for factor in sizes.grid if recipe.coupled else (0.0,):
            candidate = damped(found, factor * unit, prunable) if recipe.coupled else found
            yield factor, recipe.decide(candidate, sparsity, dict(live) if live is not None else None)

    return closest(case, model, tried(), dense, norms)


def closest(
    case: Case, model: nn.Module, tried: Iterable[tuple[float, PruningResult]], dense: Any, norms: Norms
) -> tuple[PruningResult, nn.Module, float]:
    """Of (damping, result) the result whose model stays closest to the dense one, the model under it, the damping."""
    found = []
    for factor, result in tried:
        for new in norms:
            under = result.apply(copy.deepcopy(model))
            if new:
                calibrate(under, list(case.calibration.split(250)))
            far = float(divergence(dense, outputs(under, case.held)).mean())
            found.append((far, factor, result, under))
    _, factor, result, under = min(found, key=lambda t: t[0])
    return result, under, factor


def one(
    case: Case, name: str, sizes: Sizes, seed: int, sparsities: Sequence[float] = SPARSITIES, norms: Norms = NEW
) -> dict[str, Any]:
    """Accuracy, divergence and prediction of one method at every sparsity."""
    dense = outputs(case.model, case.held)
    rows = {}
    for sparsity, result, model, damping in pruned(case, name, sizes, seed, sparsities, norms):
        far, right = float(divergence(dense, outputs(model, case.held)).mean()), answers(model, case.test)
        rows[f"{sparsity:g}"] = {
            "hits": int(right.sum()), "right": packed(right), "damping": damping, "held_out_divergence": far,
            "predicted": result.predicted_loss_increase, "kept": result.kept,
        }  # fmt: skip
        print(f"  {name} {sparsity:g}: {rows[f'{sparsity:g}']['hits']}", flush=True)
    right = answers(case.model, case.test)
    return {"dense": int(right.sum()), "right": packed(right), "count": len(right), "rows": rows}


def shuffling(case: Case, sizes: Sizes, seed: int) -> dict[str, Any]:
    """OBD's masks against the same numbers of weights in random places of each layer."""
    recipe, rows = Recipe(criterion="obd", seed=seed), {}
    found = recipe.saliency(case.model, case.curvature)
    for sparsity in SPARSITIES:
        result = recipe.decide(found, sparsity)
        random = PruningResult(shuffled(result.masks, seed), result.scores, result.report)
        under = random.apply(copy.deepcopy(case.model), data=list(case.calibration.split(250)))
        rows[f"{sparsity:g}"] = {"hits": hits(under, case.test)}
    return {"dense": hits(case.model, case.test), "count": len(case.test[1]), "rows": rows}
