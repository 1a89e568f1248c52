"""What a scatter block becomes: short numbers for the browser, a table, a sentence, and a summary for the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynaxx.report.document import Scatter, Table
from dynaxx.report.numerals import number

MOST_POINTS = 4000  # drawn of one cloud, so that it turns smoothly
MOST_ROWS = 60  # of the table behind it


def cloud(block: Scatter) -> dict[str, Any]:
    """The block as plain data for the page's script."""
    groups = _groups(block)
    names = {name: place for place, name in enumerate(groups)}
    kept = _evenly(len(block.points), MOST_POINTS)
    points = [[float(f"{value:.6g}") for value in row] for row in block.points[kept].tolist()]
    return {
        "title": block.title,
        "axes": list(block.axes),
        "groups": list(groups),
        "points": points,
        "group": [names[block.labels[index]] for index in kept],
        "connect": block.connect,
    }


def remarks(block: Scatter) -> list[str]:
    """The block's note, how to turn it, and what is not drawn."""
    out = [block.note] if block.note else []
    if block.points.shape[1] == 3:
        out.append("Drag, or focus and use the arrow keys, to turn; + and − to zoom; 0 to reset.")
    if len(block.points) > MOST_POINTS:
        out.append(f"{MOST_POINTS} of {len(block.points)} points are drawn, evenly chosen.")
    return out


def describe(block: Scatter) -> str:
    """The cloud in a few sentences, for those who do not see it."""
    kind = "Rotatable scatter plot" if block.points.shape[1] == 3 else "Scatter plot"
    spans = "; ".join(
        f"{name} from {number(low)} to {number(high)}"
        for name, low, high in zip(block.axes, *_ends(block.points), strict=True)
    )
    groups = _groups(block)
    centres = "; ".join(
        f"{name or 'all'}: {len(index)} points about ({', '.join(number(v, 3) for v in block.points[index].mean(0))})"
        for name, index in list(groups.items())[:12]
    )
    more = f"; and {len(groups) - 12} more labels" if len(groups) > 12 else ""
    turn = " Arrow keys turn it." if block.points.shape[1] == 3 else ""
    return f"{kind}: {block.title}. {len(block.points)} points. {spans}. {centres}{more}.{turn}"


def table(block: Scatter) -> Table:
    """Coordinates by label, thinned to a length that can be read."""
    kept = _evenly(len(block.points), MOST_ROWS)
    rows = [(block.labels[index], *block.points[index].tolist()) for index in kept]
    caption = f"{len(kept)} of {len(block.points)} points" if len(kept) < len(block.points) else ""
    return Table(("label", *block.axes), rows, caption)


def summary(block: Scatter) -> Table:
    """One row per label: how many points, and their mean."""
    rows = [
        (name or "all", len(index), *block.points[index].mean(0).tolist()) for name, index in _groups(block).items()
    ]
    return Table(("label", "points", *(f"mean {name}" for name in block.axes)), rows)


def _groups(block: Scatter) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, label in enumerate(block.labels):
        found.setdefault(label, []).append(index)
    return found


def _ends(points: np.ndarray) -> tuple[list[float], list[float]]:
    if not len(points):
        return [0.0] * points.shape[1], [0.0] * points.shape[1]
    return points.min(0).tolist(), points.max(0).tolist()


def _evenly(count: int, most: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))}) if count else []
