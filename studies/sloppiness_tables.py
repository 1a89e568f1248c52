"""Tables of docs/studies/sloppiness.md, from the kept results alone, and their places on the page."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from networks import over_seeds
from runs import read, records
from spectra import fitted_decades

Kept = dict[str, Any]
STUDIES = ("spectra", "reduction", "synthetic", "pac_bayes", "trajectories")
TASKS = {
    "boston-1x32": "Boston",
    "california_housing-1x32": "California",
    "mnist-2x128": "MNIST, 2 × 128",
    "noise-2x128": "noise, 2 × 128",
    "cifar10-all-cnn": "CIFAR-10, All-CNN",
}
REDUCED = {
    "mnist-2x24": "MNIST",
    "cifar10-all-cnn": "All-CNN",
    "cifar10-all-cnn-sampled": "All-CNN, F sampled",
    "cifar10_jpeg-all-cnn": "All-CNN, longer",
    "cifar10_jpeg-all-cnn-matrices": "All-CNN, longer, kernels alone",
}
STAGES = ("begin", "end")
CENTRES = {"origin": "origin", "init": "start"}


def tables(results: Path) -> dict[str, str]:
    """Every table of the page, as Markdown, by its name."""
    made: dict[str, tuple[str, Callable[[Kept], str]]] = {
        "spectra": ("spectra", spectra),
        "growth": ("spectra", growth),
        "shapes": ("spectra", shapes),
        "reduction": ("reduction", reduction),
        "maps": ("reduction", maps),
        "synthetic": ("synthetic", synthetic),
        "bound": ("pac_bayes", bound),
        "stress": ("trajectories", stress),
        "factors": ("trajectories", factors),
    }
    kept = {study: read(results / study) for study in STUDIES}
    return {name: draw(kept[study]) for name, (study, draw) in made.items()} | {"time": durations(results)}


def placed(page: str, made: Mapping[str, str]) -> str:
    """The page with each table between ``<!-- table: name -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the page has no place for a table, or two.
    """
    for name, table in made.items():
        mark, end = f"<!-- table: {name} -->", "<!-- end -->"
        before, *rest = page.split(mark)
        if len(rest) != 1:
            raise ValueError(f"the page has {len(rest)} places for the table {name!r}; expected one {mark}")
        page = f"{before}{mark}\n\n{table}\n\n{end}{rest[0].split(end, 1)[1]}"
    return page


# ---------------------------------------------------------------------------------------------------------------------
# Words and numbers


def replicates(kept: Kept, name: str) -> list[dict[str, Any]]:
    """The cells of one name, seed by seed."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    return [kept[key] for key in sorted(kept) if pattern.fullmatch(key)]


def short(value: float, digits: int = 3) -> str:
    """So many significant digits, without an exponent between a thousandth and a million."""
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


def told(values: Sequence[float], form: Callable[[float], str] = short) -> str:
    """Mean and 95 % interval over seeds; the mean alone for one seed, or where all seeds agree."""
    found = over_seeds(values)
    if found["seeds"] < 2 or found["low"] == found["high"]:
        return form(found["value"])
    return f"{form(found['value'])} ({form(found['low'])}, {form(found['high'])})"


def fixed(places: int) -> Callable[[float], str]:
    """A form with so many decimals."""
    return lambda value: f"{value:,.{places}f}"


def percent(values: Sequence[float], interval: bool = True) -> str:
    """Shares as percentages with one decimal."""
    shares = [100 * value for value in values]
    return told(shares if interval else [statistics.fmean(shares)], fixed(1))


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table.

    Raises:
        ValueError: a row has more or fewer cells than the head.
    """
    lines = [head, ["---"] * len(head), *rows]
    if len({len(line) for line in lines}) > 1:
        raise ValueError(f"rows of {sorted({len(line) for line in lines})} cells under a head of {len(head)}")
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# Study by study


def spectra(kept: Kept) -> str:
    """One row for each task and stage, the data's first."""
    two = partial(short, digits=2)

    def row(title: str, stage: str, found: Sequence[dict[str, Any]], floor: bool) -> list[str]:
        shares = [statistics.fmean(100 * one["stiff"][t] for one in found) for t in ("0.1", "0.01", "0.001")]
        decades = fixed(1)(statistics.fmean(one["decades"]["0.9"] for one in found))
        above = statistics.fmean(math.log10(one["largest"] / one["floor"]) for one in found)
        fit = statistics.fmean(one["r_squared"] for one in found)
        slope = told([fitted_decades(one) for one in found], fixed(2))
        trace = told([one["trace"] for one in found])
        return [
            title,
            stage,
            trace,
            " / ".join(map(two, shares)),
            decades + f" ({above:.1f})" * floor,
            f"{slope}, {fit:.2f}",
        ]

    def rows() -> Iterator[list[str]]:
        for name, title in TASKS.items():
            cells = replicates(kept, name)
            yield row(title, "data", [cell["data"] for cell in cells], True)
            stages = {0: "begin", 3: "middle", 4: "end"}
            if "2x128" in name:
                stages = {0: "begin", 2: "epoch 2", 3: "middle", 4: "end"}
            for number, word in stages.items():
                said = (
                    f"p = {cells[0]['parameters']:,}" if number == 0 else f"{len(cells)} seeds" if number == 3 else ""
                )
                yield row(said, word, [cell["stages"][number]["fisher"] for cell in cells], number == 0)

    return markdown(["", "stage", "trace", "stiff, %", "decades (of)", "slope × rank, R²"], rows())


