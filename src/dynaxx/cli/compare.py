"""``dynaxx compare``: runs side by side. torch is not imported."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dynaxx.cli.options import Debug, Runs, Store
from dynaxx.cli.runs import DEFAULT


def compare(
    run: Runs,
    metric: Annotated[
        list[str] | None, typer.Option(help="Only this metric; may be repeated. Default: those the runs share.")
    ] = None,
    store: Store = DEFAULT,
    out: Annotated[str | None, typer.Option(help="Write a self-contained HTML page here too.")] = None,
    debug: Debug = False,
) -> None:
    """Compare runs: settings that differ, last values, model versions with their health, curves.

    Example: dynaxx compare 3 4 --metric dynaxx/effective_rank --out comparison.html
    """
    from dynaxx.report import render, write
    from dynaxx.report.comparison import comparison
    from dynaxx.track import Store as RunStore

    with RunStore(store, readonly=True) as opened:
        document = comparison(opened, run, metric)
    render(document)
    if out is not None:
        typer.echo(f"report: {os.fspath(write(document, out))}")
