"""One block as HTML. Everything that comes from outside goes through :func:`text`."""

from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape
from typing import Any

from dynaxx.report.charts import describe, remarks, table
from dynaxx.report.document import Facts, Image, Lines, Note, Scatter, Spectra, Table
from dynaxx.report.numerals import cell, is_number, plain
from dynaxx.report.scatter import describe as describe_scatter
from dynaxx.report.scatter import remarks as scatter_remarks
from dynaxx.report.scatter import table as scatter_table

NOTE_WORDS = {"info": "Note", "good": "Good", "warning": "Warning", "bad": "Problem"}


def text(value: Any) -> str:
    """A value as escaped text, numbers written for people."""
    return escape(plain(cell(value)))


def html(block: Any, index: int = 0) -> str:
    """One block as HTML; ``index`` is a chart's place in the page's data."""
    if isinstance(block, (Lines, Spectra)):
        return _chart(block, index)
    if isinstance(block, Scatter):
        return _scatter(block, index)
    return _RENDERERS[type(block)](block)


def _facts(block: Facts) -> str:
    items = []
    for label, value, note in block.items:
        words = ' class="words"' if isinstance(value, str) else ""
        remark = f"<small>{text(note)}</small>" if note else ""
        items.append(f"<div><dt>{text(label)}</dt><dd{words}>{text(value)}{remark}</dd></div>")
    return f'<dl class="facts">{"".join(items)}</dl>'


def _table(block: Table) -> str:
    numeric = [
        any(is_number(row[column]) for row in block.rows)
        and all(is_number(row[column]) or row[column] in (None, "") for row in block.rows)
        for column in range(len(block.columns))
    ]
    mark = [' class="number"' if flag else "" for flag in numeric]
    head = "".join(f'<th scope="col"{mark[i]}>{text(name)}</th>' for i, name in enumerate(block.columns))
    rows = []
    for index, row in enumerate(block.rows):
        cells = "".join(f"<td{mark[i]}>{text(value)}</td>" for i, value in enumerate(row))
        rows.append(f'<tr class="highlight">{cells}</tr>' if index in block.highlight else f"<tr>{cells}</tr>")
    caption = f"<caption>{text(block.caption)}</caption>" if block.caption else ""
    # a region that scrolls must be reachable with the keyboard, and then needs a name
    label = text(block.caption or "Table: " + ", ".join(map(str, block.columns)))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>{caption}'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _chart(block: Lines | Spectra, index: int) -> str:
    notes = "".join(f"<p>{text(remark)}</p>" for remark in remarks(block))
    return (
        f'<figure class="chart"><figcaption>{text(block.title)}</figcaption>'
        f'<div class="plot" data-chart="{index}" role="img" aria-label="{text(describe(block))}"></div>'
        f'<div class="remarks">{notes}</div>'
        f"<details><summary>Data</summary>{_table(table(block))}</details></figure>"
    )


def _scatter(block: Scatter, index: int) -> str:
    notes = "".join(f"<p>{text(remark)}</p>" for remark in scatter_remarks(block))
    # what turns with the keyboard has to be reachable by it
    role = 'role="application" tabindex="0"' if block.points.shape[1] == 3 else 'role="img"'
    return (
        f'<figure class="chart"><figcaption>{text(block.title)}</figcaption>'
        f'<div class="cloud" data-cloud="{index}" {role} aria-label="{text(describe_scatter(block))}"></div>'
        f'<div class="remarks">{notes}</div>'
        f"<details><summary>Data</summary>{_table(scatter_table(block))}</details></figure>"
    )


def _note(block: Note) -> str:
    return (
        f'<p class="note {block.level}" role="note"><strong>{NOTE_WORDS[block.level]}</strong> {text(block.text)}</p>'
    )


def _image(block: Image) -> str:
    # as an image, not inline: a browser runs no script in it and lets it load nothing
    data = base64.b64encode(block.svg.encode()).decode()
    note = f'<div class="remarks"><p>{text(block.note)}</p></div>' if block.note else ""
    return (
        f'<figure class="image"><figcaption>{text(block.title)}</figcaption>'
        f'<img alt="{text(block.title)}" src="data:image/svg+xml;base64,{data}">{note}</figure>'
    )


_RENDERERS: dict[type, Callable[[Any], str]] = {Facts: _facts, Table: _table, Note: _note, Image: _image}