def growth(kept: Kept) -> str:
    """What the end of training is of the beginning: geometric means over seeds, lowest to highest."""

    def ratio(cells: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> str:
        found = []
        for cell in cells:
            first, last = (value(cell["stages"][place]) for place in (0, -1))
            if not first or last is None:
                return "–"
            found.append(last / first)
        two = partial(short, digits=2)
        mean = statistics.geometric_mean(found)
        return f"{two(mean)} [{two(min(found))}, {two(max(found))}]"

    def rows() -> Iterator[list[str]]:
        for name, title in TASKS.items():
            cells = replicates(kept, name)
            peak = max(
                range(len(cells[0]["stages"])),
                key=lambda i: statistics.fmean(cell["stages"][i]["fisher"]["trace"] for cell in cells),
            )
            yield [
                title,
                ratio(cells, lambda stage: stage["fisher"]["trace"]),
                f"{cells[0]['stages'][peak]['step']} of {cells[0]['stages'][-1]['step']}",
                ratio(cells, lambda stage: stage["fisher"]["at"]["0"]),
                ratio(cells, lambda stage: stage["fisher"]["at"]["0.5"]),
                ratio(cells, lambda stage: stage["kernel_trace"]),
                percent([cell["train_error"] for cell in cells]),
                percent([cell["test_error"] for cell in cells]),
            ]

    head = ["", "trace", "largest at step", "λ₁", "median λ", "kernel's trace", "error, training, %", "test, %"]
    return markdown(head, rows())


def shapes(kept: Kept) -> str:
    """Slope times rank by network."""
    names = [f"{depth}x{width}" for depth in (1, 2, 3) for width in (32, 128)]

    def row(data: str, place: int, word: str) -> list[str]:
        found = [[fitted_decades(cell["stages"][place]["fisher"]) for cell in replicates(kept, f"{data}-{name}")]
                 for name in names]  # fmt: skip
        return [f"{data.replace('mnist', 'MNIST')}, {word}", *(told(one, fixed(2)) for one in found)]

    rows = [row(data, place, word) for data in ("mnist", "noise") for place, word in ((0, "begin"), (-1, "end"))]
    return markdown(["", *(name.replace("x", " × ") for name in names)], rows)


def reduction(kept: Kept) -> str:
    """Accuracy by k, centre and subspace; intervals for the eigenvectors."""
    subspaces = ("eigenvectors", "magnitude", "data", "random")

    def score(cells: Sequence[dict[str, Any]], centre: str, subspace: str, place: int) -> str:
        found = [row["score"] for cell in cells for row in cell["curves"][centre]
                 if row["subspace"] == subspace and row["k"] == _ks(cell)[place]]  # fmt: skip
        return percent(found, subspace == "eigenvectors") if found else ""

    def rows() -> Iterator[list[str]]:
        for name, title in REDUCED.items():
            cells = replicates(kept, name)
            first = cells[0]
            p, rank = first["parameters"], statistics.fmean(cell["rank"] for cell in cells)
            said = [f"{title}, full {percent([cell['full'] for cell in cells])}", f"p = {p:,}",
                    f"rank {rank:,.0f}, {len(cells)} seed" + "s" * (len(cells) > 1)]  # fmt: skip
            for place in range(len(_ks(first))):
                k = statistics.fmean(_ks(cell)[place] for cell in cells)  # the last is the rank, which seeds decide
                shares = [f"{100 * k / p:.1f} %", f"{100 * k / rank:.0f} %"]
                scores = [score(cells, centre, subspace, place) for centre in CENTRES for subspace in subspaces]
                yield [said[place] if place < len(said) else "", *shares, *scores]

    head = ["network", "k / p", "k / rank"]
    for word, length in (("origin", r"\|w\|"), ("start", r"\|w − w₀\|")):
        head += [f"{word}: eigenvectors", f"largest {length}", "data", "random"]
    return markdown(head, rows())


def _ks(cell: dict[str, Any]) -> list[int]:
    return [row["k"] for row in cell["curves"]["origin"] if row["subspace"] == "eigenvectors"]


def maps(kept: Kept) -> str:
    """How alike the maps of projected models are to the full one's."""
    words = {"origin, 1%": "1 %, origin", "origin, 5%": "5 %, origin", "init, 5%": "5 %, start",
             "origin, magnitude 5%": "largest weights, 5 %, origin", "origin, rank": "the rank, origin",
             "shuffled": "shuffled points (chance)"}  # fmt: skip

    def rows() -> Iterator[list[str]]:
        for name, title in REDUCED.items():
            if name.endswith(("sampled", "matrices")):
                continue
            for key, word in words.items():
                found = [cell["map"]["alike"][key] for cell in replicates(kept, name)]
                kinds = ("neighbours", "ranks", "procrustes", "holes 0", "holes 1")
                yield [title, word, *(told([one[kind] for one in found], fixed(2)) for kind in kinds)]
                title = ""

    head = ["network", "projection", "neighbours shared", "rank correlation", "Procrustes", "parts", "loops"]
    return markdown(head, rows())


def synthetic(kept: Kept) -> str:
    """Errors and slopes by b and batches."""

    def row(name: str) -> list[str]:
        cells, (b, batches) = replicates(kept, name), name[1:].split("-")
        spectra = [[cell["data"] for cell in cells], *([cell["fisher"][stage] for cell in cells] for stage in STAGES)]
        slopes = [[fitted_decades(one) for one in found] for found in spectra]
        return [b, batches, f"{cells[0]['distinct_examples']:,}", f"{len(cells)}",
                *(percent([cell[what] for cell in cells]) for what in ("train_error", "validation_error")),
                fixed(2)(statistics.fmean(slopes[0])), fixed(1)(statistics.fmean(slopes[1])),
                told(slopes[2], fixed(1))]  # fmt: skip

    kinds = {"overlapping": 0, "loud": 1, "all": 2}
    names = sorted({name.rsplit("-", 1)[0] for name in kept},
                   key=lambda name: (float(name[1:].split("-")[0]), kinds[name.split("-")[1]]))  # fmt: skip
    head = ["b", "batches", "seen", "runs", "wrong, seen, %", "wrong, not seen, %", "data, decades"]
    return markdown([*head, "F before", "F after"], [row(name) for name in names])


def bound(kept: Kept) -> str:
    """The formula's number and what drawn weights do, by labels and precision."""

    def row(labels: str, precision: str, rows: Sequence[dict[str, Any]]) -> list[str]:
        mean = lambda pick: statistics.fmean(pick(one) for one in rows)  # noqa: E731
        rise = short(mean(lambda one: one["loss_rise"]["mean"]), 2)
        return [
            labels, precision, told([one["bound"] for one in rows], fixed(2)),
            fixed(0)(mean(lambda one: one["divergence"])), fixed(0)(mean(lambda one: one["effective_directions"])),
            *(percent([one[what]["mean"] for one in rows]) for what in ("train_error", "test_error")),
            f"{rise} ({short(mean(lambda one: one['loss_rise_expected']), 2)})",
            told([one["certificate"] for one in rows], fixed(2)) if "certificate" in rows[0] else "",
        ]  # fmt: skip

    def rows() -> Iterator[list[str]]:
        for labels in ("true", "random"):
            cells = replicates(kept, labels)
            yield row(labels, "its own choice", [cell["formula"] for cell in cells])
            for place, one in enumerate(cells[0]["by_scale"]):
                yield row(labels, f"{one['prior_precision']:,.0f}", [cell["by_scale"][place] for cell in cells])

    head = ["labels", "precision", "formula", "KL, nats", "directions", "drawn: wrong in training, %", "test, %",
            "loss rise (to second order)", "certified"]  # fmt: skip
    return markdown(head, rows())


def stress(kept: Kept) -> str:
    """Explained stress of one map, of fewer runs, and of paths that end elsewhere."""
    whole, few, three = kept["map-3"], kept["map-1"], fixed(3)
    rows = [
        [title, *(three(part["stress"][k - 1]) for k in (1, 2, 3, 10))]
        for title, part in (
            (f"{len(whole['runs'])} runs, training images", whole["train"]),
            (f"{len(whole['runs'])} runs, test images", whole["test"]),
            (f"the first {len(few['runs'])} runs (one seed)", few["train"]),
        )
    ]
    control = [three(value) for value in whole["train"]["stress_of_paths_elsewhere"]]
    rows.append([f"control: {len(whole['runs'])} paths to labels of their own", *control, ""])
    return markdown(["explained stress", "1 coordinate", "2", "3", "10"], rows)


def factors(kept: Kept) -> str:
    """The share of squared distances between runs that a factor explains."""
    parts = [kept["map-3"][part]["explained_by"] for part in ("train", "test")]
    forms = {"value": fixed(2), "p": fixed(3), "chance": fixed(2)}
    rows = [
        [factor, *(form(part[factor][key]) for part in parts for key, form in forms.items())] for factor in parts[0]
    ]
    return markdown(["factor", "training images: share", "p", "chance", "test images: share", "p", "chance"], rows)


def durations(results: Path) -> str:
    """What each study's cells took, one thread, as they were computed."""
    rows = []
    for study in STUDIES:
        cells = list(records(results / study).values())
        seconds, loads = [cell["seconds"] for cell in cells], [cell["machine"]["load"] for cell in cells]
        rows.append([study.replace("pac_bayes", "bound"), f"{len(cells)}", f"{sum(seconds) / 60:.0f}",
                     f"{max(seconds) / 60:.1f}", f"{min(loads):.0f} to {max(loads):.0f}"])  # fmt: skip
    return markdown(["study", "cells", "minutes, all", "longest cell", "load"], rows)
