"""The files of the pages. They are read once and looked up by name, so no path of a request ever meets the disk."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
SHARED = (  # the report's, as they are
    "uPlot.iife.min.js",
    "uPlot.min.css",
    "uPlot.LICENSE",
    "chart.js",
    "page.css",
    "scatter.js",
    "scatter.css",
)


@cache
def assets() -> dict[str, tuple[bytes, str, str]]:
    """Name -> (content, media type, a tag that changes with the content).

    >>> sorted(assets())[:3], assets()["main.js"][1]
    (['alerts.js', 'ask.js', 'chart.js'], 'text/javascript; charset=utf-8')
    """
    found = {name: (files("dynaxx.report") / "static" / name).read_bytes() for name in SHARED}
    for entry in (files("dynaxx.dashboard") / "static").iterdir():
        found[entry.name] = entry.read_bytes()
    return {
        name: (
            content,
            f"{TYPES.get(name.rpartition('.')[2], 'text/plain')}; charset=utf-8",
            f'"{hashlib.sha256(content).hexdigest()[:20]}"',
        )
        for name, content in found.items()
    }
