"""``shrink``: whole channels and heads out of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from dynaxx import estimators, likelihoods
from dynaxx.compress.measure import cost, flops, latency, outputs, require_same
from dynaxx.compress.structured import scores as criteria
from dynaxx.compress.structured.channels import Group, groups_of
from dynaxx.compress.structured.cutting import cut, heads_left, indices, silence
from dynaxx.compress.structured.result import Architecture, StructuredResult
from dynaxx.compress.structured.selection import require_reduction, select
from dynaxx.errors import InputError, choose
from dynaxx.likelihoods import Likelihood
from dynaxx.model.calibrate import calibrate
from dynaxx.model.data import Batch, Data
from dynaxx.model.network import Network, Predict
from dynaxx.model.reading import batches, unmoved
from dynaxx.model.selection import unwrap

TIMED = 32  # examples in the batch that latency is measured on


def shrink(
    model: nn.Module,
    data: Any,
    *,
    reduction: float,
    criterion: str = "fisher",
    scope: str = "global",
    per_flop: bool = False,
    cap: float = 0.9,
    protect: Sequence[str] = (),
    likelihood: str | Likelihood = "categorical",
    estimator: str = "exact",
    samples: int = 1,
    seed: int = 0,
    predict: Predict | None = None,
    repeats: int = 11,
    progress: bool = False,
) -> StructuredResult:
    """A smaller model without its least useful channels and attention heads.

        fisher     1/2 (1/N) sum_n sum_k (sum_positions a g_k)^2    nats it costs to take the unit away, to second order
        magnitude  L2 norm of the filters that make it
        slimming   |gamma| of the BatchNorm it passes
        random

    Layers are followed through the model by Torch-Pruning's dependency graph (an extra). The smaller model is checked
    against the dense one with the same units silenced, and BatchNorm's statistics are re-estimated from ``data``.

    Args:
        model: in evaluation mode. It is not changed.
        data: as for ``dynaxx.fisher``; read once for the scores and once for BatchNorm.
        reduction: share of the operations (FLOPs of matrix products and convolutions) to take away, in (0, 1).
        criterion, scope: scope "global" ranks all units together, "layer" takes the same share of each group. Norms of
            filters differ between layers for reasons of scale, so "magnitude" may want "layer".
        per_flop: rank by score per operation that the unit saves (Theis et al. 2018).
        cap: largest share of a group's units that may go.
        protect: names of modules to leave whole, their inputs and their outputs.
        likelihood, estimator, samples, seed, predict: as for ``dynaxx.fisher``; of criterion="fisher" (and the seed of
            "random"). estimator="empirical" is Theis et al.'s own, with the observed labels.
        repeats: forward passes to measure the latency by, on up to 32 examples; 0 for none.

    Returns:
        StructuredResult with ``model``, ``kept``, ``scores``, ``predicted``, ``report`` and ``save``.

    Raises:
        InputError: Torch-Pruning is missing, nothing can be pruned (with the reason for each group), the reduction
            cannot be reached, or the model uses channels in a way its graph does not show.

    Cost: fisher takes one reverse pass per cotangent of the estimator and batch, to one gate a unit; three copies of
    the model besides.

    Source: Fang et al. 2023 (dependency graph); Theis et al. 2018, Molchanov et al. 2019 (fisher); Li et al. 2017
    (filter norms); Liu et al. 2017 (slimming).

    >>> import importlib.util, pytest, torch
    >>> if importlib.util.find_spec("torch_pruning") is None: pytest.skip("needs torch-pruning")
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> small = shrink(model, torch.randn(20, 4), reduction=0.5, repeats=0).model
    >>> small[0].out_features, small[2].in_features
    (4, 4)
    """
    require_reduction(reduction)
    choose("criterion", criterion, criteria.CRITERIA)
    dense = unwrap(model)
    meaning = likelihoods.resolve(likelihood)
    chosen = estimators.resolve(estimator, meaning, samples=samples, seed=seed)
    network = Network(dense, meaning, lambda name, parameter: True, predict)
    first = first_batch(dense, data)
    few = first.part(0, min(2, first.count))
    groups, remarks = groups_of(dense, few, predict, protect)
    if not groups:
        raise InputError("no channel of this model can be taken out: " + ("; ".join(remarks) or "it has no such layer"))
    ties, count = criteria.magnitudes(dense, groups), 0
    if criterion == "fisher":
        with unmoved(data):
            scores, count = criteria.fisher_scores(network, Data(data, network.device), groups, chosen, progress)
    elif criterion == "magnitude":
        scores = ties
    elif criterion == "slimming":
        scores = criteria.slimming(dense, groups)
        groups = [group for group in groups if group.name in scores]
    else:
        scores = criteria.random(groups, seed)
    scores = {name: value.cpu() for name, value in scores.items()}
    operations = Operations(dense, groups, flops(dense, few, predict))
    ranked = {name: value / operations.of_unit(name) for name, value in scores.items()} if per_flop else scores
    target = (1 - reduction) * operations.total
    masks = select(ranked, ties, operations, target, scope=scope, cap=cap)
    kept, attributes = indices(groups, masks), heads_left(dense, groups, masks)
    small = cut(copy.deepcopy(dense), kept, attributes)
    try:
        found = outputs(small, few, predict)
    except RuntimeError as error:
        raise InputError(
            f"the model no longer runs without {list(kept)[:5]}...: {error}. It uses sizes that its graph does not "
            f"show; keep the layers concerned whole with protect=[...]"
        ) from error
    require_same(found, outputs(silence(copy.deepcopy(dense), groups, masks), few, predict), "the smaller model")
    predicted = None
    if criterion == "fisher":
        predicted = {group.name: float(scores[group.name][~masks[group.name]].sum()) for group in groups}
    calibrate(small, data, predict=predict)
    rows = [
        {"name": group.name, "kept": int(masks[group.name].sum()), "total": group.units}
        | ({"unit": "heads"} if group.attention else {"unit": "channels"})
        | ({"predicted": predicted[group.name]} if predicted else {})
        for group in groups
    ]
    details = {"criterion": criterion, "scope": scope, "per_flop": per_flop, "examples": count, "seed": seed}
    if criterion == "fisher":
        details["estimator"] = estimator
    report = facts(dense, small, first, predict, repeats) | details
    report |= {"reduction": float(reduction), "layers": rows, "remarks": remarks}
    return StructuredResult(small.eval(), kept, scores, report, Architecture(attributes), predicted)


class Operations:
    """Operations of an example by how many units are left: a layer's are proportional to its inputs times outputs.

    Args:
        counted: by module, of the dense model; what no group touches stays.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], counted: Mapping[str, float]) -> None:
        self.total, self.sizes = counted[""], {group.name: group.units for group in groups}
        self.shares: dict[str, dict[str, list[tuple[str, float]]]] = {}  # layer -> side -> (group, share of a unit)
        for group in groups:
            for member in group.members:
                if counted.get(member.module, 0) and not isinstance(model.get_submodule(member.module), nn.PReLU):
                    share = float((member.units >= 0).double().mean()) / group.units
                    sides = self.shares.setdefault(member.module, {})
                    sides.setdefault(member.side, []).append((group.name, share))
        self.counted = {name: counted[name] for name in self.shares}

    def __call__(self, left: Mapping[str, int]) -> float:
        """With so many units of each group."""
        total = self.total
        for name, sides in self.shares.items():
            whole = 1.0
            for pieces in sides.values():
                whole *= 1 - sum(share * (self.sizes[group] - left[group]) for group, share in pieces)
            total -= self.counted[name] * (1 - whole)
        return total

    def of_unit(self, name: str) -> float:
        """What one unit of a group saves, alone."""
        return self.total - self({**self.sizes, name: self.sizes[name] - 1})


def first_batch(model: nn.Module, data: Any) -> Batch:
    """The first batch of data that will be read again.

    Raises:
        InputError: it can be read once only, or is empty.
    """
    if isinstance(data, Iterator):
        raise InputError(
            f"data is a {type(data).__name__}, which can be read once, and this reads it twice: for the scores and for "
            f"BatchNorm; give a list or a DataLoader"
        )
    with unmoved(data):
        return next(batches(model, data))


def facts(dense: nn.Module, small: nn.Module, batch: Batch, predict: Predict | None, repeats: int) -> dict[str, Any]:
    """Parameters, FLOPs, bytes and latency of both models."""
    few = batch.part(0, min(2, batch.count))
    costs = {name: asdict(cost(model, few, predict)) for name, model in (("dense", dense), ("small", small))}
    found: dict[str, Any] = {
        what: {name: values[what] for name, values in costs.items()} for what in ("parameters", "flops", "bytes")
    }
    if repeats:
        timed = latency(
            {"dense": dense, "small": small}, batch.part(0, min(TIMED, batch.count)), predict, repeats=repeats
        )
        found["latency"] = {name: value._asdict() for name, value in timed.items()}
    return found
