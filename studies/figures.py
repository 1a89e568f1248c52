"""Figures and tables of the neuromanifold study, from its kept results alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from densities import EDGES, SMALL
from drawing import STYLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import read

TITLES = {"ag_news": "AG News", "sst2": "SST-2", "language": "next character"}
STAGES = ("before", "after")
INK = {"blue": "#1f5fa8", "orange": "#c2571a", "green": "#2c7a4b", "grey": "#777777"}


def make(results: Path, folder: Path) -> None:
    """Write every figure whose results are there, as SVG."""
    kept = read(results)
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, draw in (("densities", densities), ("layers", layers), ("variation", variation), ("cost", cost)):
            figure = draw(kept)
            if figure is not None:
                figure.savefig(folder / f"neuromanifold-{name}.svg", metadata={"Date": None})


def _cells(kept: dict[str, Any], kind: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for task in TITLES:
        for stage in STAGES:
            if f"{kind}-{task}-{stage}" in kept:
                yield task, stage, kept[f"{kind}-{task}-{stage}"]


def _tunings(kept: dict[str, Any], kind: str, task: str, stage: str) -> list[dict[str, Any]]:
    """The same cell of every fine-tuning, the first one first."""
    return [kept[name] for n in range(100) if (name := f"{kind}-{task}-{stage}" + (f"-{n}" if n else "")) in kept]


def _in_order(layers: dict[str, Any]) -> dict[str, Any]:
    """From input to output; JSON keeps names in alphabetical order."""
    ends = {"all": -2, "embeddings": -1, "tied table": -1, "last norm": 98, "head": 99}
    return dict(sorted(layers.items(), key=lambda item: ends[item[0]] if item[0] in ends else int(item[0].split()[1])))


def _grid(kept: dict[str, Any], kind: str, height: float) -> tuple[Figure, dict[tuple[str, str], Axes]] | None:
    """One row per task, one column per stage."""
    tasks = list(dict.fromkeys(task for task, _, _ in _cells(kept, kind)))
    if not tasks:
        return None
    figure = Figure(figsize=(8.0, height * len(tasks)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(tasks), 2, squeeze=False, sharex="row")
    places = {(task, stage): axes[i, j] for i, task in enumerate(tasks) for j, stage in enumerate(STAGES)}
    for (task, stage), axis in places.items():
        axis.set_title(f"{TITLES[task]}, {stage} {'training' if task == 'language' else 'fine-tuning'}", fontsize=9)
    return figure, places


def densities(kept: dict[str, Any]) -> Figure | None:
    """Density of log10 of the non-zero entries by layer; the mark is 1e-5."""
    grid = _grid(kept, "density", 2.3)
    if grid is None:
        return None
    figure, places = grid
    centres = (np.array(EDGES[1:]) + np.array(EDGES[:-1])) / 2
    for task, stage, cell in _cells(kept, "density"):
        axis, names = places[task, stage], [name for name in _in_order(cell["layers"]) if name != "all"]
        for i, name in enumerate(names):
            counts = np.array(cell["layers"][name]["histogram"])
            colour = mpl.colormaps["viridis"](i / max(1, len(names) - 1) * 0.9)
            axis.plot(centres, counts / counts.sum() / np.diff(EDGES), color=colour, linewidth=1.2, label=name)
        axis.axvline(np.log10(SMALL), color="black", linewidth=0.6, linestyle=":")
        axis.set(xlim=(-13, 3), ylim=(0, None), xlabel="log10 of an entry of the diagonal", ylabel="density")
        if stage == "after":
            axis.legend(frameon=False, fontsize=7, loc="upper left")
    return figure


def layers(kept: dict[str, Any]) -> Figure | None:
    """Mean entry of F with its interval, and of both bounds, by layer; grey dashes are other fine-tunings."""
    grid = _grid(kept, "density", 2.2)
    if grid is None:
        return None
    figure, places = grid
    for task, stage, cell in _cells(kept, "density"):
        axis, names = places[task, stage], [name for name in _in_order(cell["layers"]) if name != "all"]
        found = [cell["layers"][name] for name in names]
        mean, x = np.array([entry["mean"]["value"] for entry in found]), np.arange(len(names))
        below = mean - np.array([max(entry["mean"]["low"], 1e-12) for entry in found])
        above = np.array([entry["mean"]["high"] for entry in found]) - mean
        share = {kind: np.array([entry[f"{kind}_trace_share"] for entry in found]) for kind in ("lower", "upper")}
        axis.plot(x, mean * share["upper"], "v", color=INK["orange"], markersize=5, label="upper, diag p")
        axis.errorbar(
            x, mean, yerr=[below, above], fmt="o", color="black", markersize=3.5, capsize=2, linewidth=0.8, label="F"
        )
        axis.plot(x, mean * share["lower"], "^", color=INK["blue"], markersize=5, label="lower, top eigenpair")
        for other in _tunings(kept, "density", task, stage)[1:]:
            again = [other["layers"][name]["mean"]["value"] for name in names]
            axis.plot(x + 0.25, again, "_", color=INK["grey"], markersize=6)
        axis.set(yscale="log", ylabel="mean entry")
        axis.set_xticks(x, [name.replace("layer ", "") for name in names], rotation=25, fontsize=7)
    next(iter(places.values())).legend(frameon=False, fontsize=7)
    return figure


def variation(kept: dict[str, Any]) -> Figure | None:
    """Predicted coefficient of variation of one draw, median entry, against the number of examples; thin lines are
    other fine-tunings."""
    grid = _grid(kept, "spread", 2.6)
    if grid is None:
        return None
    figure, places = grid
    lines = (
        ("signs, batch", {"factor": "symmetric", "group": "batch"}, INK["orange"], "-"),
        ("labels, batch", {"estimator": "monte_carlo", "group": "batch"}, INK["orange"], ":"),
        ("signs, example", {"factor": "symmetric", "group": "example"}, INK["blue"], "-"),
        ("signs, Cholesky, example", {"factor": "cholesky", "group": "example"}, INK["blue"], "--"),
        ("labels, example", {"estimator": "monte_carlo", "group": "example"}, INK["blue"], ":"),
    )
    for task, stage, cell in _cells(kept, "spread"):
        axis, sizes = places[task, stage], sorted(cell["predicted"], key=int)
        for label, wanted, colour, style in lines:
            look: dict[str, Any] = {"label": label, "marker": ".", "markersize": 4}
            for one in _tunings(kept, "spread", task, stage):
                values = [spread_of(one["predicted"][n], wanted) for n in sizes]
                # two classes: one column, nothing varies, and a logarithmic axis has no zero
                if min(values) > 1e-6:
                    axis.plot([int(n) for n in sizes], values, style, color=colour, **look)
                look = {"linewidth": 0.5, "alpha": 0.6}
        axis.axhline(2**0.5, color="black", linewidth=0.6, linestyle=":")
        axis.set(xscale="log", yscale="log", xlabel="examples", ylabel="coefficient of variation")
        axis.set_xticks([int(n) for n in sizes], sizes)
        axis.minorticks_off()
    next(iter(places.values())).legend(frameon=False, fontsize=7)
    return figure


def spread_of(rows: list[dict[str, Any]], wanted: dict[str, str]) -> float:
    """Median coefficient of variation of the row that has these options."""
    return next(float(row["diagonal"][1]) for row in rows if all(row.get(k) == v for k, v in wanted.items()))


def cost(kept: dict[str, Any]) -> Figure | None:
    """Measured error against measured time on the next-token model: diagonal and trace."""
    if "draws" not in kept:
        return None
    cell = kept["draws"]
    named = _by_budget(cell["estimators"])
    figure = Figure(figsize=(8.0, 4.2), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, sharey=True)
    families = list(dict.fromkeys(name.rpartition(", ")[0] for name in named))
    for axis, quantity in zip(axes, ("diagonal", "trace"), strict=True):
        for i, family in enumerate(families):
            rows = [r for name, r in named.items() if name.rpartition(", ")[0] == family and quantity in r]
            if not rows:
                continue
            x, error = [row["units"] for row in rows], [row[quantity] for row in rows]
            middle = np.array([e["value"] for e in error])
            spans = [middle - [e["low"] for e in error], np.array([e["high"] for e in error]) - middle]
            colour, marker = mpl.colormaps["tab20"](i % 20), "osv^D"[i % 5]
            axis.errorbar(x, middle, yerr=spans, color=colour, marker=marker, markersize=4, linewidth=1, label=family)
        axis.axvline(cell["exact_units"], color="black", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", yscale="log", xlabel="time, forward and backward passes", title=quantity)
    axes[0].set_ylabel("relative error (root mean square)")
    figure.legend(*axes[1].get_legend_handles_labels(), frameon=False, fontsize=7, loc="outside lower center", ncols=4)
    return figure


def _by_budget(estimators: dict[str, Any]) -> dict[str, Any]:
    """By family, then by samples or sketch."""
    split = {name: name.rpartition(", ") for name in estimators}
    return {name: estimators[name] for name in sorted(split, key=lambda name: (split[name][0], int(split[name][2])))}


def tables(results: Path) -> str:
    """Markdown of the numbers that the page quotes."""
    kept, lines = read(results), []
    lines += [
        "| model | stage | layer | mean entry (95 %) | < 1e-5, mean | < 1e-5, sum | zeros | lower tr | upper tr |"
    ]
    lines += ["|---" * 9 + "|"]
    for task, stage, cell in _cells(kept, "density"):
        for layer, entry in _in_order(cell["layers"]).items():
            mean, small = entry["mean"], entry["small"]
            shares = f"{entry['lower_trace_share']:.3f} | {entry['upper_trace_share']:.3f}"
            lines.append(
                f"| {TITLES[task]} | {stage} | {layer} | {mean['value']:.1e} ({mean['low']:.1e}, {mean['high']:.1e}) | "
                f"{small['value']:.1%} ({small['low']:.1%}, {small['high']:.1%}) | {entry['small_of_sum']:.1%} | "
                f"{entry['zeros']:.1%} | {shares} |"
            )
    for kind in ("accuracy", "order"):
        lines += ["", *(f"{kind} {task} {stage}: {cell}" for task, stage, cell in _cells(kept, kind))]
    lines += ["", "| model | stage | examples | estimator | group | CV 10 %, median, 90 % | CV of the trace |"]
    lines += ["|---" * 7 + "|"]
    for task, stage, cell in _cells(kept, "spread"):
        count = max(cell["predicted"], key=int)
        for row in cell["predicted"][count]:
            name = row.get("factor", "labels")
            trace = "" if row["trace"] is None else f"{row['trace']:.2e}"
            spread = ", ".join(f"{v:.2e}" for v in row["diagonal"])
            lines.append(f"| {TITLES[task]} | {stage} | {count} | {name} | {row['group']} | {spread} | {trace} |")
    lines += ["", *_ranges(kept)]
    lines += ["", *(f"{name}: {kept[name]}" for name in ("text", "cost-ag_news", "cost-sst2") if name in kept)]
    if "draws" in kept:
        lines += ["", f"exact: {kept['draws']['exact_units']:.0f} units", "| estimator | units | diagonal | trace |"]
        lines += ["|---" * 4 + "|"]
        for name, row in _by_budget(kept["draws"]["estimators"]).items():
            parts = (row.get("diagonal"), row["trace"])
            text = " | ".join(
                "–" if e is None else f"{e['value']:.3g} ({e['low']:.2g}, {e['high']:.2g})" for e in parts
            )
            lines.append(f"| {name} | {row['units']:.1f} | {text} |")
    return "\n".join(lines)


def _ranges(kept: dict[str, Any]) -> Iterator[str]:
    """Lowest and highest over fine-tunings of what the page quotes."""

    def told(values: list[float], form: str) -> str:
        return " to ".join(format(value, form) for value in (min(values), max(values)))

    for task in ("ag_news", "sst2"):
        found = {kind: _tunings(kept, kind, task, "after") for kind in ("accuracy", "density", "spread")}
        if len(found["density"]) < 2:
            continue
        yield f"{TITLES[task]}, {len(found['density'])} fine-tunings, lowest to highest:"
        yield f"  accuracy {told([cell['accuracy']['value'] for cell in found['accuracy']], '.1%')}"
        yield f"  confidence {told([cell['output_space']['confidence'] for cell in found['density']], '.3f')}"
        for layer in _in_order(found["density"][0]["layers"]):
            cells = [cell["layers"][layer] for cell in found["density"]]
            yield (
                f"  {layer}: mean {told([c['mean']['value'] for c in cells], '.1e')}, "
                f"< 1e-5 (mean) {told([c['small']['value'] for c in cells], '.1%')}, "
                f"(sum) {told([c['small_of_sum'] for c in cells], '.1%')}, "
                f"lower {told([c['lower_trace_share'] for c in cells], '.3f')}, "
                f"upper {told([c['upper_trace_share'] for c in cells], '.2f')}"
            )
        count = max(found["spread"][0]["predicted"], key=int)
        for row in found["spread"][0]["predicted"][count]:
            wanted = {key: row[key] for key in ("estimator", "factor", "group") if key in row}
            values = [spread_of(cell["predicted"][count], wanted) for cell in found["spread"]]
            yield f"  {', '.join(str(v) for v in wanted.values())}, {count} texts: {told(values, '.2f')}"
