"""The run store: open it, start runs, read them back."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, overload

import numpy as np
from sqlalchemy import Connection, Select, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from dynaxx.track import schema
from dynaxx.track.database import Database, explain
from dynaxx.track.errors import StoreError
from dynaxx.track.liveness import actual_status, host
from dynaxx.track.names import check_name
from dynaxx.track.records import (
    Alert,
    ArrayRecord,
    Artifact,
    Columns,
    ModelVersion,
    RunInfo,
    as_json,
    decode_array,
    decode_number,
    environment,
)
from dynaxx.track.run import Run, ending
from dynaxx.track.sql import number_of
from dynaxx.track.writer import INTERVAL, Writer

DEFAULT_STORE = "dynaxx-runs/dynaxx.db"


class Store:
    """Runs, their numbers, arrays, alerts and files, in one SQLite file or on a database server.

    Several processes may write at once. A store may be carried across a fork: the child gets its own connections and
    its own queue. Writing is queued (see :mod:`dynaxx.track.writer`); reading through this object first writes what
    waits.

    Args:
        target: path of an SQLite file (its folder is made), or any SQLAlchemy URL.
        readonly: change nothing; a missing file is an error instead of a new store.
        interval: seconds between writes; what a killed process loses at most.

    Raises:
        StoreError: it cannot be opened or written, is no run store, or a newer dynaxx wrote it.

    >>> with Store("sqlite://") as store:
    ...     run = store.run(name="one")
    ...     run.log({"loss": 0.5}, step=10)
    ...     run.finish()
    ...     store.summary(run.id)
    {'loss': 0.5}
    """

    def __init__(
        self, target: str | os.PathLike[str] = DEFAULT_STORE, *, readonly: bool = False, interval: float = INTERVAL
    ):
        self.database = Database(target, readonly)
        self._writer = Writer(self.database, interval)
        self._open: dict[int, Run] = {}
        self._pid = os.getpid()

    @property
    def location(self) -> str:
        """Where it is: a path, or a URL without its password."""
        return self.database.label

    def run(self, name: str | None = None, project: str = "default", config: Mapping[str, Any] | None = None) -> Run:
        """Start a run.

        Args:
            name: for people; the time if None. Names need not be unique.
            project: a group of runs.
            config: what the run was given; what JSON cannot carry becomes text.

        Raises:
            InputError: a name of characters that not every tracker accepts.
            StoreError: it cannot be written, or was opened to be read only.
        """
        now = time.time()
        name = check_name("run", time.strftime("%Y-%m-%d %H.%M.%S", time.localtime(now)) if name is None else name)
        check_name("project", project)
        if self.database.readonly:
            raise StoreError(f"{self.location!r} was opened with readonly=True; open it without to start a run")
        row = {"name": name, "status": "running", "config": as_json(dict(config or {})), "environment": environment()}
        row |= {"started": now, "heartbeat": now, "host": host(), "pid": os.getpid()}
        try:
            with self.database.writing() as connection:
                row["project_id"] = number_of(connection, schema.project, project, created=now)
                result = connection.execute(insert(schema.run).values(row))
                run_id = int(result.inserted_primary_key[0])  # type: ignore[index]
        except SQLAlchemyError as error:
            raise StoreError(f"cannot start a run in {self.location!r}: {explain(error)}") from error
        self._writer.runs.add(run_id)
        _ACTIVE.add(self)
        self._open[run_id] = run = Run(self, self._writer, run_id, name, project)
        return run

    def forget(self, run: Run) -> None:
        """A run has ended: it needs no end when the store closes."""
        self._open.pop(run.id, None)
        if not self._open:
            _ACTIVE.discard(self)

    def projects(self) -> list[str]:
        """Names of projects, in alphabetical order."""
        with self._reading() as connection:
            return list(connection.execute(select(schema.project.c.name).order_by(schema.project.c.name)).scalars())

    def runs(self, project: str | None = None) -> list[RunInfo]:
        """Runs, the newest first; those of one project if it is named."""
        query = _runs().order_by(schema.run.c.started.desc(), schema.run.c.id.desc())
        if project is not None:
            query = query.where(schema.project.c.name == project)
        with self._reading() as connection:
            return [_run_info(row) for row in connection.execute(query).mappings()]

    def info(self, run_id: int) -> RunInfo:
        """One run.

        Raises:
            StoreError: there is none with this number.
        """
        with self._reading() as connection:
            return _run_info(_one_run(connection, run_id))

    def metric_names(self, run_id: int) -> list[str]:
        """Names of the metrics of a run, in alphabetical order."""
        return self._names(schema.metric, run_id)

    def array_names(self, run_id: int) -> list[str]:
        """Names of the arrays of a run, in alphabetical order."""
        return self._names(schema.array, run_id)

    @overload
    def metrics(self, run_id: int, name: str) -> Columns: ...

    @overload
    def metrics(self, run_id: int, name: None = None) -> dict[str, Columns]: ...

    def metrics(self, run_id: int, name: str | None = None) -> Columns | dict[str, Columns]:
        """The numbers of a run, by step.

        Returns:
            the columns of one metric, or a dict name -> columns of all.

        Raises:
            StoreError: there is no such run or no such metric in it.
        """
        table, names = schema.metric, schema.metric_name
        query = (
            select(names.c.name, table.c.step, table.c.wall, table.c.value, table.c.kind, table.c.stderr)
            .join(names, names.c.id == table.c.name_id)
            .where(table.c.run_id == run_id)
            .order_by(table.c.name_id, table.c.step)
        )
        if name is not None:
            query = query.where(names.c.name == name)
        with self._reading() as connection:
            _one_run(connection, run_id)
            rows = connection.execute(query).all()
        grouped: dict[str, list[Any]] = {}
        for row in rows:
            grouped.setdefault(row[0], []).append(row)
        if name is not None:
            if name not in grouped:
                raise StoreError(self._unknown("metric", run_id, name, self.metric_names(run_id)))
            return _columns(grouped[name])
        return {key: _columns(grouped[key]) for key in sorted(grouped)}

    def summary(self, run_id: int) -> dict[str, float]:
        """name -> the value at its last step."""
        table, names = schema.metric, schema.metric_name
        last = (
            select(table.c.name_id, func.max(table.c.step).label("step"))
            .where(table.c.run_id == run_id)
            .group_by(table.c.name_id)
            .subquery()
        )
        query = (
            select(names.c.name, table.c.value, table.c.kind)
            .join(names, names.c.id == table.c.name_id)
            .join(last, (last.c.name_id == table.c.name_id) & (last.c.step == table.c.step))
            .where(table.c.run_id == run_id)
            .order_by(names.c.name)
        )
        with self._reading() as connection:
            _one_run(connection, run_id)
            return {row[0]: decode_number(row[1], row[2]) for row in connection.execute(query)}

    def arrays(self, run_id: int, name: str, steps: Iterable[int] | None = None) -> list[ArrayRecord]:
        """The arrays of one name, by step; of some steps only if they are given (see :meth:`array_steps`).

        Raises:
            StoreError: there is no such run or no such array in it.
        """
        table, names = schema.array, schema.metric_name
        query = (
            select(table.c.step, table.c.wall, table.c.dtype, table.c.shape, table.c.data)
            .join(names, names.c.id == table.c.name_id)
            .where(table.c.run_id == run_id, names.c.name == name)
            .order_by(table.c.step)
        )
        if steps is not None:
            query = query.where(table.c.step.in_([int(step) for step in steps]))
        with self._reading() as connection:
            _one_run(connection, run_id)
            rows = connection.execute(query).all()
        if not rows and name not in (known := self.array_names(run_id)):
            raise StoreError(self._unknown("array", run_id, name, known))
        return [ArrayRecord(name, int(row[0]), row[1], decode_array(row[2], row[3], row[4])) for row in rows]

    def array_steps(self, run_id: int, name: str) -> list[int]:
        """The steps at which an array was logged."""
        table, names = schema.array, schema.metric_name
        query = select(table.c.step).join(names, names.c.id == table.c.name_id).order_by(table.c.step)
        with self._reading() as connection:
            rows = connection.execute(query.where(table.c.run_id == run_id, names.c.name == name))
            return [int(step) for step in rows.scalars()]

    def alerts(self, run_id: int) -> list[Alert]:
        """The alerts of a run, in the order they were given."""
        table = schema.alert
        query = select(table).where(table.c.run_id == run_id).order_by(table.c.id)
        with self._reading() as connection:
            _one_run(connection, run_id)
            rows = connection.execute(query).mappings()
            return [Alert(row["level"], row["title"], row["text"], row["step"], row["wall"]) for row in rows]

    def artifacts(self, run_id: int) -> list[Artifact]:
        """The files of a run, without their content."""
        table = schema.artifact
        size = func.length(table.c.data)
        query = select(table.c.name, table.c.mime, table.c.wall, table.c.path, size).where(table.c.run_id == run_id)
        with self._reading() as connection:
            _one_run(connection, run_id)
            return [Artifact(*row) for row in connection.execute(query.order_by(table.c.name))]

    def artifact(self, run_id: int, name: str) -> bytes:
        """The content of one file, from the store or from its path.

        Raises:
            StoreError: there is no such run or file, or its path cannot be read any more.
        """
        table = schema.artifact
        query = select(table.c.data, table.c.path).where(table.c.run_id == run_id, table.c.name == name)
        with self._reading() as connection:
            _one_run(connection, run_id)
            row = connection.execute(query).one_or_none()
        if row is None:
            raise StoreError(self._unknown("artifact", run_id, name, [item.name for item in self.artifacts(run_id)]))
        if row[0] is not None:
            return bytes(row[0])
        try:
            with open(row[1], "rb") as file:
                return file.read()
        except OSError as error:
            raise StoreError(
                f"artifact {name!r} of run {run_id} was left at {row[1]!r}, which cannot be read: {error.strerror}; "
                "put it back, or log bytes to keep the content in the store"
            ) from error

    def model_versions(self, run_id: int) -> list[ModelVersion]:
        """The named states of the model, in the order they were recorded."""
        table = schema.model_version
        query = select(table.c.name, table.c.step, table.c.wall, table.c.digest, table.c.details)
        with self._reading() as connection:
            _one_run(connection, run_id)
            rows = connection.execute(query.where(table.c.run_id == run_id).order_by(table.c.id))
            return [ModelVersion(*row) for row in rows]

    def flush(self) -> bool:
        """Write what waits now; True when nothing is left."""
        return self._writer.flush()

    @property
    def waiting(self) -> int:
        """Metrics and rows not written yet."""
        return self._writer.waiting

    def close(self, status: str = "finished") -> None:
        """End the runs still open with ``status``, write everything, and close. In a forked child: the child's only."""
        for run in list(self._open.values()):
            run.finish(status)
        if self._pid != os.getpid():
            self._open.clear()
        self._writer.close()
        self.database.close()
        _ACTIVE.discard(self)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(ending(error))

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    def _reading(self) -> Any:
        if self._writer.waiting:
            self._writer.flush()
        return self.database.reading()

    def _names(self, table: Any, run_id: int) -> list[str]:
        names = schema.metric_name
        query = select(names.c.name).where(
            names.c.id.in_(select(table.c.name_id).where(table.c.run_id == run_id).distinct())
        )
        with self._reading() as connection:
            _one_run(connection, run_id)
            return list(connection.execute(query.order_by(names.c.name)).scalars())

    def _unknown(self, what: str, run_id: int, name: str, known: list[str]) -> str:
        shown = ", ".join(map(repr, known[:8])) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        return f"run {run_id} has no {what} {name!r}; it has {shown or 'none'}"


