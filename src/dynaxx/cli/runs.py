"""``dynaxx runs`` and ``dynaxx show``: what is in the run store. torch is not imported."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dynaxx.cli.options import Debug, Store

DEFAULT = "dynaxx-runs/dynaxx.db"


def runs(
    store: Store = DEFAULT,
    project: Annotated[str | None, typer.Option(help="Only runs of this project.")] = None,
    debug: Debug = False,
) -> None:
    """List stored runs, the newest first."""
    from rich.console import Console
    from rich.table import Table

    from dynaxx.report.numerals import cell, duration, moment
    from dynaxx.track import Store as RunStore

    with RunStore(store, readonly=True) as opened:
        found = opened.runs(project)
        table = Table(box=None, header_style="bold")
        for head in ("run", "project", "name", "status", "started", "took", "before", "after", "sparsity"):
            table.add_column(head, no_wrap=True)
        for info in found:
            last = opened.summary(info.id)
            numbers = [cell(last.get(f"dynaxx/{name}")) for name in ("score_before", "score_after", "sparsity")]
            table.add_row(
                str(info.id),
                info.project,
                info.name,
                info.status,
                moment(info.started),
                duration(info.seconds),
                *numbers,
            )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width to fit
    if found:
        console.print(table)
    else:
        console.print(f"no runs in {store}" + (f" of project {project!r}" if project else ""))


def show(
    run: Annotated[int, typer.Argument(metavar="RUN", help="Number of the run, as `dynaxx runs` lists it.")],
    store: Store = DEFAULT,
    out: Annotated[str | None, typer.Option(help="Write a self-contained HTML page here too.")] = None,
    debug: Debug = False,
) -> None:
    """Show everything a run logged, in the terminal or as a page."""
    from dynaxx.report import render, write
    from dynaxx.report.run import document_from_run
    from dynaxx.track import Store as RunStore

    with RunStore(store, readonly=True) as opened:
        document = document_from_run(opened, run)
    render(document)
    if out is not None:
        typer.echo(f"report: {os.fspath(write(document, out))}")
