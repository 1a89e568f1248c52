"""Watching a model's geometry while it trains, always on the same named examples.

What needs the run store is imported when it is first used, so that a snapshot alone does not load SQLAlchemy.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dynaxx.monitor.snapshot import Probe, Snapshot, snapshot

_LATER = {
    "Baseline": "dynaxx.monitor.drift",
    "Monitor": "dynaxx.monitor.monitor",
    "MonitorWarning": "dynaxx.monitor.journal",
    "Shift": "dynaxx.monitor.drift",
    "drift": "dynaxx.monitor.drift",
}

if TYPE_CHECKING:
    from dynaxx.monitor.drift import Baseline, Shift, drift
    from dynaxx.monitor.journal import MonitorWarning
    from dynaxx.monitor.monitor import Monitor

__all__ = ["Baseline", "Monitor", "MonitorWarning", "Probe", "Shift", "Snapshot", "drift", "snapshot"]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'dynaxx.monitor' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_LATER[name]), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps ``drift`` the function, in whose place importing the submodule of that name would put itself."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "drift" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
