"""The two statements that databases spell differently: insert or replace, and insert unless there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from sqlalchemy import Connection, Table, UniqueConstraint, and_, delete, insert, select

from dynaxx.track import schema

_DIALECTS = ("sqlite", "postgresql")  # those with ON CONFLICT


def _insert_of(connection: Connection) -> Callable[[Table], Any] | None:
    """The dialect's own insert, with its ``on_conflict_...``; None where it has none."""
    name = connection.dialect.name
    # imported when needed: PostgreSQL's dialect takes as long to import as all of numpy
    return import_module(f"sqlalchemy.dialects.{name}").insert if name in _DIALECTS else None


def _key(table: Table) -> list[str]:
    """Columns that say which row it is: those of a unique constraint, else the primary key."""
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            return [column.name for column in constraint.columns]
    return [column.name for column in table.primary_key.columns]


def upsert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows; where one with the same key exists, the new one takes its place.

    All rows must have the same columns. Of several with one key, the last wins.
    """
    if not rows:
        return
    key = _key(table)
    if not set(key) <= set(rows[0]):  # numbered by the database: nothing to collide with
        connection.execute(insert(table), rows)
        return
    rows = list({tuple(row[column] for column in key): row for row in rows}.values())
    dialect = _insert_of(connection)
    if dialect is None:
        for row in rows:
            connection.execute(delete(table).where(and_(*(table.c[column] == row[column] for column in key))))
        connection.execute(insert(table), rows)
        return
    statement = dialect(table)
    rest = {column: statement.excluded[column] for column in rows[0] if column not in key}
    if not rest:  # the key is all there is: the row that is there is the new one
        connection.execute(statement.on_conflict_do_nothing(index_elements=key), rows)
        return
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=rest), rows)


def number_of(connection: Connection, table: Table, name: str, **columns: Any) -> int:
    """The id of the row called ``name``, which is made if there is none."""
    query = select(table.c.id).where(table.c.name == name)
    found = connection.execute(query).scalar()
    if found is not None:
        return int(found)
    dialect = _insert_of(connection)
    row = {"name": name, **columns}
    if dialect is None:
        connection.execute(insert(table).values(row))
    else:  # another process may be making it
        connection.execute(dialect(table).values(row).on_conflict_do_nothing(index_elements=["name"]))
    return int(connection.execute(query).scalar_one())


def name_ids(connection: Connection, names: Iterable[str], known: dict[str, int]) -> None:
    """Put the numbers of metric names into ``known``; names that are new get one."""
    for name in sorted(set(names) - set(known)):  # one order for all processes: no deadlock on a server
        known[name] = number_of(connection, schema.metric_name, name)
