"""Saliencies by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import counter
from dynaxx.compress.criteria.base import Saliency, movable_names, prunable_parameters, scores_by_name
from dynaxx.compress.criteria.untrained import grasp, snip, synflow
from dynaxx.compress.curvature.build import DENSE, KINDS, measure
from dynaxx.errors import InputError, choose
from dynaxx.fisher import fisher
from dynaxx.model.selection import Selector, layout_of, unwrap

CRITERIA = ("magnitude", "obd", "obs", "fisher", "random", "snip", "grasp", "synflow")
DATA_FREE = ("magnitude", "random")
UNTRAINED = ("snip", "grasp", "synflow")
COMPENSATIONS = ("obs", "none")
DAMPING = 0.1
"""Times the mean eigenvalue: the one delicate setting of a coupled curvature, so it scales with F.

Measured on the demo's convolutional net (seed 0, 20 epochs at 0.1, 512 examples): one-shot validation accuracy at 90 %
sparsity was 9, 48, 70, 80 and 77 % for factors of 1e-4, 1e-3, 1e-2, 0.1 and 1. One net, chosen on its validation data;
``damping="auto"`` chooses anew.
"""


def saliency(
    criterion: str,
    model: nn.Module,
    data: Any,
    *,
    likelihood: Any = "categorical",
    params: Selector = None,
    estimator: str | None = None,
    damping: float | None = None,
    seed: int = 0,
    predict: Any = None,
    curvature: str | None = None,
    compensation: str | None = None,
    block: int = 32,
    samples: int = 1,
    live: Mapping[str, Tensor] | None = None,
) -> Saliency:
    """Scores of a model's prunable weights.

        magnitude |w|      obd 1/2 (F_ii + damping) w_i^2      obs w_i^2 / (2 [(F + damping I)^{-1}]_ii)      fisher
        F_ii      random uniform      snip |w g|      grasp w (H g)      synflow |w dR/dw|

    Args:
        criterion: one of these.
        model, data, likelihood, estimator, samples, seed, predict: as for ``dynaxx.fisher``; data may be None for
            magnitude and random without compensation; snip and grasp need labels. estimator defaults to "exact", to
            "monte_carlo" for rows and block.
        params: the prunable parameters; default those with two axes or more that require grad, so that biases and norms
            are kept.
        damping: added to the curvature's diagonal; default 0 for obd, 0.1 times the mean eigenvalue where weights are
            coupled.
        curvature: as for ``curvature.build.measure``; default "dense" up to 4096 parameters, "kfac" beyond.
        compensation: "obs" moves the weights that stay to the constrained optimum, whoever ranks them; "none" leaves
            them. Default "obs" for obs, "none" for the rest.
        block: of curvature="block".
        live: name -> mask of weights that are still there.

    Raises:
        InputError: an unknown name, no prunable parameter, damping that is negative (or zero where an inverse is
            needed), or data is needed and missing.
        SizeError: the curvature would not fit into memory; the message names one that would.

    Cost: magnitude and random none; obd and fisher one sweep with all columns of the metric; obs and compensation that
    of ``curvature``.
    """
    choose("criterion", criterion, CRITERIA)
    compensation = choose("compensation", compensation or ("obs" if criterion == "obs" else "none"), COMPENSATIONS)
    if curvature is not None:
        choose("curvature", curvature, KINDS)
    require_damping(damping)
    prunable = prunable_parameters(model, params)
    if data is None and (criterion not in DATA_FREE or compensation == "obs"):
        raise InputError(
            f"criterion={criterion!r} with compensation={compensation!r} needs data to measure on; give some, or use "
            f"criterion='magnitude'"
        )
    ties = {name: parameter.detach().abs() for name, parameter in prunable.items()}
    options: dict[str, Any] = {"likelihood": likelihood, "seed": seed, "predict": predict}
    sampled = {**options, "estimator": estimator, "samples": samples}
    coupled = criterion == "obs" or compensation == "obs"
    found = Saliency(criterion, {}, ties)
    if coupled or criterion == "obd":
        names = movable_names(model, prunable) if coupled else list(prunable)
        kind = (curvature or default_kind(model, names)) if coupled else "diagonal"
        measured = measure(kind, unwrap(model), data, names, live=live, block=block, **sampled)
        parameters = dict(unwrap(model).named_parameters())
        # in the model's dtype: at a hundred million weights a float64 copy of all is what there is least room for
        flat = torch.cat([parameters[name].detach().flatten() for name in measured.layout.names])
        found = replace(
            found, count=measured.count, layout=measured.layout, chosen=measured.chosen,
            curvature=measured.curvature, values=flat[measured.chosen], compensates=compensation == "obs",
        )  # fmt: skip
        found = damped(found, _damping(damping, found) if coupled else damping or 0.0, prunable)
    if criterion not in ("obs", "obd"):
        scores, count = _simple(criterion, model, data, prunable, options, estimator, ties)
        found = replace(found, scores=scores, count=max(count, found.count))
    return found


def damped(found: Saliency, damping: float, prunable: dict[str, nn.Parameter]) -> Saliency:
    """The same saliency with another damping; decompositions are shared."""
    assert found.curvature is not None
    found = replace(found, curvature=found.curvature.damped(damping))
    return replace(found, scores=scores_by_name(found, prunable)) if found.criterion in ("obs", "obd") else found


def mean_eigenvalue(found: Saliency) -> float:
    """tr F over the number of weights that are there: the unit of damping.

    Raises:
        InputError: it is zero.
    """
    assert found.curvature is not None
    mean = found.curvature.trace() / max(1, found.curvature.size)
    if mean <= 0:
        raise InputError(
            "the Fisher matrix is zero on this data (the model is certain of every example); use criterion='magnitude'"
        )
    return mean


def default_kind(model: nn.Module, names: list[str]) -> str:
    """The whole matrix while it is small, K-FAC beyond: a few hundred rows of a root see too few directions there."""
    chosen = set(names)
    p = sum(parameter.numel() for name, parameter in unwrap(model).named_parameters() if name in chosen)
    return "dense" if p <= DENSE else "kfac"


def require_damping(damping: Any) -> None:
    """Refuse what is no finite number >= 0.

    Raises:
        InputError: it is not.
    """
    if damping is not None and (
        isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 <= damping < math.inf
    ):
        raise InputError(f"damping={damping!r} is not a finite number >= 0; leave it out for the default")


def _damping(given: float | None, found: Saliency) -> float:
    added = DAMPING * mean_eigenvalue(found) if given is None else float(given)
    if added <= 0:
        raise InputError(f"damping={given!r} leaves a singular Fisher matrix without an inverse; give a positive one")
    return added


def _simple(
    criterion: str,
    model: nn.Module,
    data: Any,
    prunable: dict[str, nn.Parameter],
    options: dict[str, Any],
    estimator: str | None,
    ties: dict[str, Tensor],
) -> tuple[dict[str, Tensor], int]:
    """Scores that need no inverse, and the examples behind them."""
    if criterion == "magnitude":
        return {name: tie.double() for name, tie in ties.items()}, 0
    if criterion == "random":
        layout = layout_of(prunable)
        return layout.unravel(counter.uniform(options["seed"], torch.arange(layout.size, device=layout.device))), 0
    if criterion == "fisher":
        operator = fisher(
            model, data, form="diagonal", params=list(prunable), estimator=estimator or "exact", **options
        )
        return {name: value.double() for name, value in operator.unravel(operator.diagonal()).items()}, operator.count
    if criterion == "synflow":
        return synflow(unwrap(model), data, prunable, options["predict"])
    method = snip if criterion == "snip" else grasp
    return method(unwrap(model), data, prunable, options["likelihood"], options["predict"])
