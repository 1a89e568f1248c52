"""What leaves the store: runs with everything they logged, and projects left empty."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, select, update

from dynaxx.track import schema

_OWNED = (schema.metric, schema.array, schema.alert, schema.artifact, schema.model_version, schema.tag)
MOST = 500  # numbers in one statement: SQLite once allowed 999


def delete_runs(connection: Connection, run_ids: Sequence[int]) -> None:
    """Delete runs and all their rows within the caller's transaction."""
    table = schema.run
    for start in range(0, len(run_ids), MOST):
        some = run_ids[start : start + MOST]
        connection.execute(update(table).where(table.c.parent_id.in_(some)).values(parent_id=None))
        for owned in _OWNED:
            connection.execute(delete(owned).where(owned.c.run_id.in_(some)))
        connection.execute(delete(table).where(table.c.id.in_(some)))


def delete_unused(connection: Connection) -> None:
    """Delete projects without a run.

    Names of metrics stay: they are few, and a writer somewhere may remember the number of one.
    """
    connection.execute(delete(schema.project).where(~schema.project.c.id.in_(select(schema.run.c.project_id))))


def bytes_of(connection: Connection, run_id: int) -> int:
    """About how many bytes a run takes: its arrays and files as they are, 60 a number."""
    count = connection.execute(select(func.count()).where(schema.metric.c.run_id == run_id)).scalar_one()
    blobs = sum(
        connection.execute(select(func.sum(func.length(table.c.data))).where(table.c.run_id == run_id)).scalar() or 0
        for table in (schema.array, schema.artifact)
    )
    return 60 * int(count) + int(blobs)
