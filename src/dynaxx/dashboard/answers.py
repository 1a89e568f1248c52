"""What the store says of runs, as the pages and other programs read it: plain data, ready for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynaxx.report import scatter
from dynaxx.report.comparison import cautions, differences, shared_metrics
from dynaxx.report.document import Scatter
from dynaxx.track import Alert, Last, ModelVersion, RunInfo, StoreError
from dynaxx.track.health import drift, health
from dynaxx.track.names import floor_names, is_spectrum, layer_of
from dynaxx.track.reader import Reader
from dynaxx.track.search import flat
from dynaxx.version import __version__

MOST_VERSIONS = 100  # judged at once: each takes several looks into the store
FAMILIES = {"one_shot": "pruning", "reduction": "reduction"}  # arrays dynaxx/<family>/<curve>, and the page they are on


def plain(value: float) -> float | str | None:
    """A number as JSON carries it: NaN and infinities are words.

    >>> [plain(x) for x in (1.5, float("nan"), float("-inf"))]
    [1.5, 'NaN', '-Infinity']
    """
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def runs(store: Reader, **chosen: Any) -> dict[str, Any]:
    """Runs, the newest first, and what they can be chosen by."""
    counts = store.alert_counts()
    versions: dict[int, int] = {}
    for version in store.model_versions():
        versions[version.run_id] = versions.get(version.run_id, 0) + 1
    found = [
        {**_head(info), "alerts": counts.get(info.id, {}), "versions": versions.get(info.id, 0)}
        for info in store.runs(**chosen)
    ]
    return {"runs": found, "projects": store.projects(), "tags": store.tags()}


def news(store: Reader, since: int) -> dict[str, Any]:
    """Alerts after number ``since``, and which runs are going on."""
    alerts = store.alerts(since=since)
    return {
        "alerts": [_alert(alert) for alert in alerts],
        "last": max([since, *(alert.id for alert in alerts)]),
        "running": [info.id for info in store.runs() if info.status == "running"],
        "version": __version__,
        "store": store.location,
    }


def alerts(store: Reader, run_id: int | None, since: int) -> dict[str, Any]:
    """Alerts, the newest first, with the names of their runs."""
    names = {info.id: info.name for info in store.runs()}
    found = [{**_alert(alert), "run_name": names.get(alert.run_id, "")} for alert in store.alerts(run_id, since=since)]
    return {"alerts": found[::-1]}


def run(store: Reader, run_id: int) -> dict[str, Any]:
    """One run without its series: settings, what there is to draw, last values, versions, files."""
    info = store.info(run_id)
    last = store.last(run_id)
    arrays: list[dict[str, Any]] = []
    for name in store.array_names(run_id):
        steps = store.array_steps(run_id, name)
        arrays.append({"name": name, "steps": steps, "page": page_of(name)})
    floors = {name for array in arrays for name in floor_names(array["name"])}
    layers: dict[str, set[str]] = {}
    for name in last:
        if layer := layer_of(name):
            layers.setdefault(name.rpartition("/")[2], set()).add(layer)
    return {
        **_head(info),
        "config": flat(info.config),
        "environment": flat(info.environment),
        "metrics": [
            {"name": name, **_last(one)} for name, one in last.items() if not layer_of(name) and name not in floors
        ],
        "layers": {quantity: len(names) for quantity, names in sorted(layers.items())},
        "arrays": arrays,
        "alerts": [_alert(alert) for alert in store.alerts(run_id)],
        "versions": [_version(store, version) for version in store.model_versions(run_id)[-MOST_VERSIONS:]],
        "artifacts": [dataclasses.asdict(item) for item in store.artifacts(run_id)],
        "children": [{"id": child.id, "name": child.name} for child in store.runs(parent=run_id)],
    }


def page_of(array: str) -> str:
    """The page on which an array is shown.

    >>> [page_of(name) for name in ("dynaxx/spectrum", "dynaxx/one_shot/obd", "dynaxx/inpca", "dynaxx/other")]
    ['spectrum', 'pruning', 'inpca', '']
    """
    parts = array.split("/")
    if len(parts) > 2 and parts[-2] in FAMILIES:
        return FAMILIES[parts[-2]]
    return "inpca" if parts[-1] == "inpca" else "spectrum" if is_spectrum(array) else ""


def versions(store: Reader) -> dict[str, Any]:
    """Model versions of all runs, the newest first, each with its health."""
    names = {info.id: info.name for info in store.runs()}
    found = store.model_versions()
    judged = [{**_version(store, one), "run_name": names[one.run_id]} for one in found[: -MOST_VERSIONS - 1 : -1]]
    return {"versions": judged, "total": len(found)}


def compare(store: Reader, items: Sequence[str]) -> dict[str, Any]:
    """Runs ("3") and model versions ("3:pruned") side by side: settings that differ, values at their last step.

    Raises:
        StoreError: there is no such run or version.
    """
    infos, columns, heads = [], [], []
    for item in items:
        text, _, name = item.partition(":")
        if not text.isascii() or not text.isdigit():
            raise StoreError(f"{item!r:.80} is neither a run such as '3' nor a model version such as '3:pruned'")
        info = store.info(int(text))
        version = store.model_version(info.id, name) if name else None
        infos.append(info)
        columns.append(store.last(info.id, version.step if version else None))
        heads.append({"item": item, "run": info.id, "label": f"{info.id} {info.name}" + (f": {name}" if name else "")})
        heads[-1] |= {"status": info.status, "version": _version(store, version) if version else None}
    names = shared_metrics(columns) if len(columns) > 1 else sorted(name for name in columns[0] if not layer_of(name))
    return {
        "items": heads,
        "cautions": cautions(infos),
        "settings": differences(infos),
        "metrics": [
            {
                "name": name,
                "drawn": any(name in found and found[name].first < found[name].step for found in columns),
                "values": [_last(found[name]) if name in found else None for found in columns],
            }
            for name in names
        ],
    }


def inpca(store: Reader, run_id: int, name: str, step: int | None) -> dict[str, Any]:
    """Points of an embedding on its first axes, at one step (the last by default), and what was said of them.

    Raises:
        StoreError: there is no such array, or it holds no points.
    """
    steps = store.array_steps(run_id, name)
    record = store.arrays(run_id, name, [step] if step in steps else steps[-1:])[0]
    value, said = record.value, record.attributes
    if value.ndim != 2 or value.shape[1] < 2 or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
        raise StoreError(f"array {name!r} has shape {value.shape}; an embedding is (points, axes), all of them finite")
    points = value[:, :3]
    axes = [f"axis {number}" for number in range(1, points.shape[1] + 1)]
    labels = said.get("labels")
    labels = labels if isinstance(labels, list) and len(labels) == len(points) else ()
    block = Scatter(name, points, labels, axes, connect=bool(said.get("connected")))
    eigenvalues, stress = said.get("eigenvalues"), said.get("explained_stress")
    rows = scatter.table(block)
    return {
        "step": record.step,
        "steps": steps,
        "points": len(points),
        "cloud": scatter.cloud(block),
        "description": scatter.describe(block),
        "remarks": scatter.remarks(block),
        "table": {"columns": rows.columns, "rows": rows.rows, "caption": rows.caption},
        "eigenvalues": [one for one in eigenvalues if _is_number(one)][:3] if isinstance(eigenvalues, list) else [],
        "explained_stress": stress if _is_number(stress) else None,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _head(info: RunInfo) -> dict[str, Any]:
    kept = ("id", "project", "name", "status", "started", "ended", "seconds", "heartbeat", "parent", "tags", "host")
    return {name: getattr(info, name) for name in kept}


def _alert(alert: Alert) -> dict[str, Any]:
    return dataclasses.asdict(alert)


def _last(last: Last) -> dict[str, Any]:
    return {
        "first": last.first,
        "step": last.step,
        "value": plain(last.value),
        "stderr": None if math.isnan(last.stderr) else last.stderr,
    }


def _version(store: Reader, version: ModelVersion) -> dict[str, Any]:
    verdict = health(store, version)
    drifts = []
    if version.baseline:
        for child in store.runs(parent=version.run_id):
            for one in drift(version.baseline, store.last(child.id)):
                values = {key: plain(getattr(one, key)) for key in ("baseline", "value", "deviations")}
                drifts.append({"run": child.id, "name": one.name, **values})
    return {
        "name": version.name,
        "run": version.run_id,
        "step": version.step,
        "wall": version.wall,
        "digest": version.digest,
        "details": flat(version.details),
        "baseline": {name: [plain(value), plain(spread)] for name, (value, spread) in version.baseline.items()},
        "drift": drifts,
        "health": verdict.level,
        "reasons": verdict.reasons,
    }
