"""``dynaxx``: the verbs, and how errors are told."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dynaxx.cli import compare, compress, dashboard, demo, export, gc, inspect, memory, options, runs
from dynaxx.errors import InputError
from dynaxx.version import __version__

app = typer.Typer(
    name="dynaxx",
    help="Information geometry for PyTorch models: Fisher information, its spectrum, and what to do with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("compress")(compress.compress)
app.command("inspect")(inspect.inspect)
app.command("estimate-memory")(memory.estimate_memory)
app.command("runs")(runs.runs)
app.command("show")(runs.show)
app.command("compare")(compare.compare)
app.command("tag")(runs.tag)
app.command("export")(export.export)
app.command("gc")(gc.gc)
app.command("migrate")(runs.migrate)
app.command("dashboard")(dashboard.dashboard)


def _version(given: bool) -> None:
    if given:
        typer.echo(f"dynaxx {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Information geometry for PyTorch models: Fisher information, its spectrum, and what to do with it."""


def main() -> None:
    """Run the command line.

    Bad input ends it with one line on stderr and exit code 2; --debug shows where it was found out.
    """
    try:
        app()
    except InputError as error:
        if options.debugging():
            raise
        typer.secho(f"dynaxx: {error}", fg="red", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
