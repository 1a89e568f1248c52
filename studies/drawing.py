"""How every figure of the studies looks, so that the same results give the same file."""

from __future__ import annotations

from typing import Any

# the salt names clip paths; figures are saved without a date
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "dynaxx",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
