"""``dynaxx dashboard``: the run store as live pages in the browser. torch is not imported."""

from __future__ import annotations

from typing import Annotated

import typer

from dynaxx.cli.options import Debug
from dynaxx.cli.runs import DEFAULT


def dashboard(
    store: Annotated[
        str, typer.Argument(metavar="[STORE]", help="Run store: the path of an SQLite file, or a database URL.")
    ] = DEFAULT,
    host: Annotated[
        str,
        typer.Option(help="Address to listen at. Any but this machine's own (127.0.0.1) asks visitors for a token."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes one that is free.")] = 8722,
    token: Annotated[bool, typer.Option("--token", help="Ask for a token at this machine's own address, too.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name under which browsers may ask for the pages, beside this machine's; may be repeated."),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    debug: Debug = False,
) -> None:
    """Show runs, live: curves, spectra, layers, alerts, comparisons. Reads the store and changes nothing.

    Example: dynaxx dashboard dynaxx-runs/dynaxx.db --port 0 --open
    """
    from dynaxx.dashboard.serve import serve

    serve(
        store,
        host=host,
        port=port,
        token=token,
        allowed_hosts=allow_host or [],
        ready=lambda url: _ready(url, open_browser),
    )


def _ready(url: str, open_browser: bool) -> None:
    typer.echo(f"dynaxx dashboard: {url}\nCtrl-C ends it.")
    if open_browser:
        import webbrowser

        webbrowser.open(url)
