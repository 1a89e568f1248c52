"""Run the benchmarks: each case in processes of its own, one results file per case.

    python benchmarks/run.py                                everything that is not there yet
    python benchmarks/run.py --only mlp diagonal            cases whose name contains all of the given texts
    python benchmarks/run.py --only dynaxx --again          measure anew
    python benchmarks/run.py --quick                        fewer repetitions
    python benchmarks/run.py --processes 1                  one process for each case: between processes times differ
    python benchmarks/run.py --versus backpack --only diagonal_exact       dynaxx and a peer in turns in one process

An interrupted run loses the case it was at; the next one goes on from there. benchmarks/table.py makes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
QUICK, FULL = 3, 7  # repetitions in a process
PROCESSES = 3
SECONDS = {QUICK: 15.0, FULL: 60.0}
LIMIT = 420  # seconds for one process of a case
DISTRIBUTIONS = {
    "dynaxx": "dynaxx", "torch.func": "torch", "asdl": "asdfghjkl", "backpack": "backpack-for-pytorch",
    "curvlinops": "curvlinops-for-pytorch", "vivit": "vivit-for-pytorch", "laplace": "laplace-torch",
    "pyhessian": "PyHessian",
}  # fmt: skip


def version(library: str) -> str:
    """Of the installed distribution; dynaxx may be run from its source tree."""
    if library == "dynaxx":
        return str(__import__("dynaxx").__version__)
    return metadata.version(DISTRIBUTIONS.get(library, library))


def machine(device: str, threads: int) -> dict[str, Any]:
    """What it ran on, without names of machines or people."""
    import torch

    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": threads,
    }


def measure_case(quantity: str, workload: str, libraries: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """In the process of the case: prepare, time, describe."""
    import torch
    from measure import compare
    from registry import CELLS, QUANTITIES
    from work import multiply_adds
    from workloads import SEED, gradient, make

    made = make(workload, given.device, batch=QUANTITIES[quantity].batch)
    baseline = made.untouched()
    gradient(baseline)
    cells = {library: CELLS[quantity, library](made.untouched()) for library in libraries}
    contestants = {library: (cell.run, cell.per) for library, cell in cells.items()}
    repeats, seconds = given.repeats, SECONDS.get(given.repeats, SECONDS[FULL])
    figures = compare(
        contestants, lambda: gradient(baseline), repeats=repeats, device=given.device, seconds=seconds
    )  # fmt: skip
    described = {library: {"version": version(library), **figure.as_dict()} for library, figure in figures.items()}
    if "dynaxx" in cells:
        unit = multiply_adds(lambda: gradient(baseline))
        described["dynaxx"]["work"] = multiply_adds(cells["dynaxx"].run) / cells["dynaxx"].per / unit
    return {
        "quantity": quantity,
        "workload": workload,
        "seed": SEED,
        "repeats": repeats,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(given.device, torch.get_num_threads()),
        "figures": described,
    }


def worker(given: argparse.Namespace) -> None:
    """Measure or check one case in this process and print JSON."""
    import ours  # noqa: F401  (registers the cells of dynaxx)
    import torch

    import peers  # noqa: F401

    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    quantity, workload, libraries = given.case
    names = libraries.split("+")
    if given.check:
        from check import check

        answer: Any = {library: check(quantity, library, workload, given.device) for library in names}
    else:
        answer = measure_case(quantity, workload, names, given)
    print("\n" + json.dumps(answer))


def spawn(case: tuple[str, str, str], given: argparse.Namespace, check: bool) -> tuple[Any, str]:
    """Run the worker in a fresh process; its answer, or why there is none."""
    command = [sys.executable, str(HERE / "run.py"), "--case", *case, "--threads", str(given.threads)]
    command += ["--repeats", str(given.repeats), "--device", given.device] + ["--check"] * check
    threads = str(given.threads)
    source = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE.parent / "src")]))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": source}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=given.limit, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"took longer than {given.limit} s"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        killed = f"the process ended with signal {-done.returncode}, out of memory perhaps"
        return None, (killed if done.returncode < 0 else lines[-1].strip()[:300] if lines else "no message")
    return json.loads(done.stdout.splitlines()[-1]), ""


def run_case(case: tuple[str, str, str], given: argparse.Namespace) -> dict[str, Any]:
    """Check, then time. A wrong answer of ours is not timed; a peer's difference is recorded."""
    quantity, workload, libraries = case
    from registry import CANNOT

    record: dict[str, Any] = {"quantity": quantity, "workload": workload, "libraries": libraries}
    reasons = [CANNOT[key] for library in libraries.split("+") if (key := (quantity, library, workload)) in CANNOT]
    if reasons:
        return record | {"cannot": reasons[0]}
    record["repeats"] = given.repeats  # so that a full run tries again what failed in a quick one
    checked, failure = spawn(case, given, check=True)
    record["check"] = checked if checked is not None else {"failed": failure}
    ours = (checked or {}).get("dynaxx")
    if "dynaxx" in libraries.split("+") and (ours is None or ours["difference"] > ours["tolerance"]):
        return record | {"failed": f"not timed, because the check did not pass: {failure or ours}"}
    made: list[dict[str, Any]] = []
    for _ in range(given.processes):
        timed, failure = spawn(case, given, check=False)
        if timed is None:
            return record | {"failed": failure}
        made.append(timed)
    from measure import merged

    names = made[0]["figures"]
    return record | made[-1] | {"figures": {name: merged([one["figures"][name] for one in made]) for name in names}}


