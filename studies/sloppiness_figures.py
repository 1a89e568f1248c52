"""Figures of the sloppiness studies, from their kept results alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from drawing import STYLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import read
from sloppiness_tables import replicates

BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#c2571a", "#2c7a4b", "#777777"
TITLES = {
    "boston-1x32": "Boston housing, 13-32-1",
    "california_housing-1x32": "California housing, 8-32-1",
    "mnist-2x128": "MNIST, 784-128-128-10",
    "noise-2x128": "noise, 784-128-128-10",
    "cifar10-all-cnn": "CIFAR-10, All-CNN",
    "cifar10_jpeg-all-cnn": "All-CNN, longer",
    "mnist-2x24": "MNIST, 784-24-24-10",
}
SUBSPACES = {"eigenvectors": BLUE, "magnitude": ORANGE, "diagonal": GREEN, "random": GREY, "data": "#7a4a9c"}


def make(results: Path, folder: Path) -> None:
    """Write every figure whose results are there, as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = (
        ("spectra", "spectra", spectra),
        ("spectra", "stages", stages),
        ("reduction", "reduction", reduction),
        ("reduction", "maps", maps),
        ("synthetic", "synthetic", synthetic),
        ("pac_bayes", "bound", bound),
        ("trajectories", "trajectories", trajectories),
    )
    with mpl.rc_context(STYLE):
        for study, name, draw in drawn:
            kept = read(results / study)
            figure = draw(kept) if kept else None
            if figure is not None:
                figure.savefig(folder / f"sloppiness-{name}.svg", metadata={"Date": None})


