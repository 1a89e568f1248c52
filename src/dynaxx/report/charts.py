"""What a chart block becomes for the browser: columns of short numbers, and the table that stands behind the chart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dynaxx.report.document import Lines, Series, Spectra, Table
from dynaxx.report.numerals import number

MOST_POINTS = 4000  # of one curve; a chart is some 600 pixels wide
MOST_ROWS = 60  # of the table behind a chart
EXACT = 22  # powers of ten up to this one are doubles without rounding
POWERS = np.array([float(f"1e{power}") for power in range(EXACT + 1)])
DEPTH = 1e-4  # how far below its floor a spectrum is drawn: what lies there is rounding, and its depth says nothing


def chart(block: Lines | Spectra, most: int = MOST_POINTS) -> dict[str, Any]:
    """A chart as plain data for the page's script, NaN and infinities as None; about ``most`` points to a curve."""
    return _lines(block, most) if isinstance(block, Lines) else _spectra(block)


def remarks(block: Lines | Spectra) -> list[str]:
    """The block's note, and what the drawing does not show."""
    out = [block.note] if block.note else []
    if isinstance(block, Spectra):
        for item in block.spectra:
            hidden = int((~_drawable(item.eigenvalues, item.floor)).sum())
            if hidden:
                where = "zero, negative or far below the floor" if item.floor else "zero or negative"
                out.append(f"{item.name}: {hidden} of {len(item.eigenvalues)} eigenvalues are {where} and not drawn.")
            if item.missing:
                out.append(f"{item.name}: {item.missing} eigenvalues are not finite.")
        return out
    for series in block.series:
        lost = int((~np.isfinite(series.y)).sum())
        if lost:
            out.append(f"{series.name}: {lost} of {len(series.y)} values are not finite (gaps).")
        flat = int((np.isfinite(series.y) & (series.y <= 0)).sum()) if block.log_y else 0
        flat += int((series.x <= 0).sum()) if block.log_x else 0
        if flat:
            out.append(f"{series.name}: {flat} values are not positive and have no place on a logarithmic scale.")
        if len(series.y) > MOST_POINTS:
            out.append(f"{series.name}: {len(series.y)} points, thinned for drawing; every peak is kept.")
    return out


def describe(block: Lines | Spectra) -> str:
    """A chart in one sentence, for those who do not see it."""
    if isinstance(block, Spectra):
        parts = [
            f"{item.name}: {len(item.eigenvalues)} eigenvalues, {_span(item.eigenvalues)}" for item in block.spectra
        ]
    else:
        parts = [f"{series.name}: {len(series.y)} points, {_span(series.y)}" for series in block.series]
    return f"Chart: {block.title}. " + "; ".join(parts) + "."


def table(block: Lines | Spectra) -> Table:
    """The numbers of a chart, thinned to a length that can be read, by the common axis."""
    if isinstance(block, Spectra):
        label = "index"
        columns = {item.name: _by_index(item.eigenvalues) for item in block.spectra}
    else:
        label = block.x_label or "x"
        columns = {series.name: dict(zip(series.x.tolist(), series.y.tolist(), strict=True)) for series in block.series}
    places = sorted({place for column in columns.values() for place in column})
    # the first, the last, and evenly between
    chosen = sorted({round(index) for index in np.linspace(0, len(places) - 1, MOST_ROWS)}) if places else []
    rows = [
        [_plain(places[index]), *(column.get(places[index], "") for column in columns.values())] for index in chosen
    ]
    caption = f"{len(chosen)} of {len(places)} rows" if len(chosen) < len(places) else ""
    return Table([label, *columns], rows, caption=caption)


