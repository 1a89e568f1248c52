"""Tables of the documentation, each between two marks."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def placed(page: str, name: str, made: str) -> str:
    """The page with what was made between ``<!-- table: name -->`` and ``<!-- end -->``."""
    return re.sub(
        rf"(?s)(<!-- table: {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}\n{made}\n\n{m[2]}", page, count=1
    )


def write(path: Path, name: str, made: str) -> None:
    """Put it there."""
    path.write_text(placed(path.read_text(encoding="utf-8"), name, made), encoding="utf-8")