def _panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray[Any, Any]]:
    figure = Figure(figsize=(8.0, height * rows), layout="constrained", facecolor="white")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def spectra(kept: dict[str, Any]) -> Figure | None:
    """Eigenvalues over the largest against the share of the rank, begin to end, over the data's."""
    names = [name for name in ("boston-1x32", "mnist-2x128", "noise-2x128", "cifar10-all-cnn") if f"{name}-0" in kept]
    if not names:
        return None
    figure, axes = _panels(1, len(names), 2.6, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        cell = kept[f"{name}-0"]
        axis.plot(cell["data"]["curve"]["share"], cell["data"]["curve"]["decades"], "--", color=GREY, label="data")
        looked = cell["stages"]
        for word, colour, stage in zip(("begin", "middle", "end"), (GREEN, ORANGE, BLUE), (looked[0], looked[-2],
                                       looked[-1]), strict=True):  # fmt: skip
            curve = stage["fisher"]["curve"]
            axis.plot(curve["share"], curve["decades"], color=colour, linewidth=1.2, label=word)
        axis.set_title(TITLES[name], fontsize=8)
        axis.set(xlabel="share of the rank", ylim=(-13, 0.5))
    axes[0, 0].set_ylabel("log10 of eigenvalue / largest")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def stages(kept: dict[str, Any]) -> Figure | None:
    """Trace, largest and middle eigenvalue over their values at the beginning, against the loss, by seed."""
    names = [name for name in ("boston-1x32", "mnist-2x128", "noise-2x128", "cifar10-all-cnn") if f"{name}-0" in kept]
    if not names:
        return None
    figure, axes = _panels(1, len(names), 2.6, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        for number, cell in enumerate(replicates(kept, name)):
            place = range(len(cell["stages"]))
            for label, colour, value in (
                ("trace", BLUE, lambda fisher: fisher["trace"]),
                ("largest", ORANGE, lambda fisher: fisher["at"]["0"]),
                ("median", GREEN, lambda fisher: fisher["at"]["0.5"]),
            ):
                values = np.array([value(stage["fisher"]) for stage in cell["stages"]])
                axis.semilogy(place, np.where(values > 0, values, np.nan) / values[0], ".-", color=colour, linewidth=1,
                              label=label if number == 0 else None)  # fmt: skip
        axis.axhline(1, color="0.7", linewidth=0.8, zorder=0)
        axis.set_title(TITLES[name], fontsize=8)
        steps = [stage["step"] for stage in kept[f"{name}-0"]["stages"]]
        axis.set_xticks(range(len(steps)), [str(step) for step in steps], rotation=45)
        axis.set_xlabel("step")
    axes[0, 0].set_ylabel("over its value before training")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def reduction(kept: dict[str, Any]) -> Figure | None:
    """Accuracy against k / p: means over seeds, lowest to highest as a band."""
    names = [name for name in ("mnist-2x24", "cifar10-all-cnn", "cifar10_jpeg-all-cnn") if f"{name}-0" in kept]
    if not names:
        return None
    figure, axes = _panels(len(names), 2, 2.5, sharey="row")
    for row, name in zip(axes, names, strict=True):
        cells = replicates(kept, name)
        for axis, centre in zip(row, ("origin", "init"), strict=True):
            for subspace, colour in SUBSPACES.items():
                points: list[Sequence[dict[str, float]]] = [
                    [row for row in cell["curves"][centre] if row["subspace"] == subspace] for cell in cells
                ]
                if not any(points):
                    continue  # no k is as large as the control needs
                share = np.mean([[point["k"] / cell["parameters"] for point in one]
                                 for one, cell in zip(points, cells, strict=True)], 0)  # fmt: skip
                scores = np.array([[point["score"] for point in one] for one in points])
                axis.semilogx(share, scores.mean(0), ".-", color=colour, linewidth=1.2, label=subspace)
                axis.fill_between(share, scores.min(0), scores.max(0), color=colour, alpha=0.15, linewidth=0)
            axis.axhline(np.mean([cell["full"] for cell in cells]), color="0.4", linestyle=":", linewidth=1)
            axis.set_title(f"{TITLES[name]}, about the {'origin' if centre == 'origin' else 'start'}", fontsize=8)
            axis.set_xticks([0.01, 0.1], ["1 %", "10 %"])
        row[0].set_ylabel("test accuracy")
    for axis in axes[-1]:
        axis.set_xlabel("k / p")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def maps(kept: dict[str, Any]) -> Figure | None:
    """Test images as the full and the projected models see them, coloured by label."""
    names = [name for name in ("mnist-2x24", "cifar10-all-cnn") if f"{name}-0" in kept]
    if not names:
        return None
    which = {"full": "full", "origin, 1%": "1 %", "origin, 5%": "5 %", "origin, rank": "the rank"}
    figure, axes = _panels(len(names), len(which), 2.1)
    for row, name in zip(axes, names, strict=True):
        seen = kept[f"{name}-0"]["map"]
        for axis, (key, word) in zip(row, which.items(), strict=True):
            axis.scatter(*seen["coordinates"][key], c=seen["labels"], cmap="tab10", s=5, linewidths=0)
            axis.set_title(f"{word}: {seen['stress'][key][1]:.0%} of the stress", fontsize=8)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(TITLES[name], fontsize=8)
    return figure


def synthetic(kept: dict[str, Any]) -> Figure | None:
    """Errors on training and other examples, and the spectra of network and data."""
    figure, axes = _panels(1, 2, 2.8)
    names = sorted(
        {name.rsplit("-", 1)[0] for name in kept}, key=lambda n: (n.split("-")[1], float(n[1:].split("-")[0]))
    )
    for place, name in enumerate(names):
        for cell in replicates(kept, name):
            axes[0, 0].plot(place, cell["train_error"], "o", color=BLUE, markersize=4)
            axes[0, 0].plot(place, cell["validation_error"], "s", color=ORANGE, markersize=4)
    axes[0, 0].plot([], [], "o", color=BLUE, label="seen in training")
    axes[0, 0].plot([], [], "s", color=ORANGE, label="not seen")
    axes[0, 0].set_xticks(
        range(len(names)), [name.replace("-", "\n").replace("b", "b = ", 1) for name in names], fontsize=7
    )
    axes[0, 0].set(ylabel="share wrong", ylim=(0, 0.7))
    axes[0, 0].legend(frameon=False, fontsize=8)
    for b, kind, colour in (("0.001", "overlapping", GREEN), ("0.001", "loud", GREY), ("0.2", "overlapping", BLUE)):
        if f"b{b}-{kind}-0" not in kept:
            continue
        cell = kept[f"b{b}-{kind}-0"]
        name = f"b = {b}" + (", loud" if kind == "loud" else "")
        for curve, line in ((cell["fisher"]["end"]["curve"], "-"), (cell["data"]["curve"], "--")):
            if line == "-" or kind != "loud":  # whose data's spectrum is the faint ones' but for its scale
                label = f"{name}, {'Fisher' if line == '-' else 'data'}"
                axes[0, 1].plot(curve["share"], curve["decades"], line, color=colour, linewidth=1.2, label=label)
    axes[0, 1].set(xlabel="share of the rank", ylabel="log10 of eigenvalue / largest")
    axes[0, 1].legend(frameon=False, fontsize=7)
    return figure


def bound(kept: dict[str, Any]) -> Figure | None:
    """Formula, certificate and measured error against the precision of the prior."""
    figure, axes = _panels(1, 2, 2.8, sharey=True)
    for axis, labels in zip(axes[0], ("true", "random"), strict=True):
        for number, cell in enumerate(replicates(kept, labels)):
            rows = cell["by_scale"]
            scale = [row["prior_precision"] for row in rows]
            for word, colour, values in (
                ("formula", GREY, [row["bound"] for row in rows]),
                ("errors of drawn weights + complexity", BLUE, [row["certificate"] for row in rows]),
                ("drawn weights, test error", ORANGE, [row["test_error"]["mean"] for row in rows]),
            ):
                axis.semilogx(scale, values, ".-", color=colour, linewidth=1.2, label=word if number == 0 else None)
        axis.set_title(f"{labels} labels", fontsize=9)
        axis.set(xlabel="precision of the prior", ylim=(0, 1.6))
    axes[0, 0].set_ylabel("share wrong, or its bound")
    axes[0, 0].legend(frameon=False, fontsize=7)
    return figure


def trajectories(kept: dict[str, Any]) -> Figure | None:
    """Two coordinates of all checkpoints, by architecture and by optimiser, with ignorance and truth."""
    drawn = [name for name in sorted(kept) if name.startswith("map-")]
    if not drawn:
        return None
    cell = kept[drawn[-1]]
    figure, axes = _panels(1, 2, 3.4, sharex=True, sharey=True)
    seen = cell["train"]
    x, y = (np.array(row).reshape(len(cell["runs"]), -1) for row in seen["coordinates"][:2])
    for axis, (factor, title) in zip(axes[0], ((0, "by architecture"), (1, "by optimiser")), strict=True):
        _lines(axis, x, y, [run[factor] for run in cell["runs"]])
        for (a, b, *_), word in zip(seen["ends"], ("ignorance", "truth"), strict=True):
            axis.plot(a, b, "k*", markersize=8)
            axis.annotate(word, (a, b), textcoords="offset points", xytext=(0, -13), ha="center", fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel=f"coordinate 1 ({seen['stress'][0]:.0%} of the stress)", ylabel="coordinate 2")
        axis.legend(frameon=False, fontsize=8)
    return figure


def _lines(axis: Axes, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], groups: Sequence[str]) -> None:
    colours = dict(zip(dict.fromkeys(groups), (BLUE, ORANGE, GREEN), strict=False))
    named: set[str] = set()
    for a, b, group in zip(x, y, groups, strict=True):
        axis.plot(
            a, b, ".-", color=colours[group], linewidth=0.8, markersize=3, label=None if group in named else group
        )
        named.add(group)