def cases(given: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(quantity, workload, library), dynaxx first; with --versus "dynaxx+peer"."""
    import ours  # noqa: F401
    from registry import CANNOT, CELLS, QUANTITIES

    import peers  # noqa: F401

    found = []
    for quantity, row in QUANTITIES.items():
        for workload in row.workloads:
            known = {l for q, l in CELLS if q == quantity} | {l for q, l, w in CANNOT if (q, w) == (quantity, workload)}
            libraries = sorted(known, key=lambda library: (library != "dynaxx", library))
            if given.versus:
                libraries = [f"dynaxx+{given.versus}"] if given.versus in known else []
            found += [(quantity, workload, library) for library in libraries]
    if given.only:
        found = [case for case in found if all(text in name_of(case) for text in given.only)]
    return sorted(found, key=lambda case: case[2] != "dynaxx")


def name_of(case: tuple[str, str, str]) -> str:
    """mlp-trace-curvlinops."""
    quantity, workload, library = case
    return f"{workload}-{quantity}-{library}"


def path_of(case: tuple[str, str, str], given: argparse.Namespace) -> Path:
    suffix = "" if given.device == "cpu" else "-" + given.device.partition(":")[0]
    return RESULTS / f"{name_of(case)}{suffix}.json"


def store(path: Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def wanted(path: Path, given: argparse.Namespace) -> bool:
    """Not there, or asked for anew, or measured with fewer repetitions than now asked for."""
    if given.again or not path.exists():
        return True
    record = json.loads(path.read_text(encoding="utf-8"))
    return (given.failed and "failed" in record) or record.get("repeats", FULL) < given.repeats


def line(case: tuple[str, str, str], record: dict[str, Any], seconds: float) -> str:
    """One case for the terminal."""
    if "figures" not in record:
        return f"{name_of(case):48s} {record.get('cannot') or record.get('failed')}"
    texts = [
        f"{f['median']:.2f} ({f['low']:.2f}-{f['high']:.2f}) q0 {1e3 * f['q0']:.0f} ms +{f['growth'] / 1e6:.0f} MB "
        f"load {f['load'][0]:.1f}-{f['load'][1]:.1f}"
        for f in record["figures"].values()
    ]
    return f"{name_of(case):48s} {'; '.join(texts)} [{seconds:.0f} s] {record.get('check')}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="texts that a case's name must all contain")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} repetitions, not {FULL}")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--processes", type=int, default=PROCESSES, help="for each case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--versus", help="a peer to take turns with dynaxx in one process")
    parser.add_argument("--again", action="store_true", help="measure also what has a result")
    parser.add_argument("--failed", action="store_true", help="measure also what failed before")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one case")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.repeats = given.repeats or (QUICK if given.quick else FULL)
    return given


def main() -> None:
    given = parse()
    if given.case:
        worker(given)
        return
    for case in cases(given):
        path = path_of(case, given)
        if not wanted(path, given):
            continue
        start = time.perf_counter()
        record = run_case(case, given)
        store(path, record)
        print(line(case, record, time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
