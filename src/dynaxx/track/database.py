"""One engine per process, with the settings SQLite needs for many writers and sudden death.

SQLite runs in write-ahead mode with ``synchronous=NORMAL``: a killed process loses nothing that was committed, and
readers never wait. Where the file system refuses that mode (it needs shared memory: NFS, Lustre, GPFS), the rollback
journal takes its place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from dynaxx.track.errors import StoreError
from dynaxx.track.schema import prepare, require_current, stored_version

BUSY_SECONDS = 10.0
_DRIVERS = {"psycopg": '"psycopg[binary]"', "psycopg2": "psycopg2-binary", "pymysql": "pymysql"}
_INHERITED: list[Engine] = []  # a forked child must neither use nor close its parent's connections


class Database:
    """Where the rows are.

    Args:
        target: a path of an SQLite file, or any SQLAlchemy URL.
        readonly: open what is there and change nothing; a missing file is then an error.

    Raises:
        StoreError: it cannot be opened, is no database, or was written by a newer dynaxx.
    """

    def __init__(self, target: str | os.PathLike[str], readonly: bool = False):
        self.readonly = readonly
        self.url = _parse(target)
        self.label = _label(self.url)
        self.journal_mode: str | None = None
        self._engine: Engine | None = None
        self._pid = os.getpid()
        path = self._path()
        if path is not None:
            _check_path(path, readonly)
        try:
            self._open()
        except (SQLAlchemyError, StoreError) as error:
            self.close()
            raise StoreError(f"cannot open the run store {self.label!r}: {explain(error)}") from error

    @property
    def sqlite(self) -> bool:
        """Whether this is SQLite, whose settings are ours to choose."""
        return self.url.get_backend_name() == "sqlite"

    def engine(self) -> Engine:
        """The engine of this process. After a fork the child gets its own, and leaves its parent's alone."""
        if self._engine is not None and self._pid != os.getpid():
            _INHERITED.append(self._engine)
            self._engine = None
        if self._engine is None:
            self._engine, self._pid = self._create(), os.getpid()
        return self._engine

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in one consistent read."""
        try:
            with self.engine().connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"cannot read the run store {self.label!r}: {explain(error)}") from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction that commits at the end. Errors pass through: the writer sorts them."""
        # a read that turns into a write can fail at once however long the timeout, so say what is coming
        with self.engine().execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
            yield connection

    def compact(self) -> None:
        """Give the space of deleted rows back to the file system. A server sees to that itself.

        Raises:
            StoreError: another program holds the file, or there is no room for the copy this takes.
        """
        if not self.sqlite:
            return
        try:
            with self.engine().execution_options(sqlite_begin=None).connect() as connection:
                connection.exec_driver_sql("VACUUM")
        except SQLAlchemyError as error:
            raise StoreError(f"cannot compact {self.label!r}: {explain(error)}") from error

    def close(self) -> None:
        """Close this process's connections."""
        if self._engine is not None and self._pid == os.getpid():
            self._engine.dispose()
        self._engine = None

    def _path(self) -> Path | None:
        """The SQLite file; None for a server, a database in memory or a file: URI."""
        name = self.url.database
        if not self.sqlite or not name or name == ":memory:" or name.startswith("file:"):
            return None
        return Path(name)

    def _create(self) -> Engine:
        options: dict[str, Any] = {"hide_parameters": True}  # rows are the user's: keep them out of messages
        url = self.url
        if self.sqlite:
            options["connect_args"] = {"timeout": BUSY_SECONDS, "check_same_thread": False}
            path = self._path()
            if path is not None and self.readonly:
                url = _readonly_url(url, path)
            elif url.database in (None, "", ":memory:"):
                # one connection that callers wait for: a second one would be another, empty database
                options |= {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
        else:
            options["pool_pre_ping"] = True  # a server may have been restarted since
            if url.get_backend_name() == "postgresql":
                options["connect_args"] = {"connect_timeout": int(BUSY_SECONDS)}
        try:
            engine = create_engine(url, **options)
        except NoSuchModuleError as error:
            raise StoreError(f"{url.drivername!r} is no database SQLAlchemy knows; use sqlite or postgresql") from error
        except ImportError as error:
            package = _DRIVERS.get(error.name or "", error.name or "the driver")
            raise StoreError(f"the driver {error.name!r} is not installed; pip install {package}") from error
        if self.sqlite:
            event.listen(engine, "connect", self._settle)
            event.listen(engine, "begin", _begin)
        return engine

    def _settle(self, connection: Any, record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, see _begin
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA synchronous={'NORMAL' if self.journal_mode == 'wal' else 'FULL'}")

    def _open(self) -> None:
        if self.readonly:
            with self.engine().connect() as connection:
                found = stored_version(connection)
            if found is None:
                raise StoreError("it holds no runs of dynaxx; name the file that a run wrote")
            return require_current(found)
        if self.sqlite:
            self.journal_mode = self._choose_journal()
            self.engine().dispose()  # connections from now on know the mode
        try:
            with self.writing() as connection:
                prepare(connection)
        except SQLAlchemyError:
            if self.sqlite:
                raise
            # on a server two processes may create the tables at once; the later one finds them made
            with self.writing() as connection:
                prepare(connection)

    def _choose_journal(self) -> str:
        """Write-ahead if the file system lets us, else the rollback journal. Returns the mode in force."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                mode = self._set_journal("WAL")
                return mode if mode in ("wal", "memory") else self._set_journal("DELETE")
            except SQLAlchemyError as error:
                # changing the mode wants the file alone, and does not wait for it
                if "locked" in str(error) and time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                if "locking protocol" in str(error) or "disk I/O" in str(error):
                    return self._set_journal("DELETE")
                raise

    def _set_journal(self, mode: str) -> str:
        with self.engine().execution_options(sqlite_begin=None).connect() as connection:
            return str(connection.exec_driver_sql(f"PRAGMA journal_mode={mode}").scalar()).lower()


def _begin(connection: Connection) -> None:
    """BEGIN as this connection wants it; None for statements that SQLite takes only outside a transaction."""
    statement = connection.get_execution_options().get("sqlite_begin", "BEGIN")
    if statement:
        connection.exec_driver_sql(statement)


def _parse(target: str | os.PathLike[str]) -> URL:
    text = os.fspath(target)
    if isinstance(text, str) and "://" in text:
        try:
            return make_url(text)
        except ArgumentError as error:
            # the URL may hold a password, so it is not repeated
            raise StoreError(
                "this database URL cannot be read; write it as sqlite:///runs.db or postgresql+psycopg://user@host/name"
            ) from error
    if not isinstance(text, str) or not text:
        raise StoreError(
            f"{target!r} is no place for a run store; give a file such as 'dynaxx-runs/dynaxx.db' or a URL"
        )
    return URL.create("sqlite", database=str(Path(text).expanduser()))


def _label(url: URL) -> str:
    """The place as messages show it: a plain path, or a URL without its password."""
    if url.get_backend_name() == "sqlite" and url.database:
        return url.database
    return url.render_as_string(hide_password=True)


def _check_path(path: Path, readonly: bool) -> None:
    if path.is_dir():
        raise StoreError(f"{str(path)!r} is a folder; name a file in it, such as {str(path / 'dynaxx.db')!r}")
    if readonly:
        if not path.is_file():
            raise StoreError(
                f"there is no run store at {str(path)!r}; a run with a store makes one, or name another file"
            )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {str(path.parent)!r} for the run store: {error.strerror or error}; "
            "name a file elsewhere"
        ) from error


def _readonly_url(url: URL, path: Path) -> URL:
    """SQLite's URI that changes nothing.

    A write-ahead file needs its helper files even to be read. Where the folder is closed to us and no writer left any,
    nobody is writing, and ``immutable`` lets us do without them.
    """
    journal = path.with_name(path.name + "-wal")
    sealed = not os.access(path.parent, os.W_OK) and not journal.exists()
    query = {"uri": "true", "immutable": "1"} if sealed else {"uri": "true", "mode": "ro"}
    return url.set(database=path.absolute().as_uri(), query=query)


_REMEDIES = {
    "unable to open": "its folder cannot be written or does not exist; name a file elsewhere",
    "readonly": "it may not be written by this user; name another file, or change its permissions",
    "disk is full": "the disk (or its quota) is full; free some space, or name a file on another disk",
    "disk I/O error": "the disk refused to read or write it; free some space, or name a file on another disk",
    "locked": f"another program has held it for over {BUSY_SECONDS:.0f} s; close that, or name another file",
    "not a database": "it is no SQLite file; name another file",
    "malformed": "the file is damaged; restore it, or name another file",
}


def explain(error: Exception) -> str:
    """What went wrong and what to do, from the database's own message and without the statement or its rows."""
    message = " ".join(str(getattr(error, "orig", None) or error).split())
    for sign, remedy in _REMEDIES.items():
        if sign in message and not isinstance(error, StoreError):
            return f"{message}: {remedy}"
    return message
