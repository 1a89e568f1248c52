"""``dynaxx.prune``: masks from curvature. The model itself is left as it is."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynaxx.compress.criteria import CRITERIA, Saliency, saliency
from dynaxx.compress.masks import SCOPES, require_sparsity, select
from dynaxx.compress.result import PruningResult, layer_rows
from dynaxx.errors import choose
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Predict
from dynaxx.model.selection import Selector


def prune(
    model: nn.Module,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    sparsity: float,
    criterion: str = "obd",
    scope: str = "global",
    params: Selector = None,
    estimator: str = "exact",
    damping: float | None = None,
    seed: int = 0,
    predict: Predict | None = None,
) -> PruningResult:
    """Which weights of a trained model to drop.

        magnitude  |w_i|                    needs no data
        obd        1/2 F_ii w_i^2           the loss rises by the sum of these, to second order, if F were diagonal
        obs        w_i^2 / (2 [F^-1]_ii)    weights that stay move to make up: dw = -F^-1[:,Q] (F^-1[Q,Q])^-1 w_Q, F
        damped fisher     F_ii                     a control that ignores the size of the weight: it collapses at high
            sparsity
        random                              the other control

    No criterion is best everywhere. One-shot validation accuracy (400 examples) of the demo's convolutional net in two
    trainings that differ in the order of the data alone: at 80 % sparsity obs 95 and 94 %, obd 95 and 90, magnitude 89
    and 84; at 90 % sparsity obs 64 and 80, obd 67 and 63, magnitude 71 and 52. Fine-tuning narrows all differences.

    Args:
        model: in evaluation mode. It is not changed; ``result.apply(model)`` changes it.
        data, likelihood, estimator, seed, predict: as for ``dynaxx.fisher``. data may be None for magnitude and random.
        sparsity: share of the prunable weights to drop, in [0, 1): exactly round(sparsity * prunable) of them.
        criterion, scope: scope "global" ranks all prunable weights together, "layer" drops the same share of each
            tensor.
        params: what may be pruned; default every parameter with two axes or more, so that biases and norms are kept.
        damping: added to F's diagonal; default none for obd, 0.1 times F's mean eigenvalue for obs. As it grows both
            turn into magnitude.

    Returns:
        PruningResult with ``masks``, ``scores``, ``report``, ``weights`` (obs), ``predicted_loss_increase`` and
        ``apply``. Equal scores, such as the zeros of dead units, are ranked by magnitude, then by position, so the
        masks are deterministic.

    Raises:
        InputError: an option or the data cannot be used; the message says which and what would do. SizeError: obs on
            too many parameters.

    Cost: magnitude and random none; obd and fisher one sweep over the data with all columns of the metric; obs 24 p^2
    bytes and p^3 operations.

    Source: LeCun, Denker & Solla 1989 (obd); Hassibi & Stork 1992 (obs); Kurtic et al. 2022 (joint groups).

    >>> import torch
    >>> result = prune(nn.Linear(4, 5), torch.randn(20, 4), sparsity=0.5)
    >>> result.kept, result.prunable
    (10, 20)
    """
    require_sparsity(sparsity)
    choose("criterion", criterion, CRITERIA)
    choose("scope", scope, SCOPES)
    found = saliency(
        criterion,
        model,
        data,
        likelihood=likelihood,
        params=params,
        estimator=estimator,
        damping=damping,
        seed=seed,
        predict=predict,
    )
    return decide(found, sparsity, scope, {"estimator": estimator, "seed": seed})


def decide(
    found: Saliency, sparsity: float, scope: str = "global", details: dict[str, Any] | None = None
) -> PruningResult:
    """Masks of one sparsity from saliencies that may serve several.

    Raises:
        InputError: as for ``dynaxx.compress.masks.select``.
    """
    masks = select(found.scores, found.ties, sparsity, scope)
    layers = layer_rows(masks)
    remarks = [f"{row['name']} loses all of its {row['total']} weights" for row in layers if row["kept"] == 0]
    if found.criterion in ("obd", "fisher"):
        still = sum(int((score == 0).sum()) for score in found.scores.values())
        if still:
            remarks.append(
                f"{still} weights have no curvature at all on this data (dead units or inputs); among them magnitude "
                f"decides"
            )
    if found.criterion in ("fisher", "random"):
        remarks.append(f"criterion={found.criterion!r} is a control, not a recommendation")
    report = {
        "criterion": found.criterion,
        "scope": scope,
        "sparsity": float(sparsity),
        "examples": found.count,
        "damping": found.damping,
        **(details or {}),
        "layers": layers,
        "remarks": remarks,
    }
    return PruningResult(masks, found.scores, report, found.compensate(masks), found.predicted(masks))
