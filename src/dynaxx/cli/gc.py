"""``dynaxx gc``: remove runs that nobody wants. It only says which, until told to --apply. torch is not imported."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from dynaxx.cli.options import Debug, Store
from dynaxx.cli.runs import DEFAULT, existing

if TYPE_CHECKING:
    from dynaxx.track import RunInfo
    from dynaxx.track import Store as RunStore

KEEP = "keep"
DAY = 86400.0


def gc(
    store: Store = DEFAULT,
    run: Annotated[list[int] | None, typer.Option(help="This run; may be repeated.")] = None,
    search: Annotated[str | None, typer.Option(help="Runs that have these words, as for `dynaxx runs`.")] = None,
    older_than: Annotated[float | None, typer.Option(help="Runs that ended at least so many days ago.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Remove them; without it nothing is changed.")] = False,
    debug: Debug = False,
) -> None:
    """Remove runs from the store, and give their space back. Says what it would remove, and with --apply does it.

    Without a choice: runs that ended without having logged a value, an array or a file. --search and --older-than
    together choose runs that are both. Runs that are going on, runs tagged "keep", and files outside the store stay.

    Example: dynaxx gc --search status:interrupted --older-than 30 --apply
    """
    from rich.console import Console
    from rich.table import Table

    from dynaxx.errors import bytes_as_text
    from dynaxx.report.numerals import moment
    from dynaxx.track import Store as RunStore
    from dynaxx.track.removal import bytes_of

    with existing(store) if apply else RunStore(store, readonly=True) as opened:
        found, kept = candidates(opened, run or [], search, older_than)
        with opened.database.reading() as connection:
            sizes = {info.id: bytes_of(connection, info.id) for info in found}
        if apply:
            opened.remove(info.id for info in found)
            opened.tidy()
    table = Table(box=None, header_style="bold")
    for head in ("run", "project", "name", "status", "started", "size, about"):
        table.add_column(head, no_wrap=True)
    for info in found:
        size = bytes_as_text(sizes[info.id])
        table.add_row(str(info.id), info.project, info.name, info.status, moment(info.started), size)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    if found:
        console.print(table)
    for info, reason in kept:
        console.print(f"run {info.id} ({info.name}) stays: {reason}", markup=False)
    total = f"{len(found)} run{'' if len(found) == 1 else 's'}, about {bytes_as_text(sum(sizes.values()))}"
    if not found:
        console.print("nothing to remove")
    else:
        console.print(f"removed {total}" if apply else f"would remove {total}; --apply does it")


def candidates(
    store: RunStore, runs: list[int], search: str | None, older_than: float | None
) -> tuple[list[RunInfo], list[tuple[RunInfo, str]]]:
    """Runs to remove, and runs that were chosen but stay, each with the reason.

    Raises:
        StoreError: a run named is not there.
    """
    chosen = {run_id: store.info(run_id) for run_id in runs}
    if search is not None or older_than is not None:
        for info in store.runs(search=search or ""):
            if older_than is None or time.time() - (info.ended or info.heartbeat) >= older_than * DAY:
                chosen[info.id] = info
    elif not runs:
        logged = lambda run_id: store.metric_names(run_id) or store.array_names(run_id) or store.artifacts(run_id)  # noqa: E731
        chosen = {info.id: info for info in store.runs() if info.status != "running" and not logged(info.id)}
    found, kept = [], []
    for info in sorted(chosen.values(), key=lambda info: info.id):
        if info.status == "running":
            kept.append((info, "it is going on"))
        elif KEEP in info.tags:
            kept.append((info, f"it is tagged {KEEP!r}"))
        else:
            found.append(info)
    return found, kept
