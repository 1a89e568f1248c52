"""Tables of the sloppiness studies, from their kept results alone."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from networks import over_seeds
from runs import read
from spectra import fitted_decades


def replicates(kept: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The cells of one name, seed by seed."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    return [kept[key] for key in sorted(kept) if pattern.fullmatch(key)]


def interval(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and 95 % interval over seeds, as the page has it."""
    told = over_seeds(values)
    if told["seeds"] < 2:
        return f"{told['value']:{form}}"
    return f"{told['value']:{form}} ({told['low']:{form}}, {told['high']:{form}})"


def tables(results: Path) -> str:
    """What the page quotes, as Markdown."""
    lines: list[str] = []
    parts: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
        "spectra": spectra, "reduction": reduction, "synthetic": synthetic, "pac_bayes": pac_bayes,
        "trajectories": trajectories,
    }  # fmt: skip
    for study, rows in parts.items():
        kept = read(results / study)
        lines += [f"\n## {study}: {len(kept)} cells\n", *(rows(kept) if kept else [])]
    return "\n".join(lines)


def _names(kept: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.rsplit("-", 1)[0] for name in sorted(kept)))


def spectra(kept: dict[str, Any]) -> Iterator[str]:
    """One row for each task and stage, the data's first."""
    yield "| task | stage | loss | trace | rank | stiff % | decades | over floor | slope x r, R2 | kernel | growth |"
    yield "|---" * 11 + "|"
    for name in _names(kept):
        cells = replicates(kept, name)
        errors = " ".join(f"{what} {interval([cell[what] for cell in cells], '.3f')}" for what in ("train_error",
                          "test_error"))  # fmt: skip
        yield f"| **{name}** p {cells[0]['parameters']}, {len(cells)} seeds, {errors} |"
        for key in ("data", "data_centred"):
            yield f"| | {key} | | {_spectrum([cell[key] for cell in cells])} |"
        for number, stage in enumerate(cells[0]["stages"]):
            found = [cell["stages"][number] for cell in cells]
            loss = interval([one["train_loss"] for one in found], ".3g")
            kernel = [one["kernel_trace"] for one in found if one["kernel_trace"] is not None]
            growth = _growth(found, [cell["stages"][0] for cell in cells])
            yield (
                f"| | {stage['step']} | {loss} | {_spectrum([one['fisher'] for one in found])} | "
                f"{interval(kernel, '.3g') if kernel else ''} | growth {growth} |"
            )
    yield ""
    yield from _shapes(kept)


def _growth(found: Sequence[dict[str, Any]], first: Sequence[dict[str, Any]]) -> str:
    """Median over seeds of eigenvalues over what they were at the beginning, by place in the spectrum."""
    told = []
    for place in found[0]["fisher"]["at"]:
        pairs = [
            (now["fisher"]["at"][place], then["fisher"]["at"][place]) for now, then in zip(found, first, strict=True)
        ]
        told.append(f"{place}: {statistics.median(now / then for now, then in pairs):.2g}" if all(
            then for _, then in pairs) else f"{place}: from rounding")  # fmt: skip
    return ", ".join(told)


def _spectrum(found: Sequence[dict[str, Any]]) -> str:
    stiff = " / ".join(interval([100 * one["stiff"][t] for one in found], ".1f") for t in ("0.1", "0.01", "0.001"))
    decades = " / ".join(interval([one["decades"][a] for one in found], ".1f") for a in ("0.5", "0.9"))
    above = interval([_above_floor(one) for one in found], ".1f")
    slope, fit = ([fitted_decades(one) for one in found], [one["r_squared"] for one in found])
    trace = interval([one["trace"] for one in found], ".3g")
    rank = interval([one["rank"] for one in found], ".0f")
    return f"{trace} | r {rank} | {stiff} | {decades} | {above} | {interval(slope)}, {interval(fit)}"


def _above_floor(one: dict[str, Any]) -> float:
    return math.log10(one["largest"] / one["floor"])


def _shapes(kept: dict[str, Any]) -> Iterator[str]:
    """Are slopes of one data set alike across networks? Range over shapes against range over seeds."""
    for data in ("mnist", "noise"):
        names = [name for name in _names(kept) if name.startswith(data)]
        for place, word in ((0, "begin"), (-1, "end")):
            means = {
                name: over_seeds([fitted_decades(cell["stages"][place]["fisher"]) for cell in replicates(kept, name)])
                for name in names
            }
            yield f"slope x rank, {data}, {word}: " + "; ".join(
                f"{name[len(data) + 1 :]} {told['value']:.2f} ({told['low']:.2f}, {told['high']:.2f})"
                for name, told in means.items()
            )


