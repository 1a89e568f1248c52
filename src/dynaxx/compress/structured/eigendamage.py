"""``eigendamage``: rows and columns out of layers, in the coordinates in which their metric is nearly diagonal."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import estimators, likelihoods
from dynaxx.assembly.sweep import Sweeper
from dynaxx.compress.measure import flops, outputs
from dynaxx.compress.structured.bottleneck import Bottleneck, core_of, turned
from dynaxx.compress.structured.eigenbasis import Price, Turned, direction_scores, positions, turn
from dynaxx.compress.structured.result import Architecture, StructuredResult, replace
from dynaxx.compress.structured.selection import require_reduction, select
from dynaxx.compress.structured.shrink import facts, first_batch
from dynaxx.errors import InputError, choose
from dynaxx.likelihoods import Likelihood
from dynaxx.model.calibrate import calibrate
from dynaxx.model.data import Data
from dynaxx.model.network import Network, Predict
from dynaxx.model.reading import unmoved
from dynaxx.model.selection import unwrap

CURVATURES = ("kfac", "ekfac")


def eigendamage(
    model: nn.Module,
    data: Any,
    *,
    reduction: float,
    curvature: str = "kfac",
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
    """A smaller model whose layers drop inputs and outputs in the eigenbasis of their Kronecker-factored metric.

        W* = Q_G^T W Q_A,   Theta = 1/2 W*^2 x (l_G l_A^T),   W -> Q_G' W*' Q_A'^T

    with the eigenvectors Q and eigenvalues l of the factors G (outputs) and A (input channels; for a kernel, the second
    moments of a direction at all pairs of taps take the place of l_A). Sums of Theta over rows and columns rank all
    directions of all layers together. A layer becomes a ``Bottleneck`` of two or three small
    layers, whichever takes fewer operations; where none takes fewer than the layer, it stays as it is.

    Needs no dependency graph: the widths between layers do not change, so any model will do. BatchNorm's statistics are
    re-estimated from ``data``. A bottleneck that is there already gives up directions of its core, with its other parts
    taking up the new bases, so that several calls are the paper's rounds.

    Args:
        model: in evaluation mode. It is not changed. Linear and Conv2d (groups=1) layers are replaced, and bottlenecks
            of an earlier call, whose report and predictions are then of the model given here.
        data: as for ``dynaxx.fisher``, read two or three times; a loader must not shuffle for curvature="ekfac".
        reduction: share of the operations to take away, in (0, 1).
        curvature: "kfac"; "ekfac" takes second moments of the gradients in that basis for l_G l_A^T (one more sweep).
        cap: largest share of a layer's directions, of its input and of its output, that may go.
        protect: names of modules to leave whole.
        likelihood, estimator, samples, seed, predict: as for ``dynaxx.fisher``.
        repeats: forward passes to measure the latency by; 0 for none.

    Returns:
        StructuredResult, ``kept`` and ``scores`` being of eigendirections, by ascending eigenvalue; scores of a layer's
        input under "name:in", of its output under "name:out".

    Raises:
        InputError: no layer can be replaced, or the reduction cannot be reached.

    Cost: K-FAC of the weights, two eigendecompositions a layer in float64, one copy of the model.

    Source: Wang et al., EigenDamage, ICML 2019, section 4 and algorithm 1; here in one round a call, and without the
    middle layer where two do the same with fewer operations.

    >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    >>> result = eigendamage(model, torch.randn(20, 16), reduction=0.4, repeats=0)
    >>> result.report["flops"]["small"] <= 0.6 * result.report["flops"]["dense"]
    True
    """
    require_reduction(reduction)
    choose("curvature", curvature, CURVATURES)
    dense = unwrap(model)
    first = first_batch(dense, data)
    few = first.part(0, min(2, first.count))
    found = _replaceable(dense, protect)
    if not found:
        raise InputError("the model has no Linear or Conv2d layer (groups=1) of its own weight that may be replaced")
    meaning = likelihoods.resolve(likelihood)
    weights = {name: f"{name}.core" if isinstance(layer, Bottleneck) else name for name, layer in found.items()}
    network = Network(dense, meaning, [f"{core}.weight" for core in weights.values()], predict)
    stream = Data(data, network.device)
    if curvature == "ekfac":
        stream.require_repeatable()
    sweeper = Sweeper(network, stream, estimators.resolve(estimator, meaning, samples=samples, seed=seed), progress)
    with unmoved(data):
        cores, count = turn(sweeper, {core: dense.get_submodule(core) for core in weights.values()}, curvature)
    counted = flops(dense, few, predict)
    places = positions(dense, cores, few, predict)
    layers = {name: cores[core] for name, core in weights.items() if core in cores and counted.get(core)}
    priced = {name: Price(layers[name], counted[core], places[core], found[name])
              for name, core in weights.items() if name in layers}  # fmt: skip
    scores, ties = direction_scores({name: layers[name] for name in priced})
    rest = counted[""] - sum(price.dense for price in priced.values())

    def operations(left: Mapping[str, int]) -> float:
        return rest + sum(p.best(left[f"{n}:in"], left[f"{n}:out"])[0] for n, p in priced.items())

    masks = select(scores, ties, operations, (1 - reduction) * counted[""], cap=cap)
    small, rows = copy.deepcopy(dense), []
    kept: dict[str, dict[str, Tensor]] = {}
    predicted: dict[str, float] = {}
    for name, price in priced.items():
        layer, stay = layers[name], {side: masks[f"{name}:{side}"] for side in ("in", "out")}
        _, enter, leave = price.best(int(stay["in"].sum()), int(stay["out"].sum()))
        # a side that has no part of its own keeps all of its directions: dropping them would save nothing
        index = {side: stay[side].nonzero()[:, 0] for side, own in (("in", enter), ("out", leave)) if own}
        whole = layer.importance.new_ones(())
        if index:
            basis_in = layer.right[:, index["in"]] if enter else None
            basis_out = layer.left[:, index["out"]] if leave else None
            replace(small, name, turned(found[name], basis_in, basis_out))
            kept[name] = index
            inside = stay["out"] if leave else torch.ones_like(stay["out"])
            across = stay["in"] if enter else torch.ones_like(stay["in"])
            whole = (inside[:, None] & across).to(layer.importance)
        predicted[name] = float((layer.importance * (1 - whole)).sum())
        rows.append({"name": name, "unit": "eigendirections", "predicted": predicted[name], **_counts(layer, index)})
    try:
        outputs(small, few, predict)
    except (RuntimeError, AttributeError) as error:
        raise InputError(
            f"the model does not run with bottlenecks in the place of {list(kept)[:5]}...: {error}. It reads a layer's "
            f"attributes; keep the layers concerned whole with protect=[...]"
        ) from error
    calibrate(small, data, predict=predict)
    report = facts(dense, small, first, predict, repeats) | {
        "criterion": "eigendamage", "curvature": curvature, "estimator": estimator, "examples": count, "seed": seed,
        "reduction": float(reduction), "layers": rows,
        "remarks": [f"{name} stays: no bottleneck takes fewer operations" for name in priced if name not in kept],
    }  # fmt: skip
    bottlenecks = {name: part.sizes for name, part in small.named_modules() if isinstance(part, Bottleneck)}
    return StructuredResult(small.eval(), kept, scores, report, Architecture({}, bottlenecks), predicted)


def _replaceable(model: nn.Module, protect: Sequence[str]) -> dict[str, nn.Module]:
    known = dict(model.named_modules())
    for name in protect:
        if name not in known:
            raise InputError(f"protect names {name!r}, which the model does not have; it has {list(known)[1:6]}...")
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    parts = {f"{name}.{part}" for name, held in known.items() if isinstance(held, Bottleneck) for part in held._modules}
    return {
        name: module
        for name, module in known.items()
        if name
        and name not in parts
        and type(core := core_of(module)) in (nn.Linear, nn.Conv2d)  # a subclass may be read otherwise than by a call
        and getattr(core, "groups", 1) == 1
        and isinstance(core._parameters.get("weight"), nn.Parameter)
        and uses[id(core.weight)] == 1
        and not any(name == p or name.startswith(p + ".") for p in protect)
    }


def _counts(layer: Turned, index: Mapping[str, Tensor]) -> dict[str, Any]:
    total = [layer.weight.shape[1], layer.weight.shape[0]]
    return {
        "kept": [len(index[side]) if side in index else size for side, size in zip(("in", "out"), total, strict=True)],
        "total": total,
    }
