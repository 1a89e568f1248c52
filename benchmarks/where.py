"""Where the time of one cell goes: the functions of dynaxx by cumulative time, and the operators of torch by their own.

python benchmarks/where.py mlp trace
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from pathlib import Path

import ours  # noqa: F401  (fills the registry)
import torch
from registry import CELLS, QUANTITIES
from workloads import gradient, make


def functions(profile: cProfile.Profile, limit: int) -> list[str]:
    """Cumulative seconds of the library's own functions and of autograd's entry points."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    found = []
    for (file, line, name), (_, calls, _, total, _) in stats.items():
        if "dynaxx" in file or name in ("grad", "_engine_run_backward"):
            found.append((total, f"{total:8.3f} s  {calls:6d} calls  {Path(file).name}:{line} {name}"))
    return [text for _, text in sorted(found, reverse=True)[:limit]]


def operators(cell: object, limit: int) -> list[str]:
    """Own CPU time of torch's operators."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        cell.run()  # type: ignore[attr-defined]
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)[:limit]
    return [f"{event.self_cpu_time_total / 1e6:8.3f} s  {event.count:6d} calls  {event.key}" for event in events]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload")
    parser.add_argument("quantity", choices=QUANTITIES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, default=14)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    workload = make(given.workload, batch=QUANTITIES[given.quantity].batch)
    baseline, cell = workload.untouched(), CELLS[given.quantity, "dynaxx"](workload)
    cell.run()
    gradient(baseline)
    profile = cProfile.Profile()
    profile.enable()
    gradient(baseline)
    cell.run()
    profile.disable()
    print("\n".join(functions(profile, given.limit)))
    print("\n".join(operators(cell, given.limit)))


if __name__ == "__main__":
    main()
