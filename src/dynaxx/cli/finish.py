"""The end of a workflow on the command line: what was found, on the terminal, and the files that hold it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from dynaxx.compress.workflow import CompressionResult
from dynaxx.errors import InputError
from dynaxx.report import Document, Note, Section, render, write


def finish(results: Sequence[CompressionResult], document: Document, out: Path) -> None:
    """Print the summary, then write masks and weights of each model, and the page. All is tried before an error is
    told.

    Raises:
        InputError: a file could not be written, with the files that were.
    """
    render(summary(results, document))
    errors, written = [], []
    for result in results:
        name = "pruning.safetensors" if len(results) == 1 else f"{result.journal.name.lower()}.safetensors"
        for path, save in (
            (out / name, result.pruning.save),
            (out / "report.html", lambda path: write(document, path)),
        ):
            try:
                save(path)
                written.append(path)
            except InputError as error:
                errors.append(str(error))
    for path in dict.fromkeys(written):
        typer.echo(f"  {path}")
    if errors:
        raise InputError("; ".join(dict.fromkeys(errors)))


def summary(results: Sequence[CompressionResult], document: Document) -> Document:
    """The result section of the report, and every verdict and remark in words."""
    notes = []
    for result in results:
        journal = result.journal
        start = journal.initialisation
        if start is not None:
            ceiling = f"Learning-rate ceiling 2/λmax(H) = {start.learning_rate_ceiling:.3g}."
            notes.append(Note(f"{journal.name}: {start.verdict}{ceiling}", "info"))
        for level, title, text in journal.remarks:
            notes.append(Note(f"{journal.name}: {title}. {text}", level))
    first = document.sections[0]
    return Document(
        document.title, document.subtitle, [Section(first.title, first.text, [*first.blocks, *notes])], document.footer
    )
