"""A document as one HTML file that needs nothing else: styles, script, drawing library and data are inside.

The page forbids itself the network and any script but its own (Content-Security-Policy with the script's hash), so a
name in a run can neither call home nor run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from dynaxx.errors import InputError
from dynaxx.report.blocks import html, text
from dynaxx.report.charts import chart
from dynaxx.report.document import Document, Lines, Scatter, Section, Spectra
from dynaxx.report.scatter import cloud


def page(document: Document) -> str:
    """The document as a self-contained HTML page.

    Raises:
        InputError: it is no Document.

    >>> text = page(Document("Fisher of <my> net"))
    >>> "<h1>Fisher of &lt;my&gt; net</h1>" in text, "<my>" in text
    (True, False)
    """
    if not isinstance(document, Document):
        raise InputError(f"page() takes a dynaxx.report.Document, not a {type(document).__name__}")
    blocks = [block for section in document.sections for block in section.blocks]
    charts = [block for block in blocks if isinstance(block, (Lines, Spectra))]
    clouds = [block for block in blocks if isinstance(block, Scatter)]
    numbers = {id(block): index for kind in (charts, clouds) for index, block in enumerate(kind)}
    style, script = _style(), _script()
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:"
    sections = [_section(index, section, numbers) for index, section in enumerate(document.sections, 1)]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="generator" content="dynaxx">',
            f"<title>{text(document.title)}</title>",
            '<link rel="icon" href="data:,">',
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            "<header>",
            f"<h1>{text(document.title)}</h1>",
            f'<p class="subtitle">{text(document.subtitle)}</p>' if document.subtitle else "",
            _contents(document),
            "</header>",
            "<main>",
            *sections,
            "</main>",
            _footer(document),
            f'<script type="application/json" id="charts">{embedded([chart(block) for block in charts])}</script>',
            f'<script type="application/json" id="clouds">{embedded([cloud(block) for block in clouds])}</script>',
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def write(document: Document, path: str | os.PathLike[str]) -> Path:
    """Write :func:`page` to a file: a reader sees the old file or the new one, never half of it. Folders are made.

    Returns:
        the path.

    Raises:
        InputError: it cannot be written there; what was there is as it was.
    """
    target = Path(path).expanduser()
    content = page(document).encode()
    if target.is_dir():
        raise InputError(f"{str(target)!r} is a folder; name a file in it, such as {str(target / 'report.html')!r}")
    # tempfile would make it for its owner only; a report is as readable as any other file of its writer
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(
            f"cannot write the report to {str(target)!r}: {error.strerror or error}; "
            "name a file in a folder you may write"
        ) from error
    return target


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element: no ``<`` that could end it, and no NaN, which JSON does not know."""
    encoded = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII only, so no line separators either
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def static(name: str) -> str:
    """A file of this package's folder ``static``."""
    return (files("dynaxx.report") / "static" / name).read_text(encoding="utf-8")


@cache
def _style() -> str:
    return static("uPlot.min.css") + static("page.css") + static("scatter.css")


@cache
def _script() -> str:
    notice = "/* " + static("uPlot.LICENSE").strip().replace("*/", "") + " */\n"
    return "\n".join(
        (notice + static("uPlot.iife.min.js"), *(static(f"{name}.js") for name in ("chart", "scatter", "page")))
    )


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _contents(document: Document) -> str:
    if len(document.sections) < 4:
        return ""
    items = (
        f'<li><a href="#section-{index}">{text(section.title)}</a></li>'
        for index, section in enumerate(document.sections, 1)
    )
    return f'<nav aria-label="Contents"><ul>{"".join(items)}</ul></nav>'


def _section(index: int, section: Section, numbers: dict[int, int]) -> str:
    parts = [f'<section id="section-{index}">', f"<h2>{text(section.title)}</h2>"]
    parts += [f"<p>{text(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph.strip()]
    row: list[str] = []  # charts that follow each other stand side by side where there is room
    for block in section.blocks:
        if isinstance(block, (Lines, Spectra, Scatter)):
            row.append(html(block, numbers[id(block)]))
            continue
        parts += _row(row)
        row = []
        parts.append(html(block))
    return "\n".join([*parts, *_row(row), "</section>"])


def _row(charts: list[str]) -> list[str]:
    return [f'<div class="charts" data-count="{len(charts)}">', *charts, "</div>"] if charts else []


def _footer(document: Document) -> str:
    if not document.footer:
        return ""
    items = (f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in document.footer.items())
    return f"<footer><dl>{''.join(items)}</dl></footer>"
