"""What the study of pruned transformers kept, as tables: accuracy, paired differences, and what was chosen."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pruning_models import unpacked
from runs import proportion, read
from torch import Tensor

from dynaxx.compress.intervals import Change, mean_change

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)


START = 0.6
"""What the first look takes at once; from there on a method may look again, so often on the way to each sparsity."""


@dataclass(frozen=True)
class Method:
    """A recipe, and how often the model is looked at on the way from each sparsity above START to the next; 0: once
    for all of them.
    """

    options: dict[str, Any]
    looks: int = 0
    grid: tuple[float, ...] | None = None  # of dampings; default the study's


BLOCKS: dict[str, Any] = {"criterion": "obs", "curvature": "block", "block": 32}
KFAC: dict[str, Any] = {"criterion": "obs", "curvature": "kfac"}
METHODS = {
    "magnitude": Method({"criterion": "magnitude"}),
    "magnitude, layer": Method({"criterion": "magnitude", "scope": "layer"}),
    "OBD": Method({"criterion": "obd"}),
    "OBS, blocks": Method(BLOCKS),
    "OBS, blocks, 4 looks": Method(BLOCKS, 1),  # 1, and 1 each to 70, 80 and 90 %
    "OBS, blocks, 16 looks": Method(BLOCKS, 5),  # 1, and 5 each
    # below the grid, at whose lower end 0.1 was chosen everywhere
    "OBS, blocks, damping 0.01": Method(BLOCKS, grid=(0.01,)),
    "OBS, blocks, damping 0.01, 4 looks": Method(BLOCKS, 1, (0.01,)),
    "OBS, blocks, damping 0.01, 16 looks": Method(BLOCKS, 5, (0.01,)),
    "OBS, blocks, damping 0.001": Method(BLOCKS, grid=(0.001,)),
    # the two dampings that blocks were best with; a removal takes half a minute
    "OBS, K-FAC": Method(KFAC, grid=(0.1,)),
    "OBS, K-FAC, 4 looks": Method(KFAC, 1, (0.1,)),
    "OBS, K-FAC, 16 looks": Method(KFAC, 5, (0.1,)),
    "OBS, K-FAC, damping 0.01": Method(KFAC, grid=(0.01,)),
    "OBS, K-FAC, damping 0.01, 4 looks": Method(KFAC, 1, (0.01,)),
    "OBS, K-FAC, damping 0.01, 16 looks": Method(KFAC, 5, (0.01,)),
}
Found = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Method -> seed -> rows by sparsity; the dense model under "dense"."""


def file_name(name: str) -> str:
    """Of a method's cells."""
    return name.lower().replace(", ", "_").replace(" ", "_").replace("-", "")


def first_look(name: str) -> str:
    """The method with one look that a method with several begins with."""
    return name.rsplit(", ", 1)[0]


def kept(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """The cells of a folder; a method's cells for single sparsities joined, the first look's too."""
    names = {file_name(name): name for name in METHODS}
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for key, cell in read(folder).items():
        rows = {s: row | {"count": cell["count"]} for s, row in cell["rows"].items()}
        if key == "dense":
            found.setdefault("dense", {})[0] = rows
            continue
        drawn, slug = key.split("-")[:2]
        found.setdefault(names[slug], {}).setdefault(int(drawn), {}).update(rows)
    for name in [name for name in found if name != "dense" and METHODS[name].looks]:
        for seed, rows in found[name].items():  # the first look is the same one
            rows.update({s: row for s, row in found[first_look(name)][seed].items() if float(s) <= START})
    order = ["dense", *METHODS]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def right(row: Mapping[str, Any]) -> Tensor:
    """Which answers were right, (N,) of 0 and 1."""
    return unpacked(row["right"], row["count"]).double()


def paired(
    one: Mapping[int, Mapping[str, Any]], other: Mapping[int, Mapping[str, Any]], sparsity: str
) -> Change | None:
    """Accuracy of ``other`` less that of ``one`` on the same sentences, over the seeds of both; None if there is none.

    What is drawn nothing for has seed 0 only, and stands for every seed. The interval is over sentences: seeds share
    them and are no further samples.
    """
    seeds = [s for s in other if sparsity in other[s] and sparsity in one.get(s, one[0])]
    if not seeds:
        return None
    before = torch.stack([right(one.get(s, one[0])[sparsity]) for s in seeds]).mean(0)
    after = torch.stack([right(other[s][sparsity]) for s in seeds]).mean(0)
    return mean_change(before, after)


def tuned_magnitude(found: Found) -> dict[int, dict[str, Any]]:
    """At each sparsity the scope whose model stays closest to the dense one on held-out sentences."""
    rows: dict[str, Any] = {}
    for name in ("magnitude", "magnitude, layer"):
        for sparsity, row in found.get(name, {}).get(0, {}).items():
            if sparsity not in rows or row["held_out_divergence"] < rows[sparsity]["held_out_divergence"]:
                rows[sparsity] = row | {"scope": name}
    return {0: rows}


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _head(first: str) -> list[str]:
    return [_line(first, [f"{100 * s:g} %" for s in SPARSITIES]), "|---" * (len(SPARSITIES) + 1) + "|"]


def _each(rows: Mapping[int, Mapping[str, Any]], sparsity: float) -> list[Mapping[str, Any]]:
    return [row[f"{sparsity:g}"] for row in rows.values() if f"{sparsity:g}" in row]


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    hits, count = statistics.mean(row["hits"] for row in rows), rows[0]["count"]
    share = proportion(round(hits), count)
    return f"{100 * hits / count:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _points(change: Change | None) -> str:
    if change is None:
        return ""
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def tables(folder: Path) -> str:
    """Accuracy with Wilson's interval; points on tuned magnitude, paired; dampings chosen, divergence held out."""
    found = kept(folder)
    methods = {name: rows for name, rows in found.items() if name != "dense"}
    lines = [f"dense {_accuracy(_each(found['dense'], 0))}", "", *_head("test accuracy, % (seeds)")]
    for name, rows in methods.items():
        lines.append(_line(f"{name} ({len(rows)})", [_accuracy(_each(rows, s)) for s in SPARSITIES]))
    magnitude = tuned_magnitude(found)
    lines += ["", *_head("points above tuned magnitude")]
    for name, rows in methods.items():
        if not name.startswith("magnitude"):
            lines.append(_line(name, [_points(paired(magnitude, rows, f"{s:g}")) for s in SPARSITIES]))
    lines += ["", *_head("held-out divergence, nats; damping by seed")]
    for name, rows in methods.items():
        cells = []
        for s in SPARSITIES:
            each = _each(rows, s)
            far = f"{statistics.mean(row['held_out_divergence'] for row in each):.3f}" if each else ""
            chosen = ", ".join(f"{row['damping']:g}" for row in each if row["damping"])
            cells.append(f"{far}; {chosen}" if chosen else far)
        lines.append(_line(name, cells))
    return "\n".join(lines)