def thin(series: Series, most: int = MOST_POINTS) -> Series:
    """A series with at most about ``most`` points: of each stretch the first, the lowest, the highest and any gap.

    Peaks and gaps survive, unlike in a mean or in every n-th point.
    """
    n = len(series.x)
    if n <= most:
        return series
    count = max(1, most // 4)
    width = -(-n // count)
    # a table with a stretch in each row; its last row is filled up with copies of the last point
    places = np.minimum(np.arange(-(-n // width) * width), n - 1).reshape(-1, width)
    y = series.y[places]
    gaps = ~np.isfinite(y)
    rows, first = np.arange(len(y)), np.zeros(len(y), dtype=int)
    lowest, highest = np.where(gaps, np.inf, y).argmin(1), np.where(gaps, -np.inf, y).argmax(1)
    chosen = [places[rows, column] for column in (first, lowest, highest, gaps.argmax(1))]
    index = np.unique([*chosen, np.full(len(y), n - 1)])
    bands = (None, None) if series.low is None else (series.low[index], series.high[index])
    return Series(series.name, series.x[index], series.y[index], *bands)


def _lines(block: Lines, most: int) -> dict[str, Any]:
    curves: list[dict[str, Any]] = []
    places: dict[bytes, int] = {}
    for series in (thin(each, most) for each in block.series):
        keep = series.x > 0 if block.log_x else np.ones(len(series.x), dtype=bool)
        # a curve over the same places as an earlier one has that one's number as its x
        first = places.setdefault(series.x[keep].tobytes(), len(curves))
        curve = {"name": series.name, "x": _column(series.x[keep]) if first == len(curves) else first}
        for key in ("y", "low", "high"):
            values = getattr(series, key)
            if values is not None:
                curve[key] = _column(values[keep], positive=block.log_y)
        curves.append(curve)
    markers = [{"x": float(marker.x), "label": marker.label} for marker in block.markers if math.isfinite(marker.x)]
    scales = {"logX": block.log_x, "logY": block.log_y, "xLabel": block.x_label, "yLabel": block.y_label}
    return {"kind": "lines", "title": block.title, "curves": curves, "markers": markers, **scales}


def _spectra(block: Spectra) -> dict[str, Any]:
    curves = []
    for item in block.spectra:
        keep = _drawable(item.eigenvalues, item.floor)
        series = thin(Series(item.name, np.arange(1, len(keep) + 1)[keep], item.eigenvalues[keep]))
        above = len(series.y) if item.floor is None else int((series.y >= item.floor).sum())
        curve: dict[str, Any] = {"name": item.name, "x": _column(series.x), "y": _column(series.y), "above": above}
        curves.append(curve | {"floor": item.floor})
    scales = {"logX": False, "logY": True, "xLabel": "index", "yLabel": block.y_label}
    return {"kind": "spectra", "title": block.title, "curves": curves, "markers": [], **scales}


def _drawable(eigenvalues: np.ndarray, floor: float | None) -> np.ndarray:
    return eigenvalues > (floor * DEPTH if floor else 0.0)


def _column(values: np.ndarray, positive: bool = False) -> list[float | int | None]:
    """Seven digits are more than a screen shows; whole numbers (steps) stay exact."""
    v = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(v)
    size = np.where(finite & (v != 0), np.abs(v), 1.0)
    places = 6 - np.floor(np.log10(size)).astype(int)
    up, down = POWERS[np.clip(places, 0, EXACT)], POWERS[np.clip(-places, 0, EXACT)]
    # a whole number over (or times) an exact power of ten is the double nearest to that decimal, so it prints short
    out = np.where(finite, np.rint(np.where(finite, v, 0.0) * up / down) / up * down, 0.0).astype(object)
    for far in np.flatnonzero(finite & (np.abs(places) > EXACT)):
        out[far] = float(f"{v[far]:.7g}")
    whole = finite & (size < 2**53) & (v == np.rint(v))
    out[whole] = v[whole].astype(np.int64)
    out[~finite | (positive & (v <= 0))] = None
    return list(out.tolist())


def _by_index(eigenvalues: np.ndarray) -> dict[float, float]:
    return dict(enumerate(eigenvalues.tolist(), start=1))


def _plain(place: float) -> float | int:
    return int(place) if float(place).is_integer() else place


def _span(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"from {number(finite.min())} to {number(finite.max())}" if len(finite) else "none of them finite"
