"""Is the process that wrote a run still there?"""

from __future__ import annotations

import os
import platform
import time

STALE = 300.0
"""Seconds without a sign of life (one is due every 10) after which a run counts as gone, process number or not."""


def host() -> str:
    """This machine, and the namespace its process numbers belong to (containers may share a name but not numbers)."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def alive(pid: int) -> bool:
    """Whether a process of this machine runs. True where that cannot be found out without harm (Windows)."""
    if os.name != "posix":
        return True  # signal 0 would end the process there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in (
                "Z",
                "X",
            )  # ended, but its parent has not asked yet
    except (OSError, IndexError):
        return True


def actual_status(status: str, written_by: str, pid: int, heartbeat: float, now: float | None = None) -> str:
    """The status to show: a run that reads "running" is "interrupted" if its process is gone or has long been silent.

    >>> actual_status("running", "elsewhere", 1, heartbeat=0.0, now=1000.0)
    'interrupted'
    >>> actual_status("running", "elsewhere", 1, heartbeat=0.0, now=20.0), actual_status("failed", "elsewhere", 1, 0.0)
    ('running', 'failed')
    """
    if status != "running":
        return status
    silent = (time.time() if now is None else now) - heartbeat > STALE
    gone = written_by == host() and not alive(pid)
    return "interrupted" if silent or gone else "running"