def _runs() -> Select[Any]:
    return select(schema.run, schema.project.c.name.label("project")).join(schema.project)


def _one_run(connection: Connection, run_id: int) -> Any:
    row = connection.execute(_runs().where(schema.run.c.id == run_id)).mappings().one_or_none()
    if row is None:
        total = connection.execute(select(func.count(), func.max(schema.run.c.id)).select_from(schema.run)).one()
        there = f"it holds {total[0]}, the newest is {total[1]}" if total[0] else "it holds no runs yet"
        raise StoreError(f"there is no run {run_id!r} in this store; {there}")
    return row


def _run_info(row: Any) -> RunInfo:
    status = actual_status(row["status"], row["host"], row["pid"], row["heartbeat"])
    fields = ("id", "project", "name", "started", "ended", "config", "environment", "pid", "heartbeat")
    return RunInfo(status=status, host=row["host"].partition(" pid:")[0], **{field: row[field] for field in fields})


def _columns(rows: list[Any]) -> Columns:
    return Columns(
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.float64),
        np.array([decode_number(row[3], row[4]) for row in rows], dtype=np.float64),
        np.array([np.nan if row[5] is None else row[5] for row in rows], dtype=np.float64),
    )


_ACTIVE: set[Store] = set()  # with open runs: kept alive until those have ended


def _at_exit() -> None:
    """A program that ends without closing: its runs end as it did (a bare exit code cannot be seen from here)."""
    error = getattr(sys, "last_value", None)  # set when an exception ended the program
    for store in list(_ACTIVE):
        store.close(ending(error))


atexit.register(_at_exit)
