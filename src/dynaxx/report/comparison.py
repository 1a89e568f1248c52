"""Several runs side by side: what they were given, what came out, and their curves over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.report.document import Block, Document, Lines, Note, Section, Table
from dynaxx.report.numerals import duration
from dynaxx.report.run import MOST_CURVES, series_of, wants_log
from dynaxx.track import Last, RunInfo, Store
from dynaxx.track.health import health
from dynaxx.track.names import layer_of
from dynaxx.track.search import flat


def comparison(store: Store, runs: Sequence[int], metrics: Sequence[str] | None = None) -> Document:
    """A report of several runs beside each other.

    Args:
        runs: their numbers, at most as many as there are colours.
        metrics: names to draw and list; by default every metric that at least two of the runs have, layers left out.

    Raises:
        InputError: fewer than two runs, or too many.
        StoreError: there is no such run or metric.
    """
    runs = list(dict.fromkeys(runs))
    if not 2 <= len(runs) <= MOST_CURVES:
        raise InputError(f"runs={runs}: a comparison takes 2 to {MOST_CURVES} different runs")
    infos = [store.info(run_id) for run_id in runs]
    last = {run_id: store.last(run_id) for run_id in runs}
    names = list(metrics) if metrics is not None else shared_metrics(list(last.values()))
    for name in names:
        if not any(name in found for found in last.values()):
            raise InputError(f"none of the runs {runs} has a metric {name!r}")
    labels = {info.id: f"{info.id} {info.name}" for info in infos}
    heads = [labels[run_id] for run_id in runs]
    facts = [
        ("project", *(info.project for info in infos)),
        ("status", *(info.status for info in infos)),
        ("took", *(duration(info.seconds) for info in infos)),
        ("tags", *(", ".join(info.tags) for info in infos)),
    ]
    blocks: list[Block] = [Note(text, "warning") for text in cautions(infos)]
    blocks.append(Table(("", *heads), facts))
    if different := differences(infos):
        blocks.append(Table(("setting", *heads), different, "Settings that differ"))
    values = [(name, *(_shown(last[run_id].get(name)) for run_id in runs)) for name in names]
    sections = [Section("Runs", blocks=blocks), Section("Last values", blocks=[Table(("metric", *heads), values)])]
    if versions := _versions(store, runs, labels):
        sections.append(Section("Model versions", blocks=[versions]))
    charts = []
    for name in names:
        curves = [series_of(labels[one], store.metrics(one, name)) for one in runs if name in last[one]]
        if any(len(curve.x) > 1 for curve in curves):
            charts.append(Lines(name, curves, log_y=wants_log(np.concatenate([curve.y for curve in curves]))))
    if charts:
        sections.append(Section("Curves", blocks=charts))
    return Document("Comparison", " · ".join(heads), sections, {"store": store.location})


def shared_metrics(last: Sequence[dict[str, Last]]) -> list[str]:
    """Names that at least two of the runs have, those of layers left out."""
    names = sorted({name for found in last for name in found if not layer_of(name)})
    return [name for name in names if sum(name in found for found in last) > 1]


def differences(infos: Sequence[RunInfo]) -> list[tuple[str, ...]]:
    """(setting, value in each run) of the settings that are not the same in all."""
    settings = [dict(flat(info.config)) for info in infos]
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = [(key, *(one.get(key, "–") for one in settings)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def cautions(infos: Sequence[RunInfo]) -> list[str]:
    """What makes the numbers of these runs incomparable, in words."""
    probes = {probe_of(info) for info in infos}
    if len(probes) > 1:
        return [
            "These runs measured geometry on different examples, or on some not named: numbers differ by that, too."
        ]
    return []


def probe_of(info: RunInfo) -> str | None:
    """The digest of the examples on which a run measured geometry, where its settings name it."""
    for key, value in flat(info.config):
        if key in ("probe_digest", "probe.digest"):
            return value
    return None


def _versions(store: Store, runs: Sequence[int], labels: dict[int, str]) -> Table | None:
    rows = []
    for run_id in runs:
        for version in store.model_versions(run_id):
            verdict = health(store, version)
            rows.append((version.name, labels[run_id], version.step, verdict.level, "; ".join(verdict.reasons)))
    return Table(("version", "run", "step", "health", "because"), rows) if rows else None


def _shown(last: Last | None) -> Any:
    if last is None:
        return None
    return last.value if math.isnan(last.stderr) else Estimate(last.value, last.stderr)
