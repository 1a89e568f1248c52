"""Study 1: eigenvalues of the Fisher matrix at the beginning, the middle and the end of training, over the data's.

After Cowlagi & Chaudhari (AAAI 2022, student abstract), who give no thresholds, sizes or settings: a 9-layer All-CNN on
CIFAR-10, two-layer perceptrons on housing tables, perceptrons of several shapes on MNIST, the same on noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import networks
import public_data
import torch
from public_data import Split
from runs import data_folder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dynaxx
from dynaxx.spectrum import Spectrum

CURVE = 60  # points of a kept spectrum
PLACES = (0.0, 0.05, 0.25, 0.5, 0.75)  # shares of the largest possible rank whose eigenvalues are followed


@dataclass(frozen=True)
class Task:
    """A network on data, and how it is trained.

    Args:
        data: "cifar10", "cifar10_jpeg", "mnist", "boston", "california_housing", "noise".
        network: "all-cnn" or "perceptron".
        widths: of the perceptron's hidden layers, or (width,) of the All-CNN.
        train, test: examples. probe: the first so many training examples, on which spectra are measured.
        rate: of SGD with momentum 0.9, falling as a cosine to zero. augment: shift and mirror images at random.
    """

    data: str
    network: str
    widths: tuple[int, ...]
    train: int
    test: int
    probe: int
    epochs: int
    batch: int
    rate: float
    seeds: int
    augment: bool = False

    @property
    def name(self) -> str:
        """As its cell is called."""
        shape = "all-cnn" if self.network == "all-cnn" else f"{len(self.widths)}x{self.widths[0]}"
        return f"{self.data}-{shape}"

    def options(self) -> dict[str, Any]:
        """What a run of it depends on."""
        return {key: value for key, value in vars(self).items() if key != "seeds" and (key != "augment" or value)}

    def load(self, data: Path | None, seed: int) -> Split:
        """Its data: float64 for perceptrons, float32 for convolutions."""
        if self.data == "noise":
            split = public_data.noise(self.train, self.test, 784, 10, seed)
        elif self.data in public_data.TARGET:
            split = public_data.table(data_folder(data), self.data, self.train, seed)
        else:
            split = public_data.images(data_folder(data), self.data, self.train, self.test)
        return split if self.network == "all-cnn" else split.double()

    def build(self, split: Split, seed: int) -> nn.Module:
        """The network before training."""
        torch.manual_seed(seed)
        outputs = 1 if split.y.is_floating_point() else 10
        if self.network == "all-cnn":
            return networks.all_cnn(self.widths[0], outputs).eval()
        return networks.perceptron((split.x[0].numel(), *self.widths, outputs)).to(split.x.dtype).eval()

    def fit(self, model: nn.Module, split: Split, seed: int, on_step: Callable[[], Any] = lambda: None) -> None:
        """Train it."""
        sgd: networks.Optimiser = partial(torch.optim.SGD, lr=self.rate, momentum=0.9)
        how: dict[str, Any] = {"epochs": self.epochs, "batch": self.batch, "augment": self.augment, "seed": seed}
        networks.train(model, split.x, split.y, sgd, **how, on_step=on_step)

    def trained(self, split: Split, seed: int, cache: Path) -> tuple[nn.Module, nn.Module]:
        """(before, after) training; weights are kept in the cache folder between runs."""
        before, after = self.build(split, seed), self.build(split, seed)
        path = self.cached(cache, seed)
        if path.exists():
            after.load_state_dict(load_file(path))
        else:
            self.fit(after, split, seed)
            self.keep(after, cache, seed)
        return before, after.eval()

    def keep(self, model: nn.Module, cache: Path, seed: int) -> None:
        """Put trained weights where ``trained`` finds them."""
        cache.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, self.cached(cache, seed))

    def cached(self, cache: Path, seed: int) -> Path:
        """Its weights' file."""
        how = f"{self.train}-{self.epochs}-{self.batch}-{self.rate}" + "-augmented" * self.augment
        return cache / f"{self.name}-{self.widths[0]}-{how}-{seed}.safetensors"


ALL_CNN = Task("cifar10", "all-cnn", (12,), train=4000, test=1000, probe=100, epochs=12, batch=50, rate=0.05, seeds=3)
SHAPES = tuple((width,) * depth for depth in (1, 2, 3) for width in (32, 128))


def _perceptrons(data: str, probe: int, epochs: int, seeds: int, shapes: tuple[tuple[int, ...], ...]) -> list[Task]:
    return [Task(data, "perceptron", shape, 2000, 2000, probe, epochs, 50, 0.05, seeds) for shape in shapes]


@dataclass(frozen=True)
class Sizes:
    """What decides how long the study takes.

    Args:
        tasks: networks on data.
        stages: shares of the training at which spectra are measured; the first and last are 0 and 1.
    """

    tasks: tuple[Task, ...] = field(
        default_factory=lambda: (
            Task("boston", "perceptron", (32,), 404, 0, 404, 200, 50, 0.02, 5),
            Task("california_housing", "perceptron", (32,), 4000, 0, 500, 20, 50, 0.02, 5),
            *_perceptrons("mnist", 100, 20, 3, SHAPES),
            *_perceptrons("noise", 100, 20, 3, SHAPES),
            ALL_CNN,
        )
    )
    stages: tuple[float, ...] = (0.0, 0.02, 0.1, 0.5, 1.0)


