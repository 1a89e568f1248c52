"""Study 3: does a sloppy input correlation make a network generalise?

Yang, Mao & Chaudhari (ICML 2022) draw inputs whose correlation matrix has eigenvalues ~ exp(-2 b i), label them by a
random teacher, and fit a wide student. Their published notebook cuts the 50,000 examples into batches that overlap,
``data[i : i + 1000]`` for i = 0 to 49, so that 1,049 of them are seen. Both are run here: "overlapping", and "all".
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import networks
import torch
from networks import Optimiser
from spectra import fitted_decades, told
from torch import Tensor, nn

import dynaxx

PUBLISHED = {"train_error": 0.0749, "validation_error": 0.5035}  # b = 0.001


@dataclass(frozen=True)
class Sizes:
    """What decides how long the study takes.

    Args:
        runs: (b, batches, how many seeds), the first seeds of all first. Batches are "overlapping", "all", or
            "loud", which is overlapping with inputs scaled up to the variance of the sloppiest b.
        train, validation: examples drawn. width: inputs. hidden: of the teacher. student: hidden units.
        probe: examples of the Fisher matrix.
    """

    runs: tuple[tuple[float, str, int], ...] = (
        (0.001, "overlapping", 3),
        (0.02, "overlapping", 3),
        (0.2, "overlapping", 3),
        (0.001, "all", 1),
        (0.02, "all", 1),
        (0.001, "loud", 3),
    )
    train: int = 50_000
    validation: int = 10_000
    width: int = 200
    hidden: int = 50
    student: int = 1000
    classes: int = 10
    epochs: int = 50
    batch: int = 1000
    probe: int = 150


QUICK = Sizes(
    runs=((0.001, "overlapping", 1), (0.2, "overlapping", 1)),
    train=4000, validation=2000, student=100, epochs=40, batch=100, probe=20,
)  # fmt: skip


def draw(sizes: Sizes, b: float, seed: int, loud: bool = False) -> tuple[Tensor, Tensor]:
    """Inputs x = c exp(-b i) e / sqrt(d), c = 50 b, and the teacher's labels, as published.

    Small b therefore means faint inputs too: the root mean square of |x| is 0.05 at b = 0.001 and 1.2 at 0.2.

    Args:
        loud: scale the inputs to the mean square that the largest b of the study has, to tell the two apart.
    """
    generator = torch.Generator().manual_seed(seed)
    s, d = sizes, sizes.width
    x = torch.randn(s.train + s.validation, d, generator=generator)
    profile = lambda rate: 50 * rate * torch.exp(-rate * torch.arange(d)) / d**0.5  # noqa: E731
    x *= profile(b)
    if loud:
        x *= profile(max(rate for rate, *_ in sizes.runs)).norm() / profile(b).norm()
    first = torch.randn(d, s.hidden, generator=generator) / d**0.5
    second = torch.randn(s.hidden, s.classes, generator=generator) / s.hidden**0.5
    return x, (torch.tanh(x @ first) @ second).argmax(1)


def batches(sizes: Sizes, kind: str) -> list[slice]:
    """Batches of one epoch, as many for either kind."""
    step = sizes.batch if kind == "all" else 1
    return [slice(step * i, step * i + sizes.batch) for i in range(sizes.train // sizes.batch)]


def run(sizes: Sizes, b: float, kind: str, seed: int) -> dict[str, Any]:
    """One student."""
    x, y = draw(sizes, b, seed, kind == "loud")
    torch.manual_seed(seed)
    model = networks.perceptron((sizes.width, sizes.student, sizes.classes), nn.Sigmoid)
    initial = copy.deepcopy(model)
    adam: Optimiser = partial(torch.optim.Adam, lr=1e-3)
    parts = batches(sizes, kind)
    networks.train(model, x, y, adam, epochs=sizes.epochs, batch=sizes.batch, seed=seed, final=0.01, batches=parts)
    seen, held = parts[-1].stop, slice(sizes.train, None)
    probe = x[: sizes.probe].double()
    spectrum = lambda network: told(dynaxx.fisher_spectrum(copy.deepcopy(network).double(), probe))  # noqa: E731
    return {
        "distinct_examples": seen,
        "train_error": networks.error(model, x[:seen], y[:seen]),
        "validation_error": networks.error(model, x[held], y[held]),
        "chance_error": 1 - float(torch.bincount(y[held]).max()) / sizes.validation,
        "length": float(nn.utils.parameters_to_vector(model.parameters()).detach().norm()),
        "data": told(dynaxx.data_spectrum(x[held].double())),
        "fisher": {"begin": spectrum(initial), "end": spectrum(model)},
    }


def cells(sizes: Sizes, data: Path | None, cache: Path) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(name, what it depends on, how it is made) of every cell."""
    options = {key: value for key, value in asdict(sizes).items() if key != "runs"}
    for seed in range(max(count for *_, count in sizes.runs)):
        for b, kind, count in sizes.runs:
            if seed < count:
                about = {"b": b, "batches": kind, "seed": seed}
                about |= {"as_loud_as": max(rate for rate, *_ in sizes.runs)} if kind == "loud" else {}
                yield f"b{b:g}-{kind}-{seed}", options | about, partial(run, sizes, b, kind, seed)


def check(found: dict[str, dict[str, Any]]) -> list[str]:
    """What must hold at any size; returns what does not."""
    wrong = []
    flat, sloppy = (found.get(f"b{b}-overlapping-0") for b in ("0.001", "0.2"))
    if flat is not None and sloppy is not None:
        if not flat["validation_error"] > sloppy["validation_error"] + 0.1:
            wrong.append(
                f"{flat['validation_error']:.2f} wrong on flat data, {sloppy['validation_error']:.2f} on sloppy"
            )
        # of the middle of the spectrum: a few directions stand far above it, which tiny inputs do not enter
        if not fitted_decades(sloppy["fisher"]["end"]) > fitted_decades(flat["fisher"]["end"]) + 1:
            wrong.append("the Fisher matrix of sloppy data falls no faster than that of flat data")
    return wrong
