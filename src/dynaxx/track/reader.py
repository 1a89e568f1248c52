"""What is in a run store: every question, and no way to change it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, overload

import numpy as np
from sqlalchemy import Connection, Select, func, select

from dynaxx.track import schema
from dynaxx.track.database import Database
from dynaxx.track.errors import StoreError
from dynaxx.track.liveness import actual_status
from dynaxx.track.records import (
    Alert,
    ArrayRecord,
    Artifact,
    Columns,
    Last,
    ModelVersion,
    RunInfo,
    decode_array,
    decode_baseline,
    decode_number,
)
from dynaxx.track.search import matches

PORTION = 500  # rows of a series fetched at a time


class Reader:
    """The questions a store answers; :class:`dynaxx.track.Store` adds what changes it."""

    database: Database

    @property
    def location(self) -> str:
        """Where it is: a path, or a URL without its password."""
        return self.database.label

    def projects(self) -> list[str]:
        """Names of projects, in alphabetical order."""
        with self._reading() as connection:
            return list(connection.execute(select(schema.project.c.name).order_by(schema.project.c.name)).scalars())

    def runs(
        self, project: str | None = None, *, search: str = "", tag: str | None = None, parent: int | None = None
    ) -> list[RunInfo]:
        """Runs, the newest first.

        Args:
            project: only those of this project.
            search: only those that have all these words in name, project, status, tags or settings
                (:func:`dynaxx.track.search.matches`).
            tag: only those with this tag.
            parent: only those that go on from this run.
        """
        query = _runs().order_by(schema.run.c.started.desc(), schema.run.c.id.desc())
        if project is not None:
            query = query.where(schema.project.c.name == project)
        if tag is not None:
            query = query.where(schema.run.c.id.in_(select(schema.tag.c.run_id).where(schema.tag.c.name == tag)))
        if parent is not None:
            query = query.where(schema.run.c.parent_id == parent)
        with self._reading() as connection:
            tags = _tags(connection)
            found = [_run_info(row, tags) for row in connection.execute(query).mappings()]
        return [info for info in found if matches(info, search)]

    def tags(self) -> list[str]:
        """Every tag in use, in alphabetical order."""
        with self._reading() as connection:
            return list(connection.execute(select(schema.tag.c.name).distinct().order_by(schema.tag.c.name)).scalars())

    def info(self, run_id: int) -> RunInfo:
        """One run.

        Raises:
            StoreError: there is none with this number.
        """
        with self._reading() as connection:
            return _run_info(one_run(connection, run_id), _tags(connection, run_id))

    def metric_names(self, run_id: int) -> list[str]:
        """Names of the metrics of a run, in alphabetical order."""
        return self._names(schema.metric, run_id)

    def array_names(self, run_id: int) -> list[str]:
        """Names of the arrays of a run, in alphabetical order."""
        return self._names(schema.array, run_id)

    @overload
    def metrics(self, run_id: int, name: str, *, since: float | None = None) -> Columns: ...

    @overload
    def metrics(self, run_id: int, name: None = None, *, since: float | None = None) -> dict[str, Columns]: ...

    def metrics(
        self, run_id: int, name: str | None = None, *, since: float | None = None
    ) -> Columns | dict[str, Columns]:
        """The numbers of a run, by step.

        Args:
            since: only what was logged after this time (seconds since 1970, UTC).

        Returns:
            the columns of one metric, or a dict name -> columns of all.

        Raises:
            StoreError: there is no such run or no such metric in it.
        """
        table, names = schema.metric, schema.metric_name
        query = (
            select(table.c.step, table.c.wall, table.c.value, table.c.kind, table.c.stderr)
            .where(table.c.run_id == run_id)
            .order_by(table.c.step)
        )
        if since is not None:
            query = query.where(table.c.wall > since)
        known = self.metric_names(run_id)
        if name is not None and name not in known:
            raise StoreError(self._unknown("metric", run_id, name, known))
        out = {}
        with self._reading() as connection:
            numbers = dict(connection.execute(select(names.c.name, names.c.id)).all())
            for one in known if name is None else [name]:
                rows = connection.execute(query.where(table.c.name_id == numbers[one]))
                out[one] = _columns(rows.cursor)
        return out if name is None else out[name]

    def extent(self, run_id: int, names: Iterable[str]) -> dict[str, tuple[int, int, float]]:
        """name -> (values, last step, time of the latest value): whether a series has changed, without reading it."""
        table = schema.metric
        query = (
            select(schema.metric_name.c.name, func.count(), func.max(table.c.step), func.max(table.c.wall))
            .join(schema.metric_name, schema.metric_name.c.id == table.c.name_id)
            .where(table.c.run_id == run_id, schema.metric_name.c.name.in_(list(names)))
            .group_by(schema.metric_name.c.name)
        )
        with self._reading() as connection:
            return {row[0]: (row[1], row[2], row[3]) for row in connection.execute(query)}

    def summary(self, run_id: int) -> dict[str, float]:
        """name -> the value at its last step."""
        return {name: last.value for name, last in self.last(run_id).items()}

    def last(self, run_id: int, step: int | None = None) -> dict[str, Last]:
        """name -> its last value; of those up to ``step`` if it is given."""
        table, names = schema.metric, schema.metric_name
        mine = (table.c.run_id == run_id) & (table.c.name_id == names.c.id)
        if step is not None:
            mine &= table.c.step <= step
        # a look into the key for each name: a series lies together there, so no other value of it is read
        ends = [select(end(table.c.step)).where(mine).scalar_subquery() for end in (func.min, func.max)]
        found = select(names.c.id, names.c.name, ends[0].label("first"), ends[1].label("step")).subquery()
        query = (
            select(found.c.name, table.c.step, table.c.value, table.c.kind, table.c.stderr, found.c.first)
            .outerjoin(  # outer, so that no database thinks of going through the values first
                table,
                (table.c.run_id == run_id) & (table.c.name_id == found.c.id) & (table.c.step == found.c.step),
            )
            .where(found.c.step.is_not(None))
            .order_by(found.c.name)
        )
        with self._reading() as connection:
            one_run(connection, run_id)
            rows = connection.execute(query).all()
        return {row[0]: Last(row[1], decode_number(row[2], row[3]), _or_nan(row[4]), row[5]) for row in rows}

    def arrays(self, run_id: int, name: str, steps: Iterable[int] | None = None) -> list[ArrayRecord]:
        """The arrays of one name, by step; of some steps only if they are given (see :meth:`array_steps`).

        Raises:
            StoreError: there is no such run or no such array in it.
        """
        table, names = schema.array, schema.metric_name
        query = (
            select(table.c.step, table.c.wall, table.c.dtype, table.c.shape, table.c.data, table.c.attributes)
            .join(names, names.c.id == table.c.name_id)
            .where(table.c.run_id == run_id, names.c.name == name)
            .order_by(table.c.step)
        )
        if steps is not None:
            query = query.where(table.c.step.in_([int(step) for step in steps]))
        with self._reading() as connection:
            one_run(connection, run_id)
            rows = connection.execute(query).all()
        if not rows and name not in (known := self.array_names(run_id)):
            raise StoreError(self._unknown("array", run_id, name, known))
        return [ArrayRecord(name, int(row[0]), row[1], decode_array(*row[2:5]), row[5] or {}) for row in rows]

    def last_arrays(self, run_id: int, names: Iterable[str]) -> dict[str, ArrayRecord]:
        """name -> the array at its last step, all in one question; names that the run does not have are left out."""
        table, named = schema.array, schema.metric_name
        mine = (table.c.run_id == run_id) & table.c.name_id.in_(select(named.c.id).where(named.c.name.in_(list(names))))
        ends = select(table.c.name_id, func.max(table.c.step).label("step")).where(mine).group_by(table.c.name_id)
        last = ends.subquery()
        query = (
            select(
                named.c.name, table.c.step, table.c.wall, table.c.dtype, table.c.shape, table.c.data, table.c.attributes
            )
            .join(last, (last.c.name_id == table.c.name_id) & (last.c.step == table.c.step))
            .join(named, named.c.id == table.c.name_id)
            .where(table.c.run_id == run_id)
            .order_by(named.c.name)
        )
        with self._reading() as connection:
            one_run(connection, run_id)
            rows = connection.execute(query).all()
        return {row[0]: ArrayRecord(row[0], int(row[1]), row[2], decode_array(*row[3:6]), row[6] or {}) for row in rows}

    def array_steps(self, run_id: int, name: str) -> list[int]:
        """The steps at which an array was logged."""
        table, names = schema.array, schema.metric_name
        query = select(table.c.step).join(names, names.c.id == table.c.name_id).order_by(table.c.step)
        with self._reading() as connection:
            rows = connection.execute(query.where(table.c.run_id == run_id, names.c.name == name))
            return [int(step) for step in rows.scalars()]

    def alerts(self, run_id: int | None = None, *, since: int = 0) -> list[Alert]:
        """The alerts of a run, or of all, in the order they were given; of those after alert ``since`` only."""
        table = schema.alert
        query = select(table).where(table.c.id > since).order_by(table.c.id)
        with self._reading() as connection:
            if run_id is not None:
                one_run(connection, run_id)
                query = query.where(table.c.run_id == run_id)
            rows = connection.execute(query).mappings()
            fields = ("level", "title", "text", "step", "wall", "rule", "id", "run_id")
            return [Alert(**{field: row[field] for field in fields}) for row in rows]

    def alert_counts(self) -> dict[int, dict[str, int]]:
        """Run -> level -> alerts, of every run that has some."""
        table = schema.alert
        out: dict[int, dict[str, int]] = {}
        with self._reading() as connection:
            query = select(table.c.run_id, table.c.level, func.count()).group_by(table.c.run_id, table.c.level)
            for run_id, level, count in connection.execute(query):
                out.setdefault(run_id, {})[level] = count
        return out

    def artifacts(self, run_id: int) -> list[Artifact]:
        """The files of a run, without their content."""
        table = schema.artifact
        size = func.length(table.c.data)
        query = select(table.c.name, table.c.mime, table.c.wall, table.c.path, size).where(table.c.run_id == run_id)
        with self._reading() as connection:
            one_run(connection, run_id)
            return [Artifact(*row) for row in connection.execute(query.order_by(table.c.name))]

    def artifact(self, run_id: int, name: str) -> bytes:
        """The content of one file, from the store or from its path.

        Raises:
            StoreError: there is no such run or file, or its path cannot be read any more.
        """
        table = schema.artifact
        query = select(table.c.data, table.c.path).where(table.c.run_id == run_id, table.c.name == name)
        with self._reading() as connection:
            one_run(connection, run_id)
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

    def model_versions(self, run_id: int | None = None) -> list[ModelVersion]:
        """The named states of a run's model, or of all runs', in the order they were recorded."""
        table = schema.model_version
        columns = (table.c.name, table.c.step, table.c.wall, table.c.digest, table.c.details)
        query = select(*columns, table.c.baseline, table.c.run_id).order_by(table.c.id)
        with self._reading() as connection:
            if run_id is not None:
                one_run(connection, run_id)
                query = query.where(table.c.run_id == run_id)
            rows = connection.execute(query).all()
        return [ModelVersion(*row[:5], decode_baseline(row[5]), row[6]) for row in rows]

    def model_version(self, run_id: int, name: str) -> ModelVersion:
        """The last state of a run's model recorded under ``name``, with its baseline.

        Raises:
            StoreError: there is no such run or version.
        """
        versions = self.model_versions(run_id)
        for version in reversed(versions):
            if version.name == name:
                return version
        known = list(dict.fromkeys(version.name for version in versions))
        raise StoreError(self._unknown("model version", run_id, name, known))

    def _reading(self) -> AbstractContextManager[Connection]:
        return self.database.reading()

    def _names(self, table: Any, run_id: int) -> list[str]:
        names = schema.metric_name
        there = select(table.c.step).where(table.c.run_id == run_id, table.c.name_id == names.c.id).exists()
        query = select(names.c.name).where(there)
        with self._reading() as connection:
            one_run(connection, run_id)
            return list(connection.execute(query.order_by(names.c.name)).scalars())

    def _unknown(self, what: str, run_id: int, name: str, known: list[str]) -> str:
        shown = ", ".join(map(repr, known[:8])) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        return f"run {run_id} has no {what} {name!r}; it has {shown or 'none'}"


def _runs() -> Select[Any]:
    return select(schema.run, schema.project.c.name.label("project")).join(schema.project)


def one_run(connection: Connection, run_id: int) -> Any:
    """The row of one run.

    Raises:
        StoreError: there is none with this number.
    """
    row = connection.execute(_runs().where(schema.run.c.id == run_id)).mappings().one_or_none()
    if row is None:
        total = connection.execute(select(func.count(), func.max(schema.run.c.id)).select_from(schema.run)).one()
        there = f"it holds {total[0]}, the newest is {total[1]}" if total[0] else "it holds no runs yet"
        raise StoreError(f"there is no run {run_id!r} in this store; {there}")
    return row


def _tags(connection: Connection, run_id: int | None = None) -> dict[int, list[str]]:
    query = select(schema.tag.c.run_id, schema.tag.c.name).order_by(schema.tag.c.name)
    out: dict[int, list[str]] = {}
    for row in connection.execute(query if run_id is None else query.where(schema.tag.c.run_id == run_id)):
        out.setdefault(row[0], []).append(row[1])
    return out


def _run_info(row: Any, tags: dict[int, list[str]]) -> RunInfo:
    status = actual_status(row["status"], row["host"], row["pid"], row["heartbeat"])
    fields = ("id", "project", "name", "started", "ended", "config", "environment", "pid", "heartbeat")
    return RunInfo(
        status=status,
        host=row["host"].partition(" pid:")[0],
        parent=row["parent_id"],
        tags=tuple(tags.get(row["id"], ())),
        **{field: row[field] for field in fields},
    )


def _columns(cursor: Any) -> Columns:
    """Rows in portions: tuples that are gone soon cost half the time of a hundred thousand at once."""
    parts = [(np.empty(0, np.int64), *(np.empty(0) for _ in range(3)))]
    while rows := cursor.fetchmany(PORTION):
        steps, walls, values, kinds, stderrs = zip(*rows, strict=True)
        numbers = np.array(values, dtype=np.float64)  # None, which stands for what is not finite, becomes NaN
        for place in np.flatnonzero(kinds):
            numbers[place] = decode_number(None, kinds[place])
        columns = (np.array(steps, dtype=np.int64), np.array(walls, dtype=np.float64), numbers)
        parts.append((*columns, np.array(stderrs, dtype=np.float64)))
    return Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value