QUICK = Sizes(
    tasks=(
        replace(Sizes().tasks[0], seeds=2, epochs=60, probe=100),
        *_perceptrons("mnist", 30, 15, 2, ((32,),)),
        *_perceptrons("noise", 30, 15, 2, ((32,),)),
    ),
    stages=(0.0, 0.1, 0.5, 1.0),
)


def told(spectrum: Spectrum) -> dict[str, Any]:
    """A spectrum for a file: its metrics, its trace, some eigenvalues by place, and a thinned curve."""
    values, rank = spectrum.eigenvalues, spectrum.rank
    if not rank:
        return spectrum.sloppiness().as_dict() | {"trace": 0.0, "at": {}, "curve": {"share": [], "decades": []}}
    bound = spectrum.rank_bound or len(values)
    chosen = sorted({round(i * (rank - 1) / (CURVE - 1)) for i in range(CURVE)})
    at = {f"{place:g}": float(values[min(math.floor(place * bound), len(values) - 1)]) for place in PLACES}
    return spectrum.sloppiness().as_dict() | {
        "trace": float(spectrum.trace()),
        "at": {place: value if value > spectrum.floor else 0.0 for place, value in at.items()},
        "curve": {
            "share": networks.rounded([(i + 1) / rank for i in chosen]),
            "decades": networks.rounded([math.log10(values[i] / values[0]) for i in chosen]),
        },
    }


def fitted_decades(kept: dict[str, Any]) -> float:
    """Slope times rank: the decades the whole spectrum would span at the slope of its middle."""
    return float(kept["slope"] * kept["rank"])


def run(task: Task, stages: tuple[float, ...], data: Path | None, cache: Path, seed: int) -> dict[str, Any]:
    """One training, looked at in the chosen stages."""
    split = task.load(data, seed)
    model = task.build(split, seed)
    total = task.epochs * math.ceil(len(split.x) / task.batch)
    steps = [round(stage * total) for stage in stages]
    probe: Tensor = split.x[: task.probe]
    likelihood = "gaussian" if split.y.is_floating_point() else "categorical"
    found: list[dict[str, Any]] = []

    def look() -> None:
        loss = float(networks.loss_of(networks.outputs(model, split.x), split.y))
        fisher = told(track.records[-1].fisher)
        kernel = track.records[-1].ntk
        found.append({"step": track.steps, "train_loss": loss, "fisher": fisher,
                      "kernel_trace": None if kernel is None else float(kernel.trace())})  # fmt: skip

    def step() -> None:
        if track.step() is not None:
            look()
            model.train()

    # the kernel of a regression is its Fisher matrix, and that of the All-CNN takes as long again
    kernel = likelihood == "categorical" and task.network == "perceptron"
    with dynaxx.track_spectrum(model, probe, steps=steps, likelihood=likelihood, ntk=kernel) as track:
        look()
        task.fit(model, split, seed, step)
    task.keep(model, cache, seed)
    assert track.data is not None
    return {
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "probe": len(probe),
        "train_error": networks.error(model, split.x, split.y),
        "test_error": networks.error(model, split.x_test, split.y_test),
        "data": told(track.data),
        "data_centred": told(dynaxx.data_spectrum(probe, centred=True)),
        "stages": found,
    }


def cells(sizes: Sizes, data: Path | None, cache: Path) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(name, what it depends on, how it is made) of every cell: a task and a seed, the first seeds of all first."""
    for seed in range(max(task.seeds for task in sizes.tasks)):
        for task in sizes.tasks:
            if seed < task.seeds:
                options = task.options() | {"stages": sizes.stages, "seed": seed}
                yield f"{task.name}-{seed}", options, partial(run, task, sizes.stages, data, cache, seed)


def check(found: dict[str, dict[str, Any]]) -> list[str]:
    """What must hold at any size; returns what does not."""
    wrong = []
    for name, cell in found.items():
        stiff, traces = ([stage["fisher"][key] for stage in cell["stages"]] for key in ("stiff", "trace"))
        if not name.startswith("noise") and max(stage["0.1"] for stage in stiff) > 0.3:
            wrong.append(f"{name}: {max(stage['0.1'] for stage in stiff):.0%} of the eigenvalues are stiff")
        if name.startswith("mnist") and not max(traces) > 2 * traces[-1]:
            wrong.append(f"{name}: the trace does not fall at the end: {traces}")
        if name.startswith("mnist") and (twin := found.get(name.replace("mnist", "noise"))) is not None:
            for kind, measure in (("data's", _centred), ("trained network's", _end)):
                flat, real = (measure(one)["decades"]["0.9"] for one in (twin, cell))
                if not flat < real:
                    wrong.append(f"{name}: the {kind} spectrum spans {real:.1f} decades, on noise {flat:.1f}")
    return wrong


def _centred(cell: dict[str, Any]) -> dict[str, Any]:
    return dict(cell["data_centred"])


def _end(cell: dict[str, Any]) -> dict[str, Any]:
    return dict(cell["stages"][-1]["fisher"])
