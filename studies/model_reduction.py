"""Study 2: what is left of a network on the leading eigenvectors of its Fisher matrix, and of the map of its data.

After Cowlagi & Chaudhari (AAAI 2022): the top 1 % of the eigenvectors of a CIFAR-10 network give a line and a poor
accuracy, the top 5 % give 75 % where the network has 77 %. Here with the controls that such a number needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import networks
import torch
from spectra import ALL_CNN, Task
from torch import Tensor, nn

import dynaxx
from dynaxx import manifold

MNIST = Task("mnist", "perceptron", (24, 24), train=5000, test=2000, probe=150, epochs=20, batch=50, rate=0.05, seeds=3)
LONGER = replace(ALL_CNN, data="cifar10_jpeg", train=10_000, test=2000, epochs=40, seeds=1, augment=True)
CEILING = 100.0  # nats; what two predictions without overlap are taken to be apart
CONTROLS = ("random", "magnitude", "diagonal")


@dataclass(frozen=True)
class Job:
    """A network on data, and what it is projected on.

    Args:
        task: its ``probe`` is not used here.
        fisher: training examples behind F. Exact, the rank is at most nine times as many.
        sampled: F is sampled, one random combination of columns an example: as many more examples behind F for the
            same rank.
        matrices: project matrices and kernels alone; biases and BatchNorm's scales and shifts stay as they are.
    """

    task: Task
    fisher: int
    sampled: bool = False
    matrices: bool = False

    def name(self, seed: int) -> str:
        """As its cell is called."""
        return self.task.name + "-sampled" * self.sampled + "-matrices" * self.matrices + f"-{seed}"

    def options(self, seed: int) -> dict[str, Any]:
        """What its cell depends on, beside the sizes of all."""
        variant = {key: True for key in ("sampled", "matrices") if getattr(self, key)}
        return self.task.options() | {"fisher": self.fisher, "seed": seed} | variant


@dataclass(frozen=True)
class Sizes:
    """What decides how long the study takes.

    Args:
        jobs: networks and their Fisher matrices.
        shares: k as a share of the parameters; where the rank ends is added, and what lies beyond it left out.
        calibration: training examples that BatchNorm statistics are estimated from after a projection.
        points: test examples on the map.
    """

    jobs: tuple[Job, ...] = field(
        default_factory=lambda: (
            Job(MNIST, 300),
            Job(ALL_CNN, 200),
            Job(replace(ALL_CNN, seeds=1), 1800, sampled=True),
            Job(LONGER, 450),
            Job(LONGER, 200, matrices=True),
        )
    )
    shares: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    calibration: int = 500
    points: int = 200
    neighbours: int = 10


QUICK = Sizes(
    jobs=(Job(replace(MNIST, widths=(16,), train=1000, test=500, epochs=15, seeds=1), 60),),
    shares=(0.001, 0.01, 0.03), calibration=60, points=80,
)  # fmt: skip


def run(job: Job, sizes: Sizes, data: Path | None, cache: Path, seed: int) -> dict[str, Any]:
    """One trained network: accuracy against k about both centres, and the map of the data at 1 %, 5 % and the rank."""
    split = job.task.load(data, seed)
    before, model = job.task.trained(split, seed, cache)

    def accuracy(network: nn.Module) -> float:
        return 1 - networks.error(network, split.x_test, split.y_test)

    reduction = dynaxx.reduce(
        model,
        split.x[: job.fisher],
        estimator="hutchinson" if job.sampled else "exact",
        params=(lambda name, parameter: parameter.dim() > 1) if job.matrices else None,
        seed=seed,
        calibration=split.x[: sizes.calibration],
    )
    p, rank = reduction.dimension, reduction.rank
    ks = sorted({k for share in sizes.shares if 1 <= (k := math.ceil(share * p)) < rank} | {rank})
    about = {"origin": reduction, "init": reduction.about("init", init=before)}
    curves = {}
    for name, one in about.items():
        rows = one.curve(accuracy, ks, controls=CONTROLS, seeds=(seed,)).rows()
        data_control = one.control("data")  # keeps all but the first layer, and so has no small k
        reached = [k for k in ks if k >= data_control.subspace.least]
        rows += data_control.curve(accuracy, reached).rows() if reached else []
        curves[name] = [{key: row[key] for key in ("subspace", "k", "energy", "score")} for row in rows]
    return {
        "seed": seed,
        "parameters": p,
        "rank": rank,
        "full": accuracy(model),
        "before": accuracy(before),
        "curves": curves,
        "map": mapped(about, model, split.x_test[: sizes.points], split.y_test[: sizes.points], sizes, (ks, p)),
    }


def mapped(
    about: dict[str, Any], model: nn.Module, x: Tensor, labels: Tensor, sizes: Sizes, dimensions: tuple[list[int], int]
) -> dict[str, Any]:
    """InPCA of the test data as the full model sees them, and how alike the maps of the projected models are."""
    ks, p = dimensions
    chosen = {f"{share:.0%}": min(ks, key=lambda k: abs(k - share * p)) for share in (0.01, 0.05)} | {"rank": ks[-1]}
    networks_by_name: dict[str, nn.Module] = {}
    for centre, one in about.items():
        networks_by_name |= {f"{centre}, {name}": one.apply(k) for name, k in chosen.items()}
        networks_by_name[f"{centre}, magnitude 5%"] = one.control("magnitude").apply(chosen["5%"])
    whole = _distances(model, x)
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    compared = {"shuffled": _alike(whole, whole[shuffled][:, shuffled], sizes.neighbours)}
    coordinates = {"full": manifold.inpca(whole, k=3)}
    for name, network in networks_by_name.items():
        D = _distances(network, x)
        compared[name] = _alike(whole, D, sizes.neighbours)
        coordinates[name] = manifold.inpca(D, k=3)
    return {
        "k": chosen,
        "labels": labels.tolist(),
        "alike": compared,
        "stress": {name: [e.explained_stress(k) for k in (1, 2, 3)] for name, e in coordinates.items()},
        "coordinates": {
            name: [networks.rounded(row, 3) for row in e.coordinates[:, :2].T.tolist()]
            for name, e in coordinates.items()
        },
    }


def _distances(model: nn.Module, x: Tensor) -> Tensor:
    return manifold.between_examples(networks.outputs(model, x).double().softmax(1), ceiling=CEILING)


def _alike(A: Tensor, B: Tensor, neighbours: int) -> dict[str, float]:
    first, second = (manifold.inpca(D, k=3).coordinates for D in (A, B))
    found = {
        "neighbours": manifold.knn_overlap(A, B, neighbours),
        "ranks": manifold.rank_correlation(A, B),
        "procrustes": manifold.procrustes(first, second),
    }
    try:
        return found | {f"holes {d}": manifold.persistence_distance(A, B, dimension=d) for d in (0, 1)}
    except dynaxx.InputError:  # the extra "topology" is not installed
        return found


def cells(sizes: Sizes, data: Path | None, cache: Path) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(name, what it depends on, how it is made) of every cell: a task and a seed."""
    options = {key: value for key, value in vars(sizes).items() if key != "jobs"}
    for seed in range(max(job.task.seeds for job in sizes.jobs)):
        for job in sizes.jobs:
            if seed < job.task.seeds:
                yield job.name(seed), options | job.options(seed), partial(run, job, sizes, data, cache, seed)


