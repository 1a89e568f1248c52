"""Peak memory of a call, as the operating system or the GPU's allocator saw it."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Growth:
    """``growth``: by how much the peak rose above what was held at the start, bytes, once the block has ended."""

    growth = 0


@contextmanager
def measured(device: torch.device | str = "cpu") -> Iterator[Growth]:
    """Measure the peak growth of what runs inside.

    On Linux the process's peak is reset first, so that earlier peaks do not hide this one; elsewhere only a new record
    shows. On a GPU it is what tensors took, not what the allocator reserved.

    >>> with measured() as seen:
    ...     held = torch.ones(5_000_000)
    >>> 0 <= seen.growth < 60e6  # 20 MB, or less where memory that was freed before is used again
    True
    """
    gc.collect()
    seen = Growth()
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
    else:
        _forget_peak()
        start = _resident("VmRSS")
    try:
        yield seen
    finally:
        if cuda:
            torch.cuda.synchronize(device)
            seen.growth = torch.cuda.max_memory_allocated(device) - start
        else:
            seen.growth = max(0, _resident("VmHWM") - start)


def _forget_peak() -> None:
    with suppress(OSError):  # another system, or not allowed: a peak that is no record goes unseen
        CLEAR.write_text("5", encoding="ascii")


def _resident(field: str) -> int:
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
