"""The run store: open it, start runs, read them back."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from dynaxx.track import schema
from dynaxx.track.database import Database, explain
from dynaxx.track.errors import StoreError
from dynaxx.track.liveness import host
from dynaxx.track.names import check_name
from dynaxx.track.reader import Reader, one_run
from dynaxx.track.records import as_json, environment
from dynaxx.track.removal import delete_runs, delete_unused
from dynaxx.track.run import Run, ending
from dynaxx.track.sql import number_of, upsert
from dynaxx.track.writer import INTERVAL, Writer

DEFAULT_STORE = "dynaxx-runs/dynaxx.db"


class Store(Reader):
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

    def run(
        self,
        name: str | None = None,
        project: str = "default",
        config: Mapping[str, Any] | None = None,
        *,
        parent: int | None = None,
        tags: Iterable[str] = (),
    ) -> Run:
        """Start a run.

        Args:
            name: for people; the time if None. Names need not be unique.
            project: a group of runs.
            config: what the run was given; what JSON cannot carry becomes text.
            parent: number of the run this one goes on from, or belongs to.
            tags: words by which it is found and kept.

        Raises:
            InputError: a name of characters that not every tracker accepts.
            StoreError: it cannot be written, was opened to be read only, or has no run ``parent``.
        """
        now = time.time()
        name = check_name("run", time.strftime("%Y-%m-%d %H.%M.%S", time.localtime(now)) if name is None else name)
        check_name("project", project)
        words = [check_name("tag", tag) for tag in ([tags] if isinstance(tags, str) else tags)]
        self._require_writable("start a run")
        if parent is not None:
            self.info(parent)
        row = {"name": name, "status": "running", "config": as_json(dict(config or {})), "environment": environment()}
        row |= {"started": now, "heartbeat": now, "host": host(), "pid": os.getpid(), "parent_id": parent}
        try:
            with self.database.writing() as connection:
                row["project_id"] = number_of(connection, schema.project, project, created=now)
                result = connection.execute(insert(schema.run).values(row))
                run_id = int(result.inserted_primary_key[0])  # type: ignore[index]
                upsert(connection, schema.tag, [{"run_id": run_id, "name": word} for word in words])
        except SQLAlchemyError as error:
            raise StoreError(f"cannot start a run in {self.location!r}: {explain(error)}") from error
        return self._opened(Run(self, self._writer, run_id, name, project))

    def resume(self, run_id: int) -> Run:
        """Go on with a run that has ended, or whose process is gone.

        What is logged again takes the place of what was there, and an alert that is there (one step, the same words) is
        not repeated, so work done again after a crash leaves no trace of it.

        Raises:
            StoreError: there is no such run, it is still running, or the store cannot be written.

        >>> with Store("sqlite://") as store:
        ...     with store.run("one") as run:
        ...         run.log({"loss": 0.5}, step=1)
        ...     with store.resume(run.id) as again:
        ...         again.log({"loss": 0.4})
        ...     len(store.runs()), store.metrics(run.id, "loss").steps.tolist()
        (1, [1, 2])
        """
        self._require_writable("go on with a run")
        info = self.info(run_id)
        if info.status == "running":
            raise StoreError(f"run {run_id} ({info.name!r}) is still running; end it before going on with it")
        values = {"status": "running", "ended": None, "heartbeat": time.time(), "host": host(), "pid": os.getpid()}
        with self._changing(f"go on with run {run_id}") as connection:
            connection.execute(update(schema.run).where(schema.run.c.id == run_id).values(**values))
            steps = select(func.max(schema.metric.c.step)).where(schema.metric.c.run_id == run_id)
            last = connection.execute(steps).scalar()
        run = Run(self, self._writer, run_id, info.name, info.project)
        return self._opened(run.after(-1 if last is None else last, self.alerts(run_id)))

    def _opened(self, run: Run) -> Run:
        self._writer.runs.add(run.id)
        _ACTIVE.add(self)
        self._open[run.id] = run
        return run

    def forget(self, run: Run) -> None:
        """A run has ended: it needs no end when the store closes."""
        self._open.pop(run.id, None)
        if not self._open:
            _ACTIVE.discard(self)

    def tag(self, run_id: int, *names: str, remove: Iterable[str] = ()) -> None:
        """Give a run tags, or take some away; it may have ended.

        Raises:
            InputError: a name that cannot be stored.
            StoreError: there is no such run, or the store cannot be written.
        """
        rows = [{"run_id": run_id, "name": check_name("tag", name)} for name in names]
        with self._changing(f"tag run {run_id}") as connection:
            one_run(connection, run_id)
            upsert(connection, schema.tag, rows)
            table = schema.tag
            connection.execute(delete(table).where(table.c.run_id == run_id, table.c.name.in_(list(remove))))

    def remove(self, run_ids: Iterable[int]) -> None:
        """Delete runs and everything they logged; runs that go on from them lose their parent. Files stay.

        Raises:
            StoreError: there is no such run, one is still running, or the store cannot be written.
        """
        chosen = sorted(set(run_ids))
        for info in map(self.info, chosen):
            if info.status == "running":
                raise StoreError(f"run {info.id} ({info.name!r}) is still running; end it before removing it")
        with self._changing("remove runs") as connection:
            delete_runs(connection, chosen)

    def tidy(self) -> None:
        """Delete projects without a run, and give the space of deleted rows back (SQLite: a new file of
        the same size is needed meanwhile).

        Raises:
            StoreError: the store cannot be written.
        """
        with self._changing("tidy up") as connection:
            delete_unused(connection)
        self.database.compact()

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

    def _reading(self) -> AbstractContextManager[Connection]:
        if self._writer.waiting:
            self._writer.flush()
        return super()._reading()

    def _require_writable(self, what: str) -> None:
        if self.database.readonly:
            raise StoreError(f"{self.location!r} was opened with readonly=True; open it without to {what}")

    @contextmanager
    def _changing(self, what: str) -> Iterator[Connection]:
        self._require_writable(what)
        self._writer.flush()
        try:
            with self.database.writing() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"cannot {what} in {self.location!r}: {explain(error)}") from error


_ACTIVE: set[Store] = set()  # with open runs: kept alive until those have ended


def _at_exit() -> None:
    """A program that ends without closing: its runs end as it did (a bare exit code cannot be seen from here)."""
    error = getattr(sys, "last_value", None)  # set when an exception ended the program
    for store in list(_ACTIVE):
        store.close(ending(error))


atexit.register(_at_exit)
