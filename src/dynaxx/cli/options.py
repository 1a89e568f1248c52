"""Options that several verbs share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

_STATE = {"debug": False}


def _debug(given: bool) -> bool:
    _STATE["debug"] = given
    return given


def debugging() -> bool:
    """Whether --debug was given."""
    return _STATE["debug"]


Debug = Annotated[
    bool, typer.Option("--debug", callback=_debug, is_eager=True, help="Show the whole traceback of an error.")
]
Seed = Annotated[int, typer.Option(help="Of initial weights, shuffling and sampling.")]
Likelihood = Annotated[str, typer.Option(help="What the outputs mean: categorical, bernoulli, gaussian or poisson.")]
Store = Annotated[str, typer.Option(help="Run store: the path of an SQLite file, or a database URL.")]
Runs = Annotated[list[int], typer.Argument(metavar="RUN...", help="Numbers of runs, as `dynaxx runs` lists them.")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="package.module:factory, called without arguments; returns a torch.nn.Module."
    ),
]


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does, so that ``kill`` leaves store and report in order; the exit code is 130."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        typer.secho(
            "dynaxx: interrupted; what had been found is in the run store and the report.", fg="yellow", err=True
        )
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def folder(out: Path) -> Path:
    """``out`` as a folder that can be written.

    Raises:
        InputError: it is a file, or cannot be made or written.
    """
    import os

    from dynaxx.errors import InputError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {str(out)!r} cannot be made a folder: {error.strerror}; give another") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"--out {str(out)!r} cannot be written by you; give another folder")
    return out


def damping(given: str | None) -> float | str | None:
    """``--damping`` as a number or "auto".

    Raises:
        InputError: it is neither.
    """
    from dynaxx.errors import InputError

    if given is None or given == "auto":
        return given
    try:
        return float(given)
    except ValueError:
        raise InputError(f"--damping {given!r} is neither a number nor 'auto'") from None
