"""What the pages draw: curves, spectra, heat maps, as plain data thinned to what a screen can show."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynaxx.dashboard.answers import page_of
from dynaxx.dashboard.series import Extent, SeriesCache
from dynaxx.report.charts import chart, describe, remarks
from dynaxx.report.document import Eigenvalues, Lines, Marker, Series, Spectra
from dynaxx.report.run import MOST_MARKERS, floor_of, series_of, wants_log
from dynaxx.track import Columns, StoreError
from dynaxx.track.names import floor_names, layer_of

MOST_COLUMNS = 240  # of a heat map
MOST_LAYERS = 400
Extents = Mapping[int, Mapping[str, Extent]]
AXES = {"one_shot": ("sparsity", "score"), "reduction": ("k", "")}


def drawn(block: Lines | Spectra, points: int) -> dict[str, Any]:
    """A chart with its words for those who do not see it."""
    return {**chart(block, points), "description": describe(block), "remarks": remarks(block)}


class Drawings:
    """Drawings of one store. ``extents`` says, without reading the series, whether a chart has changed."""

    def __init__(self, cache: SeriesCache):
        self.cache = cache
        self.store = cache.store

    def extents(self, runs: Sequence[int], names: Sequence[str]) -> Extents:
        """Run -> name -> how far that series goes, of those that are there."""
        return {run_id: self.cache.extents(run_id, names) for run_id in runs}

    def lines_tag(self, extents: Extents, *rest: Any) -> str:
        """A text that changes when the chart does."""
        parts = [(run_id, sorted(found.items())) for run_id, found in extents.items()]
        marks = len(self.store.alerts(next(iter(extents)))) if len(extents) == 1 else 0
        return hashlib.sha256(repr((parts, marks, rest)).encode()).hexdigest()[:24]

    def lines(
        self, extents: Extents, names: Sequence[str], points: int, stretch: tuple[float, float] | None = None
    ) -> dict[str, Any]:
        """Metrics of runs over steps, in one chart, with bands of two standard errors, and the alerts of a single run.

        Raises:
            StoreError: there is no such run, or none of them has such a metric.
        """
        runs = list(extents)
        series, columns = [], []
        for run_id in runs:
            info = self.store.info(run_id)
            for name in names:
                if name in extents[run_id]:
                    found = self.cache.read(run_id, name, extents[run_id][name])
                    columns.append(found.values)
                    label = " ".join(
                        part
                        for part in (
                            f"{run_id} {info.name}" if len(runs) > 1 else "",
                            (layer_of(name) or name) if len(names) > 1 or len(runs) == 1 else "",
                        )
                        if part
                    )
                    series.append(series_of(label, _within(found, stretch)))
        if not series:
            raise StoreError(f"none of the runs {runs} has a metric {', '.join(map(repr, names[:8]))}")
        log = wants_log(np.concatenate(columns))
        block = Lines(_title(names), series, log_y=log, markers=self._markers(runs), note=_band_note(series))
        return drawn(block, points)

    def _markers(self, runs: Sequence[int]) -> list[Marker]:
        if len(runs) != 1:
            return []
        alerts = [alert for alert in self.store.alerts(runs[0]) if alert.step is not None]
        return [Marker(float(alert.step or 0), alert.title) for alert in alerts][:MOST_MARKERS]

    def spectrum(self, run_id: int, name: str, step: int | None, threshold: float) -> dict[str, Any]:
        """The eigenvalues at one step (the last by default), with the regions that have a name: stiff, at least
        ``threshold`` times the largest; sloppy, below that and above the rounding floor; rounding, below the floor.

        Raises:
            StoreError: there is no such array, or it is no list of eigenvalues.
        """
        steps = self.store.array_steps(run_id, name)
        chosen = steps[-1:] if step is None or step not in steps else [step]
        records = self.store.arrays(run_id, name, chosen)
        value = records[0].value
        if value.ndim != 1 or value.dtype.kind not in "fiu":
            raise StoreError(
                f"array {name!r} has shape {value.shape} and dtype {value.dtype}; a spectrum is (n,) numbers"
            )
        floor = floor_of(records[0], self._floors(run_id, name))
        found = Eigenvalues(f"step {records[0].step}", value, floor)
        above = found.eigenvalues[found.eigenvalues > (floor or 0.0)]
        largest = float(above[0]) if len(above) else None
        cut = None if largest is None else threshold * largest
        stiff = 0 if cut is None else int((above >= cut).sum())
        answer = drawn(Spectra(name, [found]), 4000)
        answer["regions"] = [] if cut is None else _regions(cut, floor)
        attributes = records[0].attributes
        return answer | {
            "steps": steps,
            "step": records[0].step,
            "threshold": threshold,
            "facts": {
                "eigenvalues": len(value),
                "above the floor": len(above),
                "stiff": stiff,
                "stiff share": stiff / len(above) if len(above) else None,
                "largest": largest,
                "floor": floor,
                "decades above the floor": math.log10(largest / above[-1]) if largest else None,
                **{key: attributes[key] for key in ("dimension", "count") if isinstance(attributes.get(key), int)},
            },
        }

    def _floors(self, run_id: int, name: str) -> list[Columns]:
        names = floor_names(name)
        return [self.cache.read(run_id, one, extent) for one, extent in self.cache.extents(run_id, names).items()]

    def heatmap(self, run_id: int, quantity: str) -> dict[str, Any]:
        """One quantity of every layer over time: rows are layers, columns are steps, thinned to what can be seen.

        Raises:
            StoreError: there is no such run, or no layer of it has such a quantity.
        """
        names = names_of(self.store.metric_names(run_id), quantity)
        if not names:
            raise StoreError(f"run {run_id} has no quantity {quantity!r} of layers")
        shown = names[:MOST_LAYERS]
        extents = self.cache.extents(run_id, shown)
        columns = {name: self.cache.read(run_id, name, extents[name]) for name in shown}
        steps = np.unique(np.concatenate([one.steps for one in columns.values()]))
        if len(steps) > MOST_COLUMNS:
            steps = steps[np.unique(np.linspace(0, len(steps) - 1, MOST_COLUMNS).round().astype(int))]
        table = [_at(one, steps) for one in columns.values()]
        finite = np.array([value for row in table for value in row if isinstance(value, float)])
        return {
            "quantity": quantity,
            "layers": [layer_of(name) for name in shown],
            "total": len(names),
            "steps": steps.tolist(),
            "values": table,
            "low": float(finite.min()) if len(finite) else None,
            "high": float(finite.max()) if len(finite) else None,
            "log": wants_log(finite),
        }

    def family(self, run_id: int, page: str) -> dict[str, Any]:
        """Curves that were logged as arrays ``dynaxx/<family>/<curve>`` with rows (x, y) or (x, y, low, high): scores
        over sparsity for pruning, over the number of directions for a reduction. The last of each name counts.
        """
        charts: dict[tuple[str, str], list[Series]] = {}
        shown = [name for name in self.store.array_names(run_id) if page_of(name) == page]
        for name, record in self.store.last_arrays(run_id, shown).items():
            value = record.value
            if value.ndim == 2 and value.shape[1] in (2, 4) and value.dtype.kind in "fiu":
                family, curve = name.split("/")[-2:]
                x, y = (
                    str(record.attributes.get(key, given)) for key, given in zip(("x", "y"), AXES[family], strict=True)
                )
                charts.setdefault((x, y), []).append(Series(curve, *value.astype(float).T))
        blocks = [
            Lines(f"{y or 'value'} by {x}", series, x_label=x, y_label=y, note=_interval_note(series))
            for (x, y), series in charts.items()
        ]
        return {"charts": [drawn(block, 4000) for block in blocks]}


def names_of(metrics: Sequence[str], quantity: str) -> list[str]:
    """Names of one quantity of all layers, ``block.10`` after ``block.9``.

    >>> names_of(["a/layer/b.10/trace", "a/layer/b.9/trace", "a/layer/b.9/rank", "a/trace"], "trace")
    ['a/layer/b.9/trace', 'a/layer/b.10/trace']
    """
    found = [name for name in metrics if layer_of(name) and name.rpartition("/")[2] == quantity]
    return sorted(found, key=lambda name: [(part.isdigit(), part.zfill(20)) for part in re.split(r"(\d+)", name)])


def _regions(cut: float, floor: float | None) -> list[dict[str, Any]]:
    regions: list[dict[str, Any]] = [
        {"label": "stiff", "low": cut, "high": None},
        {"label": "sloppy", "low": floor, "high": cut},
    ]
    return regions + ([{"label": "rounding", "low": None, "high": floor}] if floor else [])


def _within(columns: Columns, stretch: tuple[float, float] | None) -> Columns:
    """The part of a series in a stretch of steps, with one more value to either side so that lines leave the chart."""
    if stretch is None:
        return columns
    low, high = np.searchsorted(columns.steps, stretch[0]), np.searchsorted(columns.steps, stretch[1], side="right")
    part = slice(max(0, int(low) - 1), int(high) + 1)
    return Columns(columns.steps[part], columns.walls[part], columns.values[part], columns.stderrs[part])


def _at(columns: Columns, steps: np.ndarray) -> list[float | str | None]:
    """The value at or last before each step; None before the first, a word for what is not finite."""
    place = np.searchsorted(columns.steps, steps, side="right") - 1
    out: list[float | str | None] = []
    for index in place.tolist():
        value = math.nan if index < 0 else float(columns.values[index])
        out.append(None if index < 0 else value if math.isfinite(value) else str(value))
    return out


def _title(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    quantities = {name.rpartition("/")[2] for name in names}
    return quantities.pop() if len(quantities) == 1 else f"{len(names)} metrics"


def _band_note(series: Sequence[Series]) -> str:
    return "Bands: two standard errors to either side." if any(one.low is not None for one in series) else ""


def _interval_note(series: Sequence[Series]) -> str:
    return "Bands: the intervals logged." if any(one.low is not None for one in series) else ""
