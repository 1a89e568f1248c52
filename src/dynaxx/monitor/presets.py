"""How much a look looks at."""

from __future__ import annotations

from collections.abc import Callable

from dynaxx.monitor.economy import economy
from dynaxx.monitor.full import full
from dynaxx.monitor.look import Look
from dynaxx.monitor.standard import standard
from dynaxx.monitor.subject import Subject

PRESETS: dict[str, Callable[[Subject], Look]] = {"economy": economy, "standard": standard, "full": full}
"""Name -> what it measures. A callable of your own in the place of a name works as well."""
