"""What a criterion predicted against what happened, layer by layer and sparsity by sparsity."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.compress.criteria import Saliency
from dynaxx.compress.divergence import divergence, outputs
from dynaxx.compress.masks import require_sparsity
from dynaxx.compress.recipe import Recipe
from dynaxx.compress.result import PruningResult
from dynaxx.errors import InputError
from dynaxx.model.calibrate import calibrate
from dynaxx.model.network import Output
from dynaxx.monitor.snapshot import evaluating


@dataclass(frozen=True)
class Foreseen:
    """One layer (or all of them) pruned to one sparsity.

    Args:
        layer: the parameter's name; "all" for the whole model.
        sparsity: share of its weights that went.
        predicted: 1/2 dw^T (F + damping I) dw, nats per example.
        measured: mean KL from the dense model's predictions, nats per example. stderr: its standard error over
            examples.
    """

    layer: str
    sparsity: float
    predicted: float
    measured: float
    stderr: float


def foresee(
    recipe: Recipe, model: nn.Module, data: Any, sparsities: Sequence[float] = (0.5, 0.8, 0.9), held: Any = None
) -> list[Foreseen]:
    """Prune each layer alone, and all of them, and hold the prediction against the divergence that follows.

        predicted 1/2 dw^T (F + damping I) dw,    measured KL(p(.|x, w) || p(.|x, w + dw)), the mean over ``held``

    BatchNorm is re-estimated where the model has it; the measured number then holds that too.

    Args:
        recipe: with criterion "obd" or "obs", or with compensation "obs"; one step.
        model: in evaluation mode; left as it is.
        data: what the curvature is taken on.
        held: what is measured on; default ``data``.

    Raises:
        InputError: the recipe makes no prediction, or has several steps.

    Cost: one curvature, and for each layer and sparsity a change and a pass over ``held``.

    >>> layer = nn.Linear(3, 2).double()
    >>> rows = foresee(Recipe("obd", likelihood="gaussian"), layer, torch.eye(3).double(), sparsities=(1 / 3,))
    >>> [row.layer for row in rows], abs(rows[0].predicted - rows[0].measured) < 1e-12
    (['weight', 'all'], True)
    """
    if recipe.repeats:
        raise InputError("predictions are compared in one step with one damping; leave out steps= and damping='auto'")
    if recipe.criterion not in ("obd", "obs") and not recipe.coupled:
        raise InputError(f"criterion={recipe.criterion!r} predicts nothing; use 'obd' or 'obs', or compensation='obs'")
    for sparsity in sparsities:
        require_sparsity(sparsity)
    held = data if held is None else held
    found = recipe.saliency(model, data)
    dense = outputs(model, held, likelihood=recipe.likelihood, predict=recipe.predict)
    rows = []
    names = list(found.scores)
    for layer in [*names, "all"]:
        whole = {name: torch.ones_like(score, dtype=torch.bool) for name, score in found.scores.items()}
        for sparsity in sparsities:
            masks = recipe.decide(_only(found, names if layer == "all" else [layer]), sparsity).masks
            rows.append(_measured(recipe, model, data, held, found, dense, layer, sparsity, whole | masks))
    return rows


def _only(found: Saliency, names: list[str]) -> Saliency:
    """The ranking of some of the parameters, without what follows from it."""
    parts = {part: {name: getattr(found, part)[name] for name in names} for part in ("scores", "ties")}
    return replace(found, scores=parts["scores"], ties=parts["ties"], curvature=None)


def _measured(
    recipe: Recipe,
    model: nn.Module,
    data: Any,
    held: Any,
    found: Saliency,
    dense: list[Output],
    layer: str,
    sparsity: float,
    masks: dict[str, Tensor],
) -> Foreseen:
    consequence = found.consequence(masks)
    pruned = PruningResult(masks, {}, {}, consequence.weights).apply(copy.deepcopy(model))
    with evaluating(pruned):
        calibrate(pruned, data, predict=recipe.predict)
    far = divergence(
        dense, outputs(pruned, held, likelihood=recipe.likelihood, predict=recipe.predict), recipe.likelihood
    )
    stderr = float(far.std()) / len(far) ** 0.5 if len(far) > 1 else float("nan")
    return Foreseen(layer, sparsity, consequence.total or 0.0, float(far.mean()), stderr)


def rank_correlation(rows: Sequence[Foreseen]) -> float:
    """Spearman's rank correlation of predicted and measured.

    Raises:
        InputError: there are fewer than three.
    """
    if len(rows) < 3:
        raise InputError(f"a rank correlation needs three points or more; got {len(rows)}")
    predicted, measured = (
        torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64).argsort().argsort().double()
        for name in ("predicted", "measured")
    )
    return float(torch.corrcoef(torch.stack([predicted, measured]))[0, 1])
