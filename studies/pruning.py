"""Does curvature beat magnitude? One-shot pruning without fine-tuning, by every criterion, against tuned magnitude.

(a) ``mlp``: 784-40-20-10 on MNIST, as Singh & Alistarh (NeurIPS 2020) had it, trained here. (b) ``resnet20`` and
``resnet56``: pretrained on CIFAR-10, curvature and BatchNorm statistics from lossless training images, accuracy on the
1,000 lossless test images. Damping and magnitude's scope are chosen on training images that the curvature has not seen.

    python studies/pruning.py --quick          under a minute; fails if a qualitative result does
    python studies/pruning.py                  everything; goes on where it stopped
    python studies/pruning.py --table          the kept results as tables
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import torch
from runs import ROOT, Cells, Skipped, data_folder, proportion, read
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

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
}
RECOMPUTED = {name for name in METHODS if name.endswith("recomputed")}
PUBLISHED = {"OBS, blocks of 32": 84.18, "OBS, K-FAC": 81.26, "lowest Fisher": 19.88}  # at 95 %, dense 93.97


@dataclass(frozen=True)
class Sizes:
    """How much of everything: examples behind a curvature, held out for choices, for BatchNorm; training; steps."""

    curvature: int = 400
    held: int = 500
    calibration: int = 1000
    train: int = 8500
    epochs: int = 20
    steps: int = 4  # per sparsity of the list, for the recomputed methods
    grid: tuple[float, ...] = (1e-2, 0.1, 1.0)


FULL = Sizes()
RESNET = Sizes(curvature=256, held=128, calibration=500, steps=2, grid=(0.1, 1.0, 10.0))
QUICK = Sizes(curvature=300, held=200, train=3000, epochs=5, steps=3, grid=(1e-2, 0.1))


@dataclass(frozen=True)
class Case:
    """A dense model and its images: for curvature, for choices, for BatchNorm, for the test."""

    model: nn.Module
    curvature: Tensor
    held: Tensor
    calibration: Tensor
    test: tuple[Tensor, Tensor]
    labels: Tensor  # of the curvature's images, for the empirical Fisher


def hits(model: nn.Module, images: tuple[Tensor, Tensor]) -> int:
    """Right answers."""
    with torch.no_grad():
        pieces = zip(images[0].split(250), images[1].split(250), strict=True)
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in pieces)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def mlp_case(sizes: Sizes, data: Path, seed: int) -> Case:
    """784-40-20-10 trained on MNIST."""
    path = data / "mnist" / "mnist_10k_train_10k_test.npz"
    if not path.is_file():
        raise Skipped(f"{path.name} is not there")
    held = numpy.load(path)
    x, y = _mnist(held["x_train"]), torch.as_tensor(held["y_train"]).long()
    test = _mnist(held["x_test"]), torch.as_tensor(held["y_test"]).long()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = sizes.epochs * (sizes.train // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
    for _ in range(sizes.epochs):
        for part in torch.randperm(sizes.train)[: sizes.train // 100 * 100].split(100):
            optimiser.zero_grad()
            functional.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
            schedule.step()
    order = torch.randperm(sizes.train)[: sizes.curvature]  # curvature where it was trained, choices where it was not
    return Case(model.eval(), x[order], x[-sizes.held :], x[order], test, y[order])


def _mnist(images: Any) -> Tensor:
    return (torch.as_tensor(images).float().view(-1, 784) / 255 - 0.1307) / 0.3081


class Block(nn.Module):
    """Two 3x3 convolutions; where the size changes, the shortcut takes every second pixel and adds empty channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.empty = stride, (width - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H/stride, W/stride)."""
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.empty, self.empty))
        return functional.relu(out + x)


class ResNet(nn.Module):
    """He et al. (2016) for CIFAR-10, three stages of ``depth`` blocks."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            blocks = [
                Block(widths[stage - 1] if i == 0 else widths[stage], widths[stage], 2 if i == 0 and stage > 1 else 1)
                for i in range(depth)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def resnet_case(layers: int, sizes: Sizes, data: Path, seed: int) -> Case:
    """A pretrained ResNet; the seed chooses which training images are for what."""
    weights = data / "models" / "pytorch_resnet_cifar10" / f"resnet{layers}.safetensors"
    images = data / "cifar10" / "cifar10_lossless_4k_train_1k_test.npz"
    for path in (weights, images):
        if not path.is_file():
            raise Skipped(f"{path.name} is not there")
    model = ResNet((layers - 2) // 6)
    model.load_state_dict(load_file(weights), strict=False)  # the counts of batches are not in the file
    held = numpy.load(images)
    x, y = _cifar(held["x_train"]), torch.as_tensor(held["y_train"]).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    first, second = sizes.curvature, sizes.curvature + sizes.held
    test = _cifar(held["x_test"]), torch.as_tensor(held["y_test"]).long()
    return Case(
        model.eval(), x[order[:first]], x[order[first:second]], x[order[second : second + sizes.calibration]], test,
        y[order[:first]],
    )  # fmt: skip


def _cifar(images: Any) -> Tensor:
    x = torch.as_tensor(images).float().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((x - mean) / std).contiguous()


# ---------------------------------------------------------------------------------------------------------------------
# One method on one model


def pruned(case: Case, name: str, sizes: Sizes, seed: int) -> Iterator[tuple[float, PruningResult, nn.Module, float]]:
    """(sparsity, result, the model under it with BatchNorm re-estimated, damping) for every sparsity."""
    recipe = Recipe(seed=seed, **METHODS[name])
    data: Any = [(x, y) for x, y in zip(case.curvature.split(128), case.labels.split(128), strict=True)]
    dense = outputs(case.model, case.held)
    if name not in RECOMPUTED:
        found = recipe.saliency(case.model, data)
        for sparsity in SPARSITIES:
            yield sparsity, *_best(case, recipe, case.model, found, sparsity, None, dense, sizes)
        return
    work, live, step = case.model, None, 0
    targets = [0.0, *SPARSITIES]
    for low, high in pairwise(targets):
        for j in range(1, sizes.steps + 1):  # the same share of what is left each time
            target = 1 - (1 - low) * ((1 - high) / (1 - low)) ** (j / sizes.steps)
            found, step = recipe.saliency(work, data, live, step), step + 1
            result, work, damping = _best(case, recipe, work, found, target, live, dense, sizes)
            live = result.masks
        yield high, result, work, damping


def _best(
    case: Case,
    recipe: Recipe,
    model: nn.Module,
    found: Any,
    sparsity: float,
    live: Mapping[str, Tensor] | None,
    dense: Any,
    sizes: Sizes,
) -> tuple[PruningResult, nn.Module, float]:
    """The damping of the grid whose model stays closest to the dense one on the held-out images."""
    prunable, tried = prunable_parameters(model), []
    factors = sizes.grid if recipe.coupled else (0.0,)
    unit = mean_eigenvalue(found) if recipe.coupled else 0.0
    for factor in factors:
        candidate = damped(found, factor * unit, prunable) if recipe.coupled else found
        result = recipe.decide(candidate, sparsity, dict(live) if live is not None else None)
        under = result.apply(copy.deepcopy(model))
        calibrate(under, list(case.calibration.split(250)))
        far = float(divergence(dense, outputs(under, case.held)).mean())
        tried.append((far, factor, result, under))
    far, factor, result, under = min(tried, key=lambda t: t[0])
    return result, under, factor


def one(case: Case, name: str, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Accuracy, divergence and prediction of one method at every sparsity."""
    dense = outputs(case.model, case.held)
    rows = {}
    for sparsity, result, model, damping in pruned(case, name, sizes, seed):
        far = float(divergence(dense, outputs(model, case.held)).mean())
        rows[f"{sparsity:g}"] = {
            "hits": hits(model, case.test), "damping": damping, "held_out_divergence": far,
            "predicted": result.predicted_loss_increase, "kept": result.kept,
        }  # fmt: skip
        print(f"  {name} {sparsity:g}: {rows[f'{sparsity:g}']['hits']}", flush=True)
    return {"dense": hits(case.model, case.test), "count": len(case.test[1]), "rows": rows}


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


# ---------------------------------------------------------------------------------------------------------------------
# The study


def run(
    models: Sequence[str], seeds: Sequence[int], methods: Sequence[str], folder: Path, data: Path, quick: bool
) -> dict[str, Any]:
    """Every cell that is wanted; name -> result."""
    cells, found = Cells(folder), {}
    for model in models:
        sizes = QUICK if quick else FULL if model == "mlp" else RESNET
        for seed in seeds:
            case = lru_cache(partial(_case, model, sizes, data, seed))
            for name in methods:
                key = f"{model}-{seed}-{_file(name)}"
                options = {"sizes": asdict(sizes), "seed": seed, "method": METHODS[name], "sparsities": SPARSITIES}
                result = cells.get(key, options, partial(_cell, case, one, name, sizes, seed))
                if result is not None:
                    found[f"{model}|{seed}|{name}"] = result
            if quick:
                continue
            options = {"sizes": asdict(sizes), "seed": seed, "sparsities": SPARSITIES}
            result = cells.get(f"{model}-{seed}-shuffled", options, partial(_cell, case, shuffling, sizes, seed))
            if result is not None:
                found[f"{model}|{seed}|OBD, shuffled"] = result
    return found


def _case(model: str, sizes: Sizes, data: Path, seed: int) -> Case:
    return mlp_case(sizes, data, seed) if model == "mlp" else resnet_case(int(model[6:]), sizes, data, seed)


def _cell(case: Callable[[], Case], compute: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    return compute(case(), *arguments)  # the case is made when the first cell of it is not there yet


def _file(name: str) -> str:
    return name.lower().replace(", ", "_").replace(" + ", "_and_").replace(" ", "_")


def tables(found: Mapping[str, Any]) -> str:
    """Mean test accuracy in percent, and Wilson's 95 % interval at that many images, by method and sparsity."""
    lines = []
    for model in dict.fromkeys(key.split("|")[0] for key in found):
        mine = {key: value for key, value in found.items() if key.startswith(model + "|")}
        dense = [100 * value["dense"] / value["count"] for value in mine.values()]
        seeds = sorted({key.split("|")[1] for key in mine})
        lines += ["", f"{model}: dense {statistics.mean(dense):.1f}, {len(seeds)} seeds", ""]
        lines.append("| method | " + " | ".join(f"{100 * s:g} %" for s in SPARSITIES) + " |")
        lines.append("|---" * (len(SPARSITIES) + 1) + "|")
        for name in dict.fromkeys(key.split("|")[2] for key in mine):
            values = [value for key, value in mine.items() if key.split("|")[2] == name]
            cells = []
            for sparsity in SPARSITIES:
                hit = statistics.mean(value["rows"][f"{sparsity:g}"]["hits"] for value in values)
                share = proportion(round(hit), values[0]["count"])
                low, high = (100 * share[side] for side in ("low", "high"))
                cells.append(f"{100 * hit / values[0]['count']:.1f} [{low:.1f}, {high:.1f}]")
            lines.append(f"| {name} ({len(values)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def check(found: Mapping[str, Any]) -> list[str]:
    """What must hold at any size: recomputed OBS is 5 points above magnitude at 95 %, and the lowest Fisher entry is no
    criterion."""
    wrong = []
    for key in [key for key in found if key.endswith("|OBS, recomputed")]:
        model, seed, _ = key.split("|")
        if not {f"{model}|{seed}|magnitude", f"{model}|{seed}|lowest Fisher"} <= found.keys():
            continue
        at = {
            name: found[f"{model}|{seed}|{name}"]["rows"]["0.95"]["hits"] / found[key]["count"]
            for name in ("OBS, recomputed", "magnitude", "lowest Fisher")
        }
        if at["OBS, recomputed"] < at["magnitude"] + 0.05:
            wrong.append(
                f"{model}, seed {seed}: recomputed OBS {at['OBS, recomputed']:.3f}, magnitude {at['magnitude']:.3f}"
            )
        if at["lowest Fisher"] > at["OBS, recomputed"]:
            wrong.append(f"{model}, seed {seed}: the lowest Fisher entry beats recomputed OBS")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small network, four methods")
    parser.add_argument("--models", nargs="+", default=["mlp", "resnet20"], choices=["mlp", "resnet20", "resnet56"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--data", type=Path, help="folder of public data sets; default $DYNAXX_DATA or shared/data")
    parser.add_argument("--results", type=Path, default=ROOT / "studies" / "results" / "pruning")
    parser.add_argument("--table", action="store_true", help="print the kept results")
    given = parser.parse_args(arguments)
    if given.table:
        kept = read(given.results)
        names = {_file(name): name for name in METHODS}
        names["shuffled"] = "OBD, shuffled"
        found = {"|".join([*key.split("-")[:2], names[key.split("-", 2)[2]]]): value for key, value in kept.items()}
        print(tables(found))
        return 0
    try:
        data = data_folder(given.data)
    except Skipped as reason:
        print(f"skipped, {reason}")
        return 0
    if given.quick:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            quick = ("magnitude", "lowest Fisher", "OBD", "OBS, recomputed")
            found = run(["mlp"], [0], quick, Path(folder), data, True)
    else:
        found = run(given.models, given.seeds, given.methods, given.results, data, False)
    print(tables(found))
    wrong = (
        check(found) if all(f"{m}|{s}|magnitude" in found for m, s in {tuple(k.split("|")[:2]) for k in found}) else []
    )
    print("\n".join(wrong) or "every check holds")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
