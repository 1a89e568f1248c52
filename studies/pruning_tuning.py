"""Does an advantage outlive fine-tuning? Every way of pruning, then the same images, steps and learning rates for all.

The learning rate, and magnitude's scope, are those with the smallest loss after fine-tuning on training images kept for
that, chosen with the first seed and used with every seed. Masks hold, BatchNorm is trained as ever. The dense network
has seen all these images before; the pruned one is kept away from those it is chosen on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache as cache_results
from functools import partial
from pathlib import Path
from typing import Any

import torch
from networks import moved
from pruning_methods import RECOMPUTED, SPARSITIES, pruned
from pruning_models import Case, Sizes, answers, packed
from runs import Cells
from torch import Tensor, nn
from torch.nn import functional

from dynaxx import tensorfile
from dynaxx.compress.training import fit
from dynaxx.errors import InputError

STARTS = {  # word in a cell's name -> method
    "magnitude": "magnitude",
    "layer": "magnitude, layer",
    "erk": "magnitude, ERK",
    "curvature": "OBS, K-FAC, recomputed",
    "mixedagain": "magnitude + K-FAC update, recomputed",
    "mixed": "magnitude + K-FAC update",
    "kfac": "OBS, K-FAC",
    "rows": "OBS",
    "blocks": "OBS, blocks of 32",
    "obd": "OBD",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "fisher": "lowest Fisher",
    "random": "random",
}
SCOPES = ("magnitude", "layer", "erk")  # the second and third are tried at the best rate of the first
KINDS = tuple(word for word in STARTS if word not in SCOPES[1:])
FORMAT = "dynaxx-study-start/1"


@dataclass(frozen=True)
class Budget:
    """Of one fine-tuning: ``passes`` over ``images`` drawn anew each time."""

    passes: int = 8
    images: int = 512
    batch: int = 64


class Drawn:
    """Some of the images each time it is read; pictures are shifted by up to four pixels and mirrored at random."""

    def __init__(self, images: tuple[Tensor, Tensor], budget: Budget) -> None:
        self.images, self.budget = images, budget

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.images
        for part in torch.randperm(len(y))[: self.budget.images].split(self.budget.batch):
            yield (_shown(x[part]) if x.dim() == 4 else x[part]), y[part]


def _shown(x: Tensor) -> Tensor:
    return moved(x, torch.default_generator).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Start:
    """A pruned model before fine-tuning: its state, its masks, which method of the study made it."""

    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    method: str


GRID = (0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Plan:
    """What is fine-tuned: sparsities and the learning rates that are tried there, larger ones where more is to be made
    good; and the path on which curvature is looked at again towards them, once per stop.
    """

    rates: Mapping[float, tuple[float, ...]] = field(
        default_factory=lambda: {0.9: GRID, 0.8: GRID, 0.95: (*GRID, 0.3), 0.98: (0.03, 0.1, 0.3)}
    )
    path: tuple[float, ...] = SPARSITIES
    budget: Budget = Budget()


PLANS = {"resnet20": Plan(), "resnet56": Plan({0.9: GRID, 0.8: GRID, 0.95: (*GRID, 0.3)}, SPARSITIES[:-1])}


def starts(case: Case, word: str, sizes: Sizes, seed: int, cache: Path, model: str, plan: Plan) -> dict[float, Start]:
    """By sparsity; kept in the cache folder."""
    again = STARTS[word] in RECOMPUTED
    wanted, path = tuple(plan.rates), plan.path if again else tuple(plan.rates)
    options = {
        "format": FORMAT, "method": STARTS[word], "sizes": asdict(sizes) | {"grid": list(sizes.grid)}, "seed": seed,
    } | ({"path": list(path)} if again else {})  # fmt: skip
    paths = {s: cache / f"pruned-{model}-{seed}-{word}-{s:g}.safetensors" for s in wanted}
    found = {}
    for sparsity, place in paths.items():
        if place.is_file():
            tensors, header = tensorfile.read(place, FORMAT, "pruned model")
            if header == options:
                parts = tensorfile.parts(tensors, ("state", "mask"))
                masks = {name: mask.bool() for name, mask in parts["mask"].items()}
                found[sparsity] = Start(parts["state"], masks, STARTS[word])
    if len(found) == len(wanted):
        return found
    for sparsity, result, under, _ in pruned(case, STARTS[word], sizes, seed, path):
        if sparsity in wanted:
            state = {name: value.clone() for name, value in under.state_dict().items()}
            found[sparsity] = Start(state, result.masks, STARTS[word])
    cache.mkdir(parents=True, exist_ok=True)
    for sparsity, start in found.items():
        tensors = {f"state/{k}": v for k, v in start.state.items()} | {f"mask/{k}": v for k, v in start.masks.items()}
        tensorfile.write(paths[sparsity], tensors, options)
    return found


def tuned(case: Case, start: Start, about: Mapping[str, Any], rate: float, budget: Budget, seed: int) -> dict[str, Any]:
    """One fine-tuning at one learning rate: answers before and after, and the loss that chooses the rate."""
    model = copy.deepcopy(case.model)
    model.load_state_dict(start.state)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on this network
    try:
        epochs = fit(model, Drawn(case.train, budget), epochs=budget.passes, lr=rate, masks=start.masks, seed=seed)
    except InputError as error:
        return {**about, "diverged": str(error)}
    parameters = dict(model.named_parameters())
    assert not any(bool(parameters[name][~mask].any()) for name, mask in start.masks.items())
    after = answers(model, case.test)
    return {
        **about, "after": packed(after), "hits": about["hits"] | {"after": int(after.sum())},
        "choosing_loss": loss(model, case.chosen), "losses": [epoch.loss for epoch in epochs],
    }  # fmt: skip


def looked_at(case: Case, start: Start) -> dict[str, Any]:
    """Answers of the dense model and of the start."""
    under = copy.deepcopy(case.model)
    under.load_state_dict(start.state)
    before, dense = answers(under, case.test), answers(case.model, case.test)
    return {
        "method": start.method, "count": len(dense), "dense": packed(dense), "before": packed(before),
        "hits": {"dense": int(dense.sum()), "before": int(before.sum())},
    }  # fmt: skip


def loss(model: nn.Module, images: tuple[Tensor, Tensor]) -> float:
    """Mean cross-entropy in nats, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return float(functional.cross_entropy(torch.cat([model(x) for x in images[0].split(250)]), images[1]))


