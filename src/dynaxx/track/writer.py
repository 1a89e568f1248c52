"""Rows wait in a queue that a thread empties about twice a second: logging never waits for the disk and never raises.

A killed process loses at most what was logged since the last write. A full disk or a lost server costs nothing at
first: rows stay in memory, one warning is given, and writing is tried again until it works or the program ends.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, update
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, SQLAlchemyError, StatementError

from dynaxx.errors import bytes_as_text
from dynaxx.track import schema
from dynaxx.track.database import Database, explain
from dynaxx.track.errors import StoreWarning
from dynaxx.track.sql import name_ids, upsert

INTERVAL = 0.5  # seconds between writes
HEARTBEAT = 10.0  # seconds between signs of life of an open run
SLOWEST_RETRY = 30.0
PATIENCE = 10.0  # seconds that closing waits for a program that holds the file
LARGEST_BUFFER = 256 * 10**6  # bytes kept while nothing can be written
CHUNK = 5000  # entries in one transaction, so that other processes get their turn

_log = logging.getLogger("dynaxx.track")


@dataclass(frozen=True, slots=True)
class Metrics:
    """The numbers of one step: values is a tuple of (name, value, kind, stderr)."""

    run_id: int
    step: int
    wall: float
    values: tuple[tuple[str, float | None, int, float | None], ...]

    @property
    def size(self) -> int:
        """About how many bytes it holds in memory."""
        return 100 + 150 * len(self.values)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of another table. ``name`` is the metric name to be looked up, where the table wants one."""

    table: Table
    values: dict[str, Any]
    name: str | None = None

    @property
    def size(self) -> int:
        """About how many bytes it holds in memory."""
        return 500 + sum(len(value) for value in self.values.values() if isinstance(value, (bytes, str)))


@dataclass(frozen=True, slots=True)
class Change:
    """New values for a row of the table of runs."""

    run_id: int
    values: dict[str, Any]
    size: int = 200


Entry = Metrics | Row | Change


