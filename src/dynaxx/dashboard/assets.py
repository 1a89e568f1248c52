"""The files of the pages. They are read once and looked up by name, so no path of a request ever meets the disk.

The scripts and style sheets, some twenty, go out as one of each: on a busy machine each file that a browser asks for
costs it a wait of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
STYLES = ("uPlot.min.css", "page.css", "scatter.css")  # the report's, as they are
SCRIPTS = ("uPlot.iife.min.js", "chart.js", "scatter.js")
IMPORT = re.compile(r'^import \{ \w+(?:, \w+)* \} from "\./(\w+\.js)";\n', re.M)
EXPORT = re.compile(r"^export ((?:async )?function|class|const) (\w+)", re.M)


@cache
def assets() -> dict[str, tuple[bytes, str, str]]:
    """Name -> (content, media type, a tag that changes with the content).

    >>> sorted(assets()), assets()["app.js"][1]
    (['app.css', 'app.js', 'index.html', 'uPlot.LICENSE'], 'text/javascript; charset=utf-8')
    """
    shared, own = (
        {entry.name: entry.read_text("utf-8") for entry in (files(package) / "static").iterdir()}
        for package in ("dynaxx.report", "dynaxx.dashboard")
    )
    found = {
        "index.html": own["index.html"],
        "app.css": "\n".join([*(shared[name] for name in STYLES), own["dashboard.css"]]),
        "app.js": "\n".join([*(shared[name] for name in SCRIPTS), joined(own, "main.js")]),
        "uPlot.LICENSE": shared["uPlot.LICENSE"],
    }
    return {name: _described(name, text.encode()) for name, text in found.items()}


def joined(modules: Mapping[str, str], entry: str) -> str:
    """Modules that import from each other as one script, each in a function of its own, what it needs before it.

    They are written so that this is simple: a line for each import, under the names that were exported; exports at
    declarations; no circles.

    Raises:
        ValueError: they are not.

    >>> print(joined({"a.js": 'import { f } from "./b.js";\\nf();', "b.js": "export const f = () => 1;"}, "a.js"))
    const { f } = (() => {
    const f = () => 1;
    return { f };
    })();
    f();
    """
    done: dict[str, str] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"modules import each other in a circle: {' -> '.join([*above, name])}")
        if name in done:
            return
        for needed in IMPORT.findall(modules[name]):
            add(needed, (*above, name))
        body = EXPORT.sub(r"\1 \2", IMPORT.sub("", modules[name])).rstrip("\n")
        if left := re.search(r"^(import|export)\b.*", body, re.M):
            raise ValueError(f"{name}: {left[0]!r} is not written as the other imports and exports are")
        names = ", ".join(each for _, each in EXPORT.findall(modules[name]))
        done[name] = (
            body if name == entry else f"const {{ {names} }} = (() => {{\n{body}\nreturn {{ {names} }};\n}})();"
        )

    add(entry, ())
    return "\n".join(done.values())


def _described(name: str, content: bytes) -> tuple[bytes, str, str]:
    media = f"{TYPES.get(name.rpartition('.')[2], 'text/plain')}; charset=utf-8"
    return content, media, f'"{hashlib.sha256(content).hexdigest()[:20]}"'
