"""A report of any run in the store, whatever it logged: also of one that broke off.

Metrics stand under the part of their name before the last slash. Those of layers
(``dynaxx/layer/<module>/<quantity>``) are drawn one quantity a chart, with a curve for each layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from dynaxx.report.document import Block, Document, Facts, Lines, Marker, Note, Section, Series, Spectra, Table
from dynaxx.report.numerals import cell, duration, moment
from dynaxx.track import Alert, ArrayRecord, Artifact, Columns, RunInfo, Store
from dynaxx.track.names import floor_names, is_spectrum, layer_of
from dynaxx.track.search import flat

MOST_CURVES = 8  # in one chart: as many as there are colours
MOST_SPECTRA = 4
MOST_MARKERS = 12
_LEVELS = {"info": "info", "warning": "warning", "error": "bad"}
_ENDED: dict[str, Note | None] = {
    "running": Note("This run is still going; the report shows it as it stood."),
    "finished": None,
    "failed": Note("This run ended with an error. The numbers below are all that were logged before it.", "bad"),
    "interrupted": Note(
        "This run broke off: it was stopped, or its process ended without a word. The numbers below are all that "
        "reached the store.",
        "warning",
    ),
}


def document_from_run(store: Store, run_id: int) -> Document:
    """A report of everything a run logged.

    Raises:
        StoreError: there is no such run, or the store cannot be read.
    """
    info = store.info(run_id)
    metrics = store.metrics(run_id)
    alerts = store.alerts(run_id)
    spectra, others = _arrays(store, run_id, metrics)
    floors = {floor for name in store.array_names(run_id) for floor in floor_names(name)}  # drawn with their spectra
    sections = [
        _overview(info, metrics, alerts),
        *_metric_sections({name: metrics[name] for name in metrics if name not in floors}, alerts),
        *([Section("Spectra", blocks=spectra)] if spectra else []),
        *([Section("Arrays", blocks=others)] if others else []),
        *_settings(info, store.artifacts(run_id)),
    ]
    footer: dict[str, Any] = {"run": str(info.id), "store": store.location}
    footer |= {str(key): info.environment.get(key) for key in ("dynaxx", "torch", "numpy", "python")}
    footer["machine"] = info.host
    subtitle = f"{info.project} · {info.status} · {moment(info.started)} · {duration(info.seconds)}"
    return Document(info.name, subtitle, sections, {key: value for key, value in footer.items() if value})


def _overview(info: RunInfo, metrics: dict[str, Columns], alerts: list[Alert]) -> Section:
    steps = [int(columns.steps[-1]) for columns in metrics.values()]
    facts: list[tuple[Any, ...]] = [("status", info.status), ("ran for", duration(info.seconds))]
    if steps:
        facts.append(("last step", max(steps)))
    facts += [("metrics", len(metrics)), ("alerts", len(alerts))]
    blocks: list[Block] = [Facts(facts)]
    if (ended := _ENDED.get(info.status)) is not None:
        blocks.append(ended)
    blocks += [Note(_words(alert), _LEVELS.get(alert.level, "info")) for alert in alerts[-20:]]
    if len(alerts) > 20:
        blocks.append(Note(f"{len(alerts) - 20} earlier alerts are in the store."))
    if broken := _not_finite(metrics):
        blocks.append(Note(f"{len(broken.rows)} metrics have values that are not finite.", "bad"))
        blocks.append(broken)
    if not metrics:
        blocks.append(Note("No metrics were logged."))
    return Section("Overview", blocks=blocks)


def _words(alert: Alert) -> str:
    where = "" if alert.step is None else f" (step {cell(alert.step)})"
    return f"{alert.title}{where}" + (f": {alert.text}" if alert.text else "")


def _not_finite(metrics: dict[str, Columns]) -> Table | None:
    rows = []
    for name, columns in metrics.items():
        wrong = ~np.isfinite(columns.values)
        if wrong.any():
            first = int(wrong.argmax())
            kinds = ", ".join(sorted({cell(float(value)) for value in columns.values[wrong]}))
            rows.append((name, int(columns.steps[first]), int(wrong.sum()), len(columns), kinds))
    if not rows:
        return None
    rows.sort(key=lambda row: row[1])  # what broke first is the place to look
    return Table(("metric", "first at step", "values", "of", "which"), rows, "Values that are not finite")


def _metric_sections(metrics: dict[str, Columns], alerts: list[Alert]) -> list[Section]:
    markers = [Marker(alert.step, alert.title) for alert in alerts if alert.step is not None][:MOST_MARKERS]
    groups: dict[str, dict[str, Columns]] = defaultdict(dict)
    layers: dict[str, dict[str, Columns]] = defaultdict(dict)
    for name, columns in metrics.items():
        group, _, quantity = name.rpartition("/")
        if layer := layer_of(name):
            layers[quantity][layer] = columns
        else:
            groups[group][quantity] = columns
    sections = []
    for group, members in groups.items():
        charts = [_chart(name, {name: columns}, markers) for name, columns in members.items() if len(columns) > 1]
        single = [
            (name, float(c.values[0]), f"step {cell(int(c.steps[0]))}") for name, c in members.items() if len(c) == 1
        ]
        sections.append(Section(group or "Metrics", blocks=[*([Facts(single)] if single else []), *charts]))
    if layers:
        drawn = [_chart(name, members, markers) for name, members in layers.items()]
        drawn = [chart for chart in drawn if any(len(series.x) > 1 for series in chart.series)]
        sections.append(Section("Layers", blocks=[*drawn, _layer_table(layers)]))
    return sections


def _chart(title: str, members: dict[str, Columns], markers: list[Marker]) -> Lines:
    note = ""
    if len(members) > MOST_CURVES:
        size = {name: abs(columns.values[-1]) if len(columns) else 0.0 for name, columns in members.items()}
        # NaN is what somebody will look for, so it ranks first
        order = sorted(members, key=lambda name: -np.inf if np.isnan(size[name]) else -size[name])
        note = f"{MOST_CURVES} of {len(members)} layers, those with the largest last value; the table has them all."
        members = {name: members[name] for name in members if name in order[:MOST_CURVES]}
    series = [series_of(name, columns) for name, columns in members.items()]
    if any(one.low is not None for one in series):
        note = f"{note} Bands: two standard errors to either side.".strip()
    log = wants_log(np.concatenate([columns.values for columns in members.values()]))
    return Lines(title, series, log_y=log, markers=markers, note=note)


def series_of(name: str, columns: Columns) -> Series:
    """A metric as a curve, with a band of two standard errors to either side where there are any."""
    spread = columns.stderrs
    if not (np.isfinite(spread) & (spread > 0)).any():
        return Series(name, columns.steps, columns.values)
    spread = 2 * np.nan_to_num(spread)  # about 95 % of a normal error
    return Series(name, columns.steps, columns.values, columns.values - spread, columns.values + spread)


def wants_log(values: np.ndarray) -> bool:
    """A thousandfold range of positive values is flat on a linear scale."""
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() / finite.min() > 1e3)


def _layer_table(layers: dict[str, dict[str, Columns]]) -> Table:
    names = list(dict.fromkeys(layer for members in layers.values() for layer in members))
    last = lambda members, layer: float(members[layer].values[-1]) if layer in members else None  # noqa: E731
    rows = [(layer, *(last(members, layer) for members in layers.values())) for layer in names]
    return Table(("layer", *layers), rows, "Last value of each layer")


def _arrays(store: Store, run_id: int, metrics: dict[str, Columns]) -> tuple[list[Block], list[Block]]:
    """Charts of spectra, and one table of the arrays that are something else."""
    spectra: list[Block] = []
    rows = []
    for name in store.array_names(run_id):
        steps = store.array_steps(run_id, name)
        places = np.unique(np.linspace(0, len(steps) - 1, MOST_SPECTRA).round().astype(int))
        wanted = is_spectrum(name)
        records = store.arrays(run_id, name, [steps[place] for place in places] if wanted else steps[-1:])
        if wanted and all(record.value.ndim == 1 and record.value.dtype.kind in "fiu" for record in records):
            floors = [metrics[floor] for floor in floor_names(name) if floor in metrics]
            curves = [(f"step {cell(r.step)}", r.value, floor_of(r, floors)) for r in records]
            note = f"{len(curves)} of {len(steps)} steps." if len(curves) < len(steps) else ""
            spectra.append(Spectra(name, curves, note=note))
            continue
        value = records[-1].value
        finite = value[np.isfinite(value)] if value.dtype.kind in "fiu" else np.empty(0)
        ends = (float(finite.min()), float(finite.mean()), float(finite.max())) if finite.size else (None, None, None)
        shape = " × ".join(map(str, value.shape)) or "one number"
        rows.append((name, len(steps), records[-1].step, shape, value.dtype.name, *ends))
    heads = ("array", "steps", "last step", "shape", "dtype", "least", "mean", "greatest")
    return spectra, [Table(heads, rows, "The last of each")] if rows else []


def floor_of(record: ArrayRecord, floors: Iterable[Columns]) -> float | None:
    """The floor in the spectrum's attributes, or logged beside it (``floor_names``); None where there was none, since a
    guess is not a floor.
    """
    beside = [one.values[one.steps == record.step] for one in floors]
    found = [record.attributes.get("floor"), *(float(values[0]) for values in beside if len(values))]
    return next((float(one) for one in found if isinstance(one, (int, float)) and np.isfinite(one) and one > 0), None)


def _settings(info: RunInfo, artifacts: list[Artifact]) -> list[Section]:
    blocks: list[Block] = []
    if info.config:
        blocks.append(Table(("setting", "value"), flat(info.config), "Configuration"))
    blocks.append(Table(("what", "value"), flat(info.environment), "Environment"))
    if artifacts:
        rows = [(item.name, item.mime, item.size, item.path or "in the store") for item in artifacts]
        blocks.append(Table(("file", "type", "bytes", "place"), rows, "Files"))
    return [Section("Settings", blocks=blocks)]