def reduction(kept: dict[str, Any]) -> Iterator[str]:
    """Accuracy by k, centre and subspace; likeness of maps."""
    for name in _names(kept):
        cells = replicates(kept, name)
        first = cells[0]
        yield (
            f"**{name}** p {first['parameters']}, rank {[cell['rank'] for cell in cells]}, full "
            f"{interval([cell['full'] for cell in cells], '.3f')}, {len(cells)} seeds"
        )
        for centre, rows in sorted(first["curves"].items(), reverse=True):
            subspaces = list(dict.fromkeys(row["subspace"] for row in rows))
            yield f"| {centre}, k | k / p | k / r | energy | " + " | ".join(subspaces) + " |"
            yield "|---" * (4 + len(subspaces)) + "|"
            every = [
                {s: [row for row in cell["curves"][centre] if row["subspace"] == s] for s in subspaces}
                for cell in cells
            ]
            for i, point in enumerate(every[0]["eigenvectors"]):
                scores = " | ".join(interval([one[s][i]["score"] for one in every], ".3f") for s in subspaces)
                energy = interval([one["eigenvectors"][i]["energy"] for one in every])
                k = point["k"]
                yield f"| {k} | {k / first['parameters']:.2%} | {k / first['rank']:.1%} | {energy} | {scores} |"
        for key in first["map"]["alike"]:
            found = [cell["map"]["alike"][key] for cell in cells]
            yield f"map {key}: " + ", ".join(f"{what} {interval([one[what] for one in found])}" for what in found[0])
        for key in first["map"]["stress"]:
            found = [cell["map"]["stress"][key] for cell in cells]
            yield f"stress {key}: " + ", ".join(interval([one[i] for one in found]) for i in range(3))
        yield ""


def synthetic(kept: dict[str, Any]) -> Iterator[str]:
    """Errors and slopes by b and batches."""
    yield "| run | seeds | seen | train % | validation % | chance % | length | data slope x r, R2 | begin | end |"
    yield "|---" * 10 + "|"
    for name in _names(kept):
        cells = replicates(kept, name)

        def slopes(pick: Callable[[dict[str, Any]], dict[str, Any]], cells: Sequence[dict[str, Any]] = cells) -> str:
            found = [pick(cell) for cell in cells]
            return (
                f"{interval([fitted_decades(one) for one in found])}, {interval([one['r_squared'] for one in found])}"
            )

        errors = " | ".join(
            interval([100 * cell[what] for cell in cells], ".1f")
            for what in ("train_error", "validation_error", "chance_error")
        )
        yield (
            f"| {name} | {len(cells)} | {cells[0]['distinct_examples']} | {errors} | "
            f"{interval([cell['length'] for cell in cells], '.0f')} | {slopes(lambda cell: cell['data'])} | "
            f"{slopes(lambda cell: cell['fisher']['begin'])} | {slopes(lambda cell: cell['fisher']['end'])} |"
        )


def pac_bayes(kept: dict[str, Any]) -> Iterator[str]:
    """The formula's number and what drawn weights do, by labels and scale."""
    for name in _names(kept):
        cells = replicates(kept, name)
        told = {
            what: interval([cell[what] for cell in cells], ".4f")
            for what in ("train_error", "train_loss", "test_error", "squared_displacement")
        }
        yield f"**{name}** {len(cells)} seeds: {told}, rank {[cell['fisher']['rank'] for cell in cells]}"
        yield f"stiff fraction {cells[0]['fisher']['stiff']}"
        for key in ("formula", "formula_of_flat_spectrum", "formula_at_published_count"):
            rows = [cell[key] for cell in cells]
            yield f"{key}: " + ", ".join(
                f"{what} {interval([row[what] for row in rows], '.4g')}"
                for what in ("bound", "gap", "divergence", "effective_directions", "prior_precision")
            )
        yield from (f"formula's own scale: {_drawn([cell['formula'] for cell in cells])}",)
        for i, row in enumerate(cells[0]["by_scale"]):
            rows = [cell["by_scale"][i] for cell in cells]
            yield (
                f"| {row['prior_precision']:g} | formula {interval([r['bound'] for r in rows], '.3f')} | KL "
                f"{interval([r['divergence'] for r in rows], '.0f')} | directions "
                f"{interval([r['effective_directions'] for r in rows], '.0f')} | certificate "
                f"{interval([r['certificate'] for r in rows], '.3f')} | {_drawn(rows)} |"
            )
        yield ""


def _drawn(rows: Sequence[dict[str, Any]]) -> str:
    return (
        f"train {interval([row['train_error']['mean'] for row in rows], '.3f')}, test "
        f"{interval([row['test_error']['mean'] for row in rows], '.3f')}, rise "
        f"{interval([row['loss_rise']['mean'] for row in rows], '.2g')} for "
        f"{interval([row['loss_rise_expected'] for row in rows], '.2g')}"
    )


def trajectories(kept: dict[str, Any]) -> Iterator[str]:
    """Stress, its control, and the factors, by map; errors of the runs."""
    for name in sorted(key for key in kept if key.startswith("map-")):
        for part in ("train", "test"):
            seen = kept[name][part]
            stress = ", ".join(f"{value:.3f}" for value in seen["stress"])
            control = ", ".join(f"{value:.3f}" for value in seen["stress_of_paths_elsewhere"])
            factors = ", ".join(
                f"{factor} {told['value']:.3f} (chance {told['chance']:.3f}, p {told['p']:.3f})"
                for factor, told in seen["explained_by"].items()
            )
            signs = "".join("0+-"[int(sign)] for sign in seen["signature"])
            yield f"{name} {part}: stress {stress}; paths elsewhere {control}; signs {signs}; {factors}"
    for name in [name for name in _names(kept) if name != "map"]:
        cells = replicates(kept, name)
        yield f"{name}: " + ", ".join(
            f"{part} error {interval([cell[part]['error'][-1] for cell in cells], '.3f')}, progress "
            f"{interval([cell[part]['progress'][-1] for cell in cells])}"
            for part in ("train", "test")
        )