class Writer:
    """The queue of one store in one process.

    Args:
        database: where to write.
        interval: seconds between writes.
    """

    def __init__(self, database: Database, interval: float = INTERVAL):
        self.database = database
        self.interval = interval
        self.runs: set[int] = set()  # open in this process: they need a heartbeat, and an end when the process ends
        self.dropped = 0  # metrics and rows given up
        self._reset()
        _WRITERS.add(self)

    def _reset(self) -> None:
        self._queue: deque[Entry] = deque()
        self._draining = threading.Lock()
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failures = 0
        self._held = False  # whether the last failure was another program's lock, which passes
        self._names: dict[str, int] = {}
        self._beat = time.monotonic()

    def after_fork(self) -> None:
        """In a forked child: what waits, and the open runs, are the parent's to write. Locks may be held by nobody."""
        self.runs = set()
        self._reset()

    @property
    def waiting(self) -> int:
        """Metrics and rows not written yet."""
        return sum(len(entry.values) if isinstance(entry, Metrics) else 1 for entry in list(self._queue))

    def put(self, entry: Entry) -> None:
        """Queue one entry; returns at once. Safe from any thread, and from a signal handler."""
        self._queue.append(entry)
        if self._thread is None or not self._thread.is_alive():
            self._start()

    def flush(self, timeout: float = 15.0) -> bool:
        """Write what waits, in the calling thread. True when nothing is left; never raises for the database's sake."""
        if not self._draining.acquire(timeout=timeout):
            return False
        try:
            return self._drain()
        finally:
            self._draining.release()

    def hurry(self) -> None:
        """Write what waits now if writing works; where it does not, the thread will, and nobody waits for it."""
        if not self._failures:
            self.flush(timeout=2.0)

    def close(self) -> None:
        """Write what waits, stop the thread, and say so if something could not be written.

        A lock of another program is waited for, since the program will end; a full disk or a lost server is not.
        """
        self._closed = True
        self._wake.set()
        deadline = time.monotonic() + PATIENCE
        while not (written := self.flush()) and self._held and time.monotonic() < deadline:
            time.sleep(0.05)
        if not written:
            self._warn(f"{self.waiting} values could not be written to {self.database.label!r} and are lost")
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)

    def _start(self) -> None:
        # a signal handler that logs while this very thread starts the writer must not wait for itself
        if not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None or not self._thread.is_alive():
                self._closed = False
                self._wake.clear()
                self._thread = threading.Thread(target=self._work, name="dynaxx-store", daemon=True)
                self._thread.start()
        except RuntimeError:
            pass  # the interpreter is ending; the flush at exit writes what waits
        finally:
            self._starting.release()

    def _work(self) -> None:
        while not self._closed and (self.runs or self._queue):
            self._wake.wait(min(self.interval * 2**self._failures, SLOWEST_RETRY))
            self.flush()

    def _drain(self) -> bool:
        while True:
            batch: list[Entry] = []
            while self._queue and len(batch) < CHUNK:
                batch.append(self._queue.popleft())
            beats = self._beats()
            if not batch and not beats:
                return True
            try:
                self._write(batch, beats)
            except (OperationalError, InternalError) as error:
                return self._keep(batch, error)
            except (DBAPIError, StatementError):
                if not self._write_singly(batch):
                    return False
            except Exception as error:
                return self._keep(batch, error)
            except BaseException:
                self._queue.extendleft(reversed(batch))
                raise
            self._failures = 0

    def _beats(self) -> list[Entry]:
        if time.monotonic() - self._beat < HEARTBEAT:
            return []
        now = time.time()
        return [Change(run_id, {"heartbeat": now}) for run_id in list(self.runs)]

    def _write(self, batch: list[Entry], beats: list[Entry] | None = None) -> None:
        names = dict(self._names)
        with self.database.writing() as connection:
            write(connection, [*batch, *(beats or [])], names)
        self._names = names  # numbers of names count only once they are committed
        if beats:
            self._beat = time.monotonic()

    def _write_singly(self, batch: list[Entry]) -> bool:
        """One bad row must not hold up the rest: find it, and give it up."""
        self._names = {}
        for position, entry in enumerate(batch):
            try:
                self._write([entry])
            except (OperationalError, InternalError) as error:
                return self._keep(batch[position:], error)
            except SQLAlchemyError as error:
                self.dropped += 1
                self._warn(f"the run store {self.database.label!r} refused a row, which is lost: {explain(error)}")
        return True

    def _keep(self, batch: list[Entry], error: Exception) -> bool:
        """Put a batch back, within the memory allowed. The newest rows are the ones worth keeping."""
        self._queue.extendleft(reversed(batch))
        self._held = "locked" in str(error)
        size = sum(entry.size for entry in list(self._queue))
        lost = 0
        while size > LARGEST_BUFFER and self._queue:
            oldest = self._queue.popleft()
            size -= oldest.size
            lost += len(oldest.values) if isinstance(oldest, Metrics) else 1
        if not self._failures:
            reason = explain(error) if isinstance(error, SQLAlchemyError) else f"{type(error).__name__}: {error}"
            self._warn(
                f"cannot write to the run store {self.database.label!r}: {reason}. What is logged stays in memory "
                f"(up to {bytes_as_text(LARGEST_BUFFER)}) and is written when that works again"
            )
        if lost and not self.dropped:
            self._warn(
                f"the memory for unwritten rows of {self.database.label!r} is full; the oldest are being dropped"
            )
        self.dropped += lost
        self._failures = min(self._failures + 1, 16)
        return False

    def _warn(self, message: str) -> None:
        try:
            warnings.warn(message, StoreWarning, stacklevel=2)
        except Warning:  # a filter made it an error, which must not reach a training loop
            _log.warning(message)


def write(connection: Connection, batch: list[Entry], names: dict[str, int]) -> None:
    """Write a batch within the caller's transaction; ``names`` (name -> number) grows by what was new."""
    metrics = [entry for entry in batch if isinstance(entry, Metrics)]
    rows = [entry for entry in batch if isinstance(entry, Row)]
    wanted = {value[0] for entry in metrics for value in entry.values}
    name_ids(connection, wanted | {row.name for row in rows if row.name is not None}, names)
    upsert(
        connection,
        schema.metric,
        [
            {
                "run_id": entry.run_id,
                "name_id": names[name],
                "step": entry.step,
                "wall": entry.wall,
                "value": value,
                "kind": kind,
                "stderr": stderr,
            }
            for entry in metrics
            for name, value, kind, stderr in entry.values
        ],
    )
    for row in rows:
        values = row.values if row.name is None else {**row.values, "name_id": names[row.name]}
        upsert(connection, row.table, [values])
    for entry in batch:
        if isinstance(entry, Change):
            connection.execute(update(schema.run).where(schema.run.c.id == entry.run_id).values(**entry.values))


_WRITERS: weakref.WeakSet[Writer] = weakref.WeakSet()


def _after_fork() -> None:
    for writer in list(_WRITERS):
        writer.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
