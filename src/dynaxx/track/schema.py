"""Tables of the run store, their version, and the steps from one version to the next.

Numbers that JSON and SQL cannot carry are spelled out: SQLite turns NaN into NULL and PostgreSQL sorts it above
everything, so ``metric.value`` is NULL for a number that is not finite and ``metric.kind`` says which one it was.
"""

from __future__ import annotations

from collections.abc import Callable
from time import time

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    insert,
    inspect,
    select,
    text,
    update,
)

from dynaxx.track.errors import StoreError

VERSION = 2

metadata = MetaData()

project = Table(
    "project",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(250), nullable=False, unique=True),
    Column("created", Double, nullable=False),
)

run = Table(
    "run",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", ForeignKey("project.id"), nullable=False, index=True),
    Column("name", String(250), nullable=False),
    Column("status", String(16), nullable=False),  # running, finished, failed, interrupted
    Column("config", JSON, nullable=False),
    Column("environment", JSON, nullable=False),
    Column("started", Double, nullable=False),  # times are seconds since 1970, UTC
    Column("ended", Double),
    # who writes it, so that a reader can tell a live run from one whose process is gone
    Column("host", String(300), nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("heartbeat", Double, nullable=False),
    Column("parent_id", ForeignKey("run.id")),  # the run this one goes on from, or belongs to
    sqlite_autoincrement=True,  # the number of a removed run is not given again: it stands in notes and addresses
)

tag = Table(
    "tag",
    metadata,
    Column("run_id", ForeignKey("run.id"), primary_key=True, autoincrement=False),
    Column("name", String(250), primary_key=True),
)

metric_name = Table(
    "metric_name",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(250), nullable=False, unique=True),
)


def _key() -> tuple[Column, Column, Column]:
    """(run, name, step): one value per step, and the order in which a series is read."""
    return (
        Column("run_id", ForeignKey("run.id"), primary_key=True, autoincrement=False),
        Column("name_id", ForeignKey("metric_name.id"), primary_key=True, autoincrement=False),
        Column("step", BigInteger, primary_key=True, autoincrement=False),
    )


metric = Table(
    "metric",
    metadata,
    *_key(),
    Column("wall", Double, nullable=False),
    Column("value", Double),  # NULL unless kind is 0
    Column("kind", SmallInteger, nullable=False),  # 0 finite, 1 nan, 2 inf, 3 -inf
    Column("stderr", Double),  # NULL where it is not known
    sqlite_with_rowid=False,  # the key is the table: a series lies together on disk
)

array = Table(
    "array",
    metadata,
    *_key(),
    Column("wall", Double, nullable=False),
    Column("dtype", String(16), nullable=False),  # numpy's spelling, little-endian: "<f4"
    Column("shape", JSON, nullable=False),
    Column("data", LargeBinary, nullable=False),  # C order
    Column("attributes", JSON),  # what belongs to the numbers: a spectrum's floor, dimension and count
)

alert = Table(
    "alert",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("run.id"), nullable=False, index=True),
    Column("step", BigInteger),
    Column("wall", Double, nullable=False),
    Column("level", String(16), nullable=False),  # info, warning, error
    Column("title", String(250), nullable=False),
    Column("text", Text, nullable=False),
    Column("rule", String(250)),  # what gave it; NULL where a person or program did
    sqlite_autoincrement=True,  # readers ask for what came after a number
)

artifact = Table(
    "artifact",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("run.id"), nullable=False),
    Column("name", String(250), nullable=False),
    Column("wall", Double, nullable=False),
    Column("mime", String(100), nullable=False),
    Column("path", Text),  # either a file's place or its content
    Column("data", LargeBinary),
    UniqueConstraint("run_id", "name"),
)

model_version = Table(
    "model_version",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("run.id"), nullable=False),
    Column("name", String(250), nullable=False),
    Column("step", BigInteger),
    Column("wall", Double, nullable=False),
    Column("digest", String(128)),  # of the weights
    Column("details", JSON, nullable=False),
    Column("baseline", JSON),  # metric -> [value, standard error or null], what new data are held against
    Index("model_version_run", "run_id"),
)

schema_version = Table(
    "schema_version",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1: the table has one row
    Column("version", Integer, nullable=False),
    Column("since", Double, nullable=False),
)

Migration = Callable[[Connection], None]


def _families_and_baselines(connection: Connection) -> None:
    """1 to 2: tags, parents of runs, attributes of arrays, rules of alerts, baselines of model versions."""
    tag.create(connection)
    for column in (run.c.parent_id, array.c.attributes, alert.c.rule, model_version.c.baseline):
        kind = column.type.compile(connection.dialect)
        refers = "".join(f" REFERENCES {key.column.table.name} ({key.column.name})" for key in column.foreign_keys)
        place = connection.dialect.identifier_preparer.quote(column.table.name)  # "array" is a word of SQL
        connection.execute(text(f"ALTER TABLE {place} ADD COLUMN {column.name} {kind}{refers}"))


MIGRATIONS: dict[int, Migration] = {1: _families_and_baselines}
"""``MIGRATIONS[n]`` takes a database from version n to n + 1, inside the transaction that also records it."""


def stored_version(connection: Connection) -> int | None:
    """The version of the tables in this database; None where there are none of ours.

    Raises:
        StoreError: there are tables under our names that something else made.
    """
    present = set(inspect(connection).get_table_names())
    if schema_version.name in present:
        found = connection.execute(select(schema_version.c.version)).scalar()
        return None if found is None else int(found)
    foreign = sorted(present & set(metadata.tables))
    if foreign:
        raise StoreError(
            f"this database already has {', '.join(map(repr, foreign))} but no 'schema_version', so another program "
            "made it; name another file or database"
        )
    return None


def prepare(
    connection: Connection, version: int = VERSION, migrations: dict[int, Migration] | None = None
) -> tuple[int, int]:
    """Create the tables, or bring them up to ``version``, within the caller's transaction.

    Returns:
        (version found, version now); found is 0 for a new database.

    Raises:
        StoreError: the tables are newer than this code, or a step between the versions is missing.
    """
    steps = MIGRATIONS if migrations is None else migrations
    found = stored_version(connection)
    if found is None:
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(id=1, version=version, since=time()))
        return 0, version
    require_known(found, version)
    for number in range(found, version):
        if number not in steps:
            raise StoreError(
                f"this database has schema version {found} and nothing leads from {number} to {number + 1}; "
                "install the dynaxx release that wrote it, or name another file"
            )
        steps[number](connection)
        connection.execute(update(schema_version).values(version=number + 1, since=time()))
    return found, version


def require_current(found: int) -> None:
    """Refuse tables that cannot be read as they are.

    Raises:
        StoreError: ``found`` is not ``VERSION``.
    """
    require_known(found)
    if found < VERSION:
        raise StoreError(
            f"an older dynaxx wrote it (schema version {found}, now {VERSION}) and it was to be read only; "
            "`dynaxx migrate`, or opening it once to be written, brings it up to date"
        )


def require_known(found: int, version: int = VERSION) -> None:
    """Refuse tables that a newer dynaxx wrote.

    Raises:
        StoreError: ``found`` is above ``version``.
    """
    if found > version:
        raise StoreError(
            f"this database has schema version {found} and this dynaxx knows up to {version}; "
            "upgrade dynaxx (pip install -U dynaxx) or name another file"
        )
