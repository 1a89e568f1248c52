"""A document for the terminal: the same blocks, charts as one line of bars each."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table as RichTable
from rich.text import Text

from dynaxx.report.blocks import NOTE_WORDS
from dynaxx.report.charts import remarks
from dynaxx.report.document import Document, Facts, Image, Lines, Note, Scatter, Section, Spectra, Table
from dynaxx.report.numerals import cell, is_number, number, plain
from dynaxx.report.scatter import summary

_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {"info": "cyan", "good": "green", "warning": "yellow", "bad": "bold red"}
SPARK_WIDTH = 32


def render(document: Document, console: Console | None = None) -> None:
    """Print a document with rich. Text from outside is printed as it is: no markup, no control characters."""
    console = console or Console()
    console.print(Text(plain(document.title), style="bold"))
    if document.subtitle:
        console.print(_text(document.subtitle, "dim"))
    for section in document.sections:
        console.print()
        console.print(_section(section))
    if document.footer:
        console.print()
        line = "   ".join(f"{plain(key)} {plain(cell(value))}" for key, value in document.footer.items())
        console.print(Text(line, style="dim"))


def to_text(document: Document, width: int = 100) -> str:
    """The document as plain text of ``width`` columns, without colours.

    >>> print(to_text(Document("Fisher", sections=[Section("Trace", blocks=[Note("small", "good")])]), width=40))
    Fisher
    <BLANKLINE>
    Trace ──────────────────────────────────
    Good small
    <BLANKLINE>
    """
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, highlight=False)
    render(document, console)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().split("\n"))


def sparkline(values: Any, width: int = SPARK_WIDTH, log: bool = False) -> str:
    """Values as a line of bars between their least and greatest; a column without a finite value is blank.

    A column stands for a stretch of values and shows the last finite one of it.

    >>> sparkline([0, 1, float("nan"), 3]), sparkline([2, 2]), sparkline([1e-4, 1e-2, 1], log=True), sparkline([])
    ('▁▃ █', '▄▄', '▁▅█', '')
    """
    column = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        column = np.log10(column) if log else column
    if len(column) > width:
        column = np.array([_last_finite(stretch) for stretch in np.array_split(column, width)])
    finite = np.isfinite(column)
    if not finite.any():
        return " " * len(column)
    low, high = column[finite].min(), column[finite].max()
    with np.errstate(over="ignore"):
        # halves first: the difference of two large numbers may not be a float
        share = np.full(len(column), 0.5) if high == low else (column / 2 - low / 2) / (high / 2 - low / 2)
    top = len(_BARS) - 1
    bars = (
        _BARS[int(np.floor(part * top + (0.5 if high > low else 0)))] if ok else " "
        for part, ok in zip(share, finite, strict=True)
    )
    return "".join(bars)


def _last_finite(stretch: np.ndarray) -> float:
    finite = stretch[np.isfinite(stretch)]
    return float(finite[-1]) if len(finite) else float("nan")


def _section(section: Section) -> RenderableType:
    parts: list[RenderableType] = [Rule(_text(section.title, "bold"), align="left", style="dim")]
    if section.text.strip():
        parts.append(Padding(_text(section.text.strip()), (0, 0, 1, 0)))
    for index, block in enumerate(section.blocks):
        if index and not (isinstance(block, Note) and isinstance(section.blocks[index - 1], Note)):
            parts.append(Text())
        parts.append(_RENDERERS[type(block)](block))
    return Group(*parts)


def _text(value: Any, style: str = "") -> Text:
    return Text(plain(cell(value)), style=style)


def _facts(block: Facts) -> RenderableType:
    items = []
    for label, value, note in block.items:
        item = Text()
        item.append(f"{plain(label)}\n", style="dim").append(plain(cell(value)), style="bold")
        if note:
            item.append(f"\n{plain(note)}", style="dim")
        items.append(item)
    return Columns(items, padding=(0, 4), equal=False)


def _table(block: Table) -> RenderableType:
    made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", header_style="dim")
    for index, name in enumerate(block.columns):
        column = [row[index] for row in block.rows]
        numeric = any(map(is_number, column)) and all(is_number(value) or value in (None, "") for value in column)
        made.add_column(_text(name), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for index, row in enumerate(block.rows):
        made.add_row(*map(_text, row), style="bold" if index in block.highlight else None)
    return Group(_text(block.caption, "dim"), made) if block.caption else made


def _curves(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]], notes: list[str]) -> RenderableType:
    made = RichTable(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    made.add_column(_text(heads[0]), overflow="fold")
    made.add_column("", no_wrap=True, style="cyan")
    for head in heads[1:]:
        made.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(plain(value)) for value in row))
    return Group(_text(title, "bold"), made, *(_text(note, "dim") for note in notes))


def _lines(block: Lines) -> RenderableType:
    rows = []
    for series in block.series:
        finite = series.y[np.isfinite(series.y)]
        ends = [number(v) for v in (finite.min(), finite.max())] if len(finite) else ["–", "–"]
        last = number(series.y[-1]) if len(series.y) else "–"
        rows.append((series.name, sparkline(series.y, log=block.log_y), *ends, last))
    marks = [" · ".join(f"{cell(marker.x)} {marker.label}" for marker in block.markers)] if block.markers else []
    return _curves(block.title, (block.y_label, "least", "greatest", "last"), rows, [*marks, *remarks(block)])


def _spectra(block: Spectra) -> RenderableType:
    rows = []
    for item in block.spectra:
        above = item.eigenvalues[item.eigenvalues > (item.floor or 0)]
        ends = [number(v) for v in (above[0], above[-1])] if len(above) else ["–", "–"]
        count = f"{len(above)} of {len(item.eigenvalues)}"
        rows.append(
            (
                item.name,
                sparkline(above, SPARK_WIDTH // 2, log=True),
                *ends,
                number(item.floor) if item.floor else "–",
                count,
            )
        )
    heads = (block.y_label, "largest", "smallest", "floor", "above floor")
    return _curves(block.title, heads, rows, remarks(block))


def _scatter(block: Scatter) -> RenderableType:
    parts: list[RenderableType] = [_text(block.title, "bold"), _table(summary(block))]
    return Group(*parts, _text(block.note, "dim")) if block.note else Group(*parts)


def _note(block: Note) -> RenderableType:
    return Text.assemble((NOTE_WORDS[block.level], _STYLES[block.level]), " ", plain(block.text))


def _image(block: Image) -> RenderableType:
    return _text(f"[image: {block.title}]" + (f" {block.note}" if block.note else ""), "dim")


_RENDERERS: dict[type, Callable[[Any], RenderableType]] = {
    Facts: _facts,
    Table: _table,
    Lines: _lines,
    Spectra: _spectra,
    Scatter: _scatter,
    Note: _note,
    Image: _image,
}