def score(cell: dict[str, Any], centre: str, subspace: str, k: int) -> float:
    """The accuracy of one projection."""
    rows = cell["curves"][centre]
    return next(float(row["score"]) for row in rows if row["subspace"] == subspace and row["k"] == k)


def check(found: dict[str, dict[str, Any]]) -> list[str]:
    """What must hold of a perceptron at any size; returns what does not."""
    wrong = []
    for name, cell in found.items():
        if not name.startswith("mnist"):
            continue  # the All-CNN keeps nothing on as many eigenvectors as its F has
        k = cell["map"]["k"]
        for centre in cell["curves"]:
            top, chance = (score(cell, centre, which, k["rank"]) for which in ("eigenvectors", "random"))
            if not top > chance + 0.1:
                wrong.append(
                    f"{name}, {centre}: {top:.2f} on all {k['rank']} eigenvectors, {chance:.2f} on random ones"
                )
        few, many = (score(cell, "init", "eigenvectors", k[which]) for which in ("1%", "rank"))
        if not few < many:
            wrong.append(f"{name}: {few:.2f} on 1 % of the eigenvectors, {many:.2f} on all")
        alike = cell["map"]["alike"]
        if not alike["init, rank"]["neighbours"] > alike["shuffled"]["neighbours"] + 0.1:
            wrong.append(f"{name}: the map on all eigenvectors is no more like the full one than a shuffled one")
    return wrong