Way = tuple[str, float]
"""A word of STARTS and a learning rate."""


def chosen(tried: Mapping[Way, Mapping[str, Any]]) -> Way:
    """The one with the smallest loss on the choosing images; diverged ones are out."""
    return min(tried, key=lambda way: tried[way].get("choosing_loss", math.inf))


def run(
    model: str, seeds: Sequence[int], folder: Path, cache: Path, case: Callable[[int], Case], sizes: Sizes,
    plan: Plan = Plan(), kinds: Sequence[str] = KINDS,
) -> dict[str, Any]:  # fmt: skip
    """Every cell; "model|seed|kind|sparsity" -> result of what was chosen, its rate added."""
    cells, found, choice = Cells(folder), {}, dict[tuple[str, float], Way]()

    @cache_results
    def begun(seed: int, word: str) -> dict[float, tuple[Start, dict[str, Any]]]:
        made = starts(case(seed), word, _looks(sizes, word), seed, cache, model, plan)
        return {sparsity: (start, looked_at(case(seed), start)) for sparsity, start in made.items()}

    def compute(seed: int, sparsity: float, word: str, rate: float) -> dict[str, Any]:
        return tuned(case(seed), *begun(seed, word)[sparsity], rate, plan.budget, seed)

    for sparsity, grid in plan.rates.items():
        for seed in seeds:
            tried: dict[Way, dict[str, Any]] = {}

            def attempt(
                word: str, rate: float, seed: int = seed, sparsity: float = sparsity, into: Any = tried
            ) -> None:
                budget = asdict(plan.budget) | {"rates": [rate]}
                options = {"sizes": asdict(_looks(sizes, word)), "budget": budget, "seed": seed}
                key = f"{model}-{seed}-{word}-{sparsity:g}-{rate:g}"
                result = cells.get(key, options, partial(compute, seed, sparsity, word, rate))
                if result is not None:
                    into[word, rate] = result

            for kind in kinds:
                tried.clear()
                if (kind, sparsity) in choice:
                    attempt(*choice[kind, sparsity])
                else:
                    for rate in grid:
                        attempt(kind, rate)
                    for scope in SCOPES[1:] if kind == "magnitude" and tried else ():
                        attempt(scope, chosen({way: cell for way, cell in tried.items() if way[0] == kind})[1])
                if tried:
                    best = choice.setdefault((kind, sparsity), chosen(tried))
                    found[f"{model}|{seed}|{kind}|{sparsity:g}"] = tried[best] | {"rate": best[1]}
    return found


def _looks(sizes: Sizes, word: str) -> Sizes:
    return replace(sizes, steps=1) if STARTS[word] in RECOMPUTED else sizes
