"""Runs as files that other programs read: CSV and Parquet hold the metrics, JSON holds everything but files."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dynaxx.errors import InputError, choose
from dynaxx.track.reader import Reader

COLUMNS = ("run", "project", "run_name", "metric", "step", "wall", "value", "stderr")
SUFFIXES = {".csv": "csv", ".json": "json", ".parquet": "parquet"}


def export(
    store: Reader, path: str | os.PathLike[str], runs: Sequence[int] | None = None, form: str | None = None
) -> Path:
    """Write runs to a file; a reader sees the old file or the whole new one.

    CSV and Parquet have one row a value: run, project, run_name, metric, step, wall (seconds since 1970, UTC), value,
    stderr. NaN and infinities are kept (``nan``, ``inf``, ``-inf`` in CSV); a standard error not known is empty. JSON
    is one object: runs with config, environment, tags, metrics (columns), arrays, alerts, model versions and a list of
    artifacts; what JSON has no number for is the text "nan", "inf" or "-inf".

    Args:
        runs: their numbers; all if None.
        form: "csv", "json" or "parquet"; by the file's suffix if None. Parquet needs pyarrow.

    Returns:
        the path.

    Raises:
        InputError: an unknown form, pyarrow is missing, or the file cannot be written.
        StoreError: there is no such run.

    Cost: one series in memory at a time, for JSON one run.
    """
    target = Path(path).expanduser()
    form = choose("format", form or SUFFIXES.get(target.suffix.lower(), target.suffix or "none"), _WRITERS)
    if form == "parquet":
        _pyarrow()
    chosen = [info.id for info in store.runs()][::-1] if runs is None else list(dict.fromkeys(runs))
    for run_id in chosen:
        store.info(run_id)
    with _replacing(target) as temporary:
        _WRITERS[form](store, chosen, temporary)
    return target


def run_as_data(store: Reader, run_id: int) -> dict[str, Any]:
    """Everything of one run that JSON can carry.

    Raises:
        StoreError: there is no such run.
    """
    info = dataclasses.asdict(store.info(run_id))
    metrics = {
        name: {
            "steps": columns.steps.tolist(),
            "walls": columns.walls.tolist(),
            "values": _plain(columns.values),
            "stderrs": [None if math.isnan(spread) else spread for spread in columns.stderrs.tolist()],
        }
        for name, columns in store.metrics(run_id).items()
    }
    arrays = [
        {
            "name": name,
            "step": record.step,
            "wall": record.wall,
            "dtype": record.value.dtype.name,
            "shape": record.value.shape,
            "attributes": record.attributes,
            "values": _plain(record.value),
        }
        for name in store.array_names(run_id)
        for record in store.arrays(run_id, name)
    ]
    versions = [dataclasses.asdict(version) for version in store.model_versions(run_id)]
    for version in versions:
        version["baseline"] = {name: _plain(np.array(pair)) for name, pair in version["baseline"].items()}
    rest: dict[str, list[Any]] = {"alerts": store.alerts(run_id), "artifacts": store.artifacts(run_id)}
    lists = {key: [dataclasses.asdict(item) for item in items] for key, items in rest.items()}
    return {**info, "metrics": metrics, "arrays": arrays, "model_versions": versions, **lists}


def rows(store: Reader, runs: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """One row a value, in the order of ``COLUMNS``."""
    for head, columns in _series(store, runs):
        for step, wall, value, spread in zip(
            columns.steps.tolist(),
            columns.walls.tolist(),
            columns.values.tolist(),
            columns.stderrs.tolist(),
            strict=True,
        ):
            yield (*head, step, wall, value, None if math.isnan(spread) else spread)


def _series(store: Reader, runs: Sequence[int]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for run_id in runs:
        info = store.info(run_id)
        for name in store.metric_names(run_id):
            yield (run_id, info.project, info.name, name), store.metrics(run_id, name)


def _csv(store: Reader, runs: Sequence[int], path: Path) -> None:
    with open(path, "x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows(store, runs))


def _json(store: Reader, runs: Sequence[int], path: Path) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.write('{"runs": [')
        for index, run_id in enumerate(runs):
            file.write(",\n" if index else "\n")
            json.dump(run_as_data(store, run_id), file, allow_nan=False)
        file.write("\n]}\n")


def _parquet(store: Reader, runs: Sequence[int], path: Path) -> None:
    pyarrow = _pyarrow()
    from pyarrow import parquet

    kinds = ("int64", "string", "string", "string", "int64", "float64", "float64", "float64")
    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in zip(COLUMNS, kinds, strict=True)])
    with parquet.ParquetWriter(path, schema) as writer:
        for head, columns in _series(store, runs):
            numbers = (columns.steps, columns.walls, columns.values)
            spread = pyarrow.array(columns.stderrs, mask=np.isnan(columns.stderrs))
            table = [pyarrow.array([item] * len(columns)) for item in head] + [*map(pyarrow.array, numbers), spread]
            writer.write_table(pyarrow.Table.from_arrays(table, schema=schema))


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(
            "format='parquet' needs pyarrow, which is not installed; pip install pyarrow, or export to .csv or .json"
        ) from error
    return pyarrow


_WRITERS: dict[str, Callable[[Reader, Sequence[int], Path], None]] = {"csv": _csv, "json": _json, "parquet": _parquet}


def _plain(values: np.ndarray) -> Any:
    """Nested lists of numbers, "nan", "inf" and "-inf"; a complex number becomes (real, imaginary)."""
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], axis=-1)
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return values.tolist()
    return np.where(np.isfinite(values), values.astype(object), values.astype(str)).tolist()


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A path beside ``target`` that takes its place at the end, and is gone if anything fails."""
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"cannot write {str(target)!r}: {error.strerror or error}; name another file") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
