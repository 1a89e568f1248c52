"""Study 5: do trainings of different networks run along the same few dimensions?

Mao et al. (PNAS 2024) find that three coordinates of InPCA explain 76 % of the stress of 151,407 checkpoints, and that
the architecture tells trajectories apart while the optimiser hardly does. Here three architectures, three optimisers
and as many seeds on Fashion-MNIST; and paths as many that end elsewhere, as a control.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import networks
import public_data
import torch
from networks import Optimiser
from public_data import Split
from runs import data_folder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynaxx import manifold

PUBLISHED = {3: 0.76}  # explained stress of three coordinates, on training data
ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: networks.perceptron((784, 128, 64, 10)),
    "convolutions": lambda: networks.small_cnn(8),
    "transformer": lambda: networks.Transformer(28, 7, 32, 2, 2),
}
OPTIMISERS: dict[str, Optimiser] = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "Nesterov": partial(torch.optim.SGD, lr=0.03, momentum=0.9, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=1e-3),
}
CEILING = 100.0  # nats, per example
FACTORS = ("architecture", "optimiser", "seed")


@dataclass(frozen=True)
class Sizes:
    """What decides how long the study takes.

    Args:
        probe: training and test examples on which predictions are compared.
        checkpoints: of a run, at steps that grow geometrically; the first is the initialisation.
    """

    architectures: tuple[str, ...] = tuple(ARCHITECTURES)
    optimisers: tuple[str, ...] = tuple(OPTIMISERS)
    seeds: int = 3
    train: int = 4000
    test: int = 2000
    epochs: int = 8
    batch: int = 50
    probe: int = 300
    checkpoints: int = 12


QUICK = Sizes(
    architectures=("perceptron", "convolutions"), optimisers=("SGD", "Adam"), seeds=2,
    train=500, test=200, epochs=4, probe=60, checkpoints=8,
)  # fmt: skip


def steps(sizes: Sizes) -> list[int]:
    """When a run is looked at."""
    total = sizes.epochs * math.ceil(sizes.train / sizes.batch)
    grown = {round(total ** (i / (sizes.checkpoints - 2))) for i in range(sizes.checkpoints - 1)}
    return sorted({0, *grown})


def runs(sizes: Sizes, seeds: int) -> list[tuple[str, str, int]]:
    """(architecture, optimiser, seed) of the first so many seeds."""
    return [(a, o, s) for s in range(seeds) for a in sizes.architectures for o in sizes.optimisers]


class Trainings:
    """Runs and what they predict at their checkpoints, kept in the cache folder."""

    def __init__(self, sizes: Sizes, data: Path | None, cache: Path) -> None:
        self.sizes, self.data, self.cache = sizes, data, cache

    def split(self) -> Split:
        """Fashion-MNIST."""
        return public_data.images(data_folder(self.data), "fashion_mnist", self.sizes.train, self.sizes.test)

    def predictions(self, architecture: str, optimiser: str, seed: int) -> tuple[Tensor, Tensor]:
        """(checkpoints, N, C) probabilities of training and of test examples."""
        s = self.sizes
        name = f"{architecture}-{optimiser}-{seed}-{s.train}-{s.epochs}-{s.batch}-{s.probe}-{s.checkpoints}"
        path = self.cache / f"trajectory-{name}.safetensors"
        if path.exists():
            held = load_file(path)
            return held["train"], held["test"]
        split, wanted, done = self.split(), set(steps(s)), 0
        torch.manual_seed(seed)
        model = ARCHITECTURES[architecture]()
        seen: dict[str, list[Tensor]] = {"train": [], "test": []}

        def look() -> None:
            for part, x in (("train", split.x[: s.probe]), ("test", split.x_test[: s.probe])):
                seen[part].append(networks.outputs(model, x).double().softmax(1))
            model.train()

        def step() -> None:
            nonlocal done
            done += 1
            if done in wanted:
                look()

        look()
        networks.train(
            model, split.x, split.y, OPTIMISERS[optimiser], epochs=s.epochs, batch=s.batch, seed=seed, on_step=step
        )
        made = {part: torch.stack(points) for part, points in seen.items()}
        self.cache.mkdir(parents=True, exist_ok=True)
        save_file(made, path)
        return made["train"], made["test"]

    def run(self, architecture: str, optimiser: str, seed: int) -> dict[str, Any]:
        """One run: errors on the compared examples and progress to the truth, checkpoint by checkpoint."""
        split, found = self.split(), {}
        labels = {"train": split.y[: self.sizes.probe], "test": split.y_test[: self.sizes.probe]}
        for part, P in zip(labels, self.predictions(architecture, optimiser, seed), strict=True):
            wrong = (P.argmax(-1) != labels[part]).double().mean(1)
            found[part] = {"error": wrong.tolist(), "progress": manifold.progress(P, end=labels[part]).tolist()}
        return {"steps": steps(self.sizes), **found}

    def map(self, seeds: int) -> dict[str, Any]:
        """The map of all runs of the first so many seeds, on training and on test examples."""
        chosen = runs(self.sizes, seeds)
        made = [self.predictions(*run) for run in chosen]
        split = self.split()
        found: dict[str, Any] = {"runs": chosen, "checkpoints": len(made[0][0])}
        for i, (part, labels) in enumerate((("train", split.y), ("test", split.y_test))):
            P = torch.stack([each[i] for each in made])
            found[part] = mapped(P, labels[: self.sizes.probe], chosen)
        return found


def mapped(P: Tensor, labels: Tensor, chosen: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    """InPCA of (runs, checkpoints, N, C) predictions, its controls, and which factor tells runs apart."""
    count, times = P.shape[:2]
    points = P.flatten(0, 1)
    D = manifold.distances(points, ceiling=CEILING)
    made = manifold.inpca(D, k=min(10, len(D)))
    progress = manifold.progress(points, end=labels).view(count, times)
    ends = torch.stack([manifold.ignorance(*P.shape[2:]), manifold.truth(labels, P.shape[3])])
    placed = made.project(manifold.distances(ends, points, ceiling=CEILING))
    # between runs: the mean over checkpoints of the distance at the same step
    between = D.view(count, times, count, times).diagonal(dim1=1, dim2=3).mean(-1)
    return {
        "stress": [made.explained_stress(k) for k in range(1, len(made.eigenvalues) + 1)],
        "signature": made.signature.tolist(),
        "stress_of_paths_elsewhere": elsewhere(progress, labels),
        "explained_by": {name: share(between, [run[i] for run in chosen]) for i, name in enumerate(FACTORS)},
        "coordinates": [networks.rounded(row, 4) for row in made.coordinates[:, :3].T.tolist()],
        "ends": [networks.rounded(row, 4) for row in placed[:, :3].tolist()],
    }


def elsewhere(progress: Tensor, labels: Tensor) -> list[float]:
    """The control: shortest paths from ignorance with the runs' own progress, each to labels of its own.

    What three coordinates explain of these they explain by the common start alone.
    """
    generator = torch.Generator().manual_seed(0)
    classes = int(labels.max()) + 1
    start = manifold.ignorance(len(labels), classes)
    paths = []
    for along in progress:
        end = manifold.truth(labels[torch.randperm(len(labels), generator=generator)], classes)
        paths.append(manifold.geodesic(start, end, along))
    made = manifold.inpca(manifold.distances(torch.cat(paths), ceiling=CEILING), k=3)
    return [made.explained_stress(k) for k in (1, 2, 3)]


def share(D: Tensor, groups: Sequence[Any]) -> dict[str, float]:
    """Share of the squared distances between runs that a factor explains, and what chance gives.

        R^2 = 1 - sum_g (1/n_g) sum_(u<v in g) D_uv  /  (1/n) sum_(u<v) D_uv      (Anderson 2001)

    Chance: the mean over shuffled groups, (groups - 1) / (n - 1); and the share of 999 shuffles that explain as much.
    """
    n = len(groups)
    names = sorted(set(groups))
    codes = torch.tensor([names.index(group) for group in groups])
    total = float(D.triu(1).sum()) / n

    def explained(code: Tensor) -> float:
        within = 0.0
        for group in range(len(names)):
            inside = (code == group).nonzero()[:, 0]
            within += float(D[inside][:, inside].triu(1).sum()) / len(inside)
        return 1 - within / total

    value = explained(codes)
    generator = torch.Generator().manual_seed(0)
    shuffled = [explained(codes[torch.randperm(n, generator=generator)]) for _ in range(999)]
    return {
        "value": value,
        "chance": (len(names) - 1) / (n - 1),
        "p": (1 + sum(other >= value - 1e-12 for other in shuffled)) / 1000,
    }


def cells(sizes: Sizes, data: Path | None, cache: Path) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(name, what it depends on, how it is made) of every cell: the runs, and a map after each seed."""
    options = {k: v for k, v in asdict(sizes).items() if k not in ("architectures", "optimisers", "seeds")}
    trainings = Trainings(sizes, data, cache)
    for seed in range(sizes.seeds):
        for about in runs(sizes, sizes.seeds):
            if about[2] == seed:
                yield "-".join(map(str, about)), options | {"run": about}, partial(trainings.run, *about)
        chosen = runs(sizes, seed + 1)
        yield f"map-{seed + 1}", options | {"runs": chosen}, partial(trainings.map, seed + 1)


def check(found: dict[str, dict[str, Any]]) -> list[str]:
    """What must hold at any size; returns what does not."""
    wrong = []
    for name, cell in found.items():
        if not name.startswith("map"):
            continue
        for part in ("train", "test"):
            here, control = cell[part]["stress"][2], cell[part]["stress_of_paths_elsewhere"][2]
            # few paths need few coordinates wherever they end
            if not here > (max(0.6, control + 0.05) if len(cell["runs"]) >= 9 else 0.6):
                wrong.append(f"{name}, {part}: three coordinates explain {here:.2f}, of paths elsewhere {control:.2f}")
    return wrong
