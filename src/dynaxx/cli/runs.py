"""``dynaxx runs``, ``show``, ``tag`` and ``migrate``: what is in the run store. torch is not imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from dynaxx.cli.options import Debug, Runs, Store

if TYPE_CHECKING:
    from dynaxx.track import Store as RunStore

DEFAULT = "dynaxx-runs/dynaxx.db"


def runs(
    search: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORD]...", help="Only runs that have these words: cnn, status:failed, tag:keep, lr=0.1"
        ),
    ] = None,
    store: Store = DEFAULT,
    project: Annotated[str | None, typer.Option(help="Only runs of this project.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    parent: Annotated[int | None, typer.Option(help="Only runs that go on from this one.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Show the last value of this metric; may be repeated.")
    ] = None,
    debug: Debug = False,
) -> None:
    """List stored runs, the newest first.

    Example: dynaxx runs cnn status:failed --metric dynaxx/effective_rank
    """
    from rich.console import Console
    from rich.table import Table

    from dynaxx.report.numerals import cell, duration, moment
    from dynaxx.track import Store as RunStore

    names = metric or ["dynaxx/score_before", "dynaxx/score_after", "dynaxx/sparsity"]
    with RunStore(store, readonly=True) as opened:
        found = opened.runs(project, search=" ".join(search or []), tag=tag, parent=parent)
        table = Table(box=None, header_style="bold")
        heads = metric or ["before", "after", "sparsity"]
        for head in ("run", "project", "name", "status", "started", "took", "tags", *heads):
            table.add_column(head, no_wrap=True)
        for info in found:
            last = opened.summary(info.id)
            table.add_row(
                str(info.id),
                info.project,
                info.name,
                info.status,
                moment(info.started),
                duration(info.seconds),
                ", ".join(info.tags),
                *(cell(last.get(name)) for name in names),
            )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width to fit
    if found:
        console.print(table)
        return
    chosen = {"project": project, "tag": tag, "parent": parent, "words": " ".join(search or []) or None}
    given = ", ".join(f"{key} {value!r}" for key, value in chosen.items() if value is not None)
    console.print(f"no runs in {store}" + (f" with {given}" if given else ""))


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


def tag(
    run: Runs,
    add: Annotated[list[str] | None, typer.Option(help="A tag to give; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A tag to take away; may be repeated.")] = None,
    store: Store = DEFAULT,
    debug: Debug = False,
) -> None:
    """Give runs tags, or take them away.

    Example: dynaxx tag 3 4 --add keep --remove todo
    """
    with existing(store) as opened:
        for run_id in run:
            opened.tag(run_id, *(add or []), remove=remove or [])
        for run_id in run:
            typer.echo(f"run {run_id}: {', '.join(opened.info(run_id).tags) or 'no tags'}")


def migrate(store: Store = DEFAULT, debug: Debug = False) -> None:
    """Bring a store that an older dynaxx wrote up to date. Programs that write to it may go on."""
    with existing(store) as opened, opened.database.reading() as connection:
        from dynaxx.track.schema import stored_version

        typer.echo(f"{opened.location}: schema version {stored_version(connection)}")


def existing(store: str) -> RunStore:
    """The store at this place, to be changed; a place where none is makes none.

    Raises:
        StoreError: there is none.
    """
    from pathlib import Path

    from dynaxx.track import Store as RunStore
    from dynaxx.track import StoreError

    if "://" not in store and not Path(store).expanduser().is_file():
        raise StoreError(f"there is no run store at {store!r}; name the file that a run wrote")
    return RunStore(store)
