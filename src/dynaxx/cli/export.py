"""``dynaxx export``: runs as CSV, JSON or Parquet. torch is not imported."""

from __future__ import annotations

from typing import Annotated

import typer

from dynaxx.cli.options import Debug, Store
from dynaxx.cli.runs import DEFAULT


def export(
    out: Annotated[str, typer.Option(help="The file; its suffix .csv, .json or .parquet says the format.")],
    run: Annotated[
        list[int] | None, typer.Argument(metavar="[RUN]...", help="Numbers of runs; all if none is given.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="csv, json or parquet, whatever the suffix. Parquet needs pyarrow.")
    ] = None,
    store: Store = DEFAULT,
    debug: Debug = False,
) -> None:
    """Write runs to a file: metrics one row a value (CSV, Parquet), or everything (JSON).

    Example: dynaxx export 3 4 --out runs.parquet
    """
    from dynaxx.track import Store as RunStore
    from dynaxx.track.export import export as write

    with RunStore(store, readonly=True) as opened:
        typer.echo(f"{write(opened, out, run or None, form)}")
