"""Time and memory, as multiples of a plain gradient measured at the same moment.

A shared machine is never quiet for long, so no absolute time is worth keeping. Each repetition is bracketed by the
baseline q0, and a figure is the median over repetitions of t / mean(q0 before, q0 after). Several contestants in one
process take turns, so that a busy spell hits all of them. Within a process repetitions hardly differ, between
processes they do (where memory comes to lie), so that several processes tell more than many repetitions.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

BASELINES = 3  # q0 on each side is the median of three: one alone pays for the cache that the contestant emptied
SECONDS = 60.0  # stop repeating a slow contestant after this long, but not before TWICE
TWICE = 2


@dataclass(frozen=True)
class Figure:
    """What one contestant took.

    Args:
        median, low, high: of t / q0 over the repetitions.
        repetitions: how many.
        processes: in how many processes.
        q0: median baseline, seconds.
        growth: rise of the peak of memory above that of a process that has run q0, bytes.
        load: the machine's one-minute load averages while it ran, lowest and highest.
    """

    median: float
    low: float
    high: float
    repetitions: int
    q0: float
    growth: int
    load: tuple[float, float]
    processes: int = 1

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def merged(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One figure of several processes: medians of theirs, and the whole range."""
    middle = {key: statistics.median(figure[key] for figure in figures) for key in ("median", "q0", "growth")}
    return dict(figures[0]) | middle | {
        "low": min(figure["low"] for figure in figures),
        "high": max(figure["high"] for figure in figures),
        "repetitions": sum(figure["repetitions"] for figure in figures),
        "processes": len(figures),
        "load": (min(figure["load"][0] for figure in figures), max(figure["load"][1] for figure in figures)),
    }  # fmt: skip


class Clock:
    """Seconds of one call: wall time on the CPU, events on a GPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def __call__(self, function: Callable[[], object]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            function()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000

    def peak(self) -> int:
        """Highest memory of this process so far, bytes: resident set on the CPU, allocator on a GPU."""
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def compare(
    contestants: Mapping[str, tuple[Callable[[], object], int]],
    baseline: Callable[[], object],
    *,
    repeats: int,
    device: str = "cpu",
    seconds: float = SECONDS,
) -> dict[str, Figure]:
    """Time contestants in turns, each between two baselines.

    Args:
        contestants: name -> (what to call, by how much its time is divided).
        baseline: q0.
        repeats: of each contestant; fewer, but at least two, if ``seconds`` have gone by.
        device: "cpu" or a CUDA device.
        seconds: time to spend per contestant.

    Returns:
        name -> Figure. Memory is told apart only if there is one contestant, since a peak does not come down again.
    """
    clock = Clock(device)

    def q0() -> float:
        return statistics.median(clock(baseline) for _ in range(BASELINES))

    for _ in range(BASELINES):
        baseline()
    ground, growth = clock.peak(), dict.fromkeys(contestants, 0)
    for name, (function, _) in contestants.items():
        function()  # first call: lazy initialisation, allocator, kernel selection
        growth[name] = max(0, clock.peak() - ground)
    ratios: dict[str, list[float]] = {name: [] for name in contestants}
    units, loads, started = [], [os.getloadavg()[0]], time.perf_counter()
    before = q0()
    for repetition in range(repeats):
        if repetition >= TWICE and time.perf_counter() - started > seconds * len(contestants):
            break
        for name, (function, divisor) in contestants.items():
            elapsed = clock(function) / divisor
            after = q0()
            ratios[name].append(2 * elapsed / (before + after))
            units.append(after)
            before = after
        loads.append(os.getloadavg()[0])
    for name in contestants:
        growth[name] = max(growth[name], clock.peak() - ground if len(contestants) == 1 else 0)
    return {
        name: Figure(
            statistics.median(values), min(values), max(values), len(values), statistics.median(units), growth[name],
            (min(loads), max(loads)),
        )
        for name, values in ratios.items()
    }  # fmt: skip
