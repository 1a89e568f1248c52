"""Accuracy against sparsity, in one shot and fine-tuned, from the pruning studies' kept results alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from drawing import STYLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pruning_methods import SPARSITIES
from pruning_tables import kept, kept_tuned
from runs import proportion

COLOURS = {
    "magnitude": "#777777",
    "OBD": "#c2571a",
    "lowest Fisher": "#9b3d8f",
    "OBS, K-FAC": "#2c7a4b",
    "magnitude + K-FAC update": "#c9a227",
    "OBS, K-FAC, recomputed": "#1f5fa8",
}
TUNED = {"magnitude": "magnitude", "curvature": "OBS, K-FAC, recomputed"}
TITLES = {"mlp": "perceptron, MNIST", "resnet20": "ResNet-20, CIFAR-10", "resnet56": "ResNet-56, CIFAR-10"}


def make(results: Path, folder: Path) -> None:
    """Write ``pruning-accuracy.svg``: a panel for each network there is."""
    found, tuned = kept(results), kept_tuned(results / "tuned")
    models = [model for model in TITLES if any(key.startswith(f"{model}|") for key in found)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 3.2), layout="constrained", facecolor="white")
        axes = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
        for axis, model in zip(axes, models, strict=True):
            for name, colour in COLOURS.items():
                _line(axis, [v for key, v in found.items() if key.split("|")[::2] == [model, name]], name, colour)
            for word, name in TUNED.items():
                _dots(axis, model, word, tuned, name)
            axis.set_xticks(range(len(SPARSITIES)), [f"{100 * s:g}" for s in SPARSITIES])
            axis.set(title=TITLES[model], xlabel="weights gone, %")
        axes[0].set_ylabel("test accuracy, %")
        handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=7)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "pruning-accuracy.svg", metadata={"Date": None})


def _line(axis: Axes, values: list[Any], name: str, colour: str) -> None:
    """Mean over the seeds, with Wilson's interval at one seed's number of images."""
    if not values:
        return
    count = values[0]["count"]
    means = [statistics.mean(value["rows"][f"{s:g}"]["hits"] for value in values) for s in SPARSITIES]
    ends = [proportion(round(mean), count) for mean in means]
    low, high = ([100 * end[side] for end in ends] for side in ("low", "high"))
    axis.fill_between(range(len(ends)), low, high, color=colour, alpha=0.15, linewidth=0)
    axis.plot([100 * mean / count for mean in means], color=colour, linewidth=1.2, label=name)


def _dots(axis: Axes, model: str, word: str, tuned: Mapping[str, Any], name: str) -> None:
    shown: dict[int, list[float]] = {}
    for key, cell in tuned.items():
        network, _, start, sparsity = key.split("|")
        if (network, start) == (model, word):
            place = SPARSITIES.index(float(sparsity))
            shown.setdefault(place, []).append(100 * cell["hits"]["after"] / cell["count"])
    if shown:
        places = sorted(shown)
        heights = [statistics.mean(shown[place]) for place in places]
        axis.plot(places, heights, "o--", color=COLOURS[name], linewidth=1, markersize=3, label=f"{name}, fine-tuned")
