"""What the store hands back, and how numbers and arrays cross the border to SQL."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from dynaxx.errors import InputError, SizeError, bytes_as_text

FINITE, NAN, PLUS_INFINITY, MINUS_INFINITY = range(4)
_RESTORED = {NAN: math.nan, PLUS_INFINITY: math.inf, MINUS_INFINITY: -math.inf}
LARGEST_BLOB = 256 * 10**6


@dataclass(frozen=True)
class RunInfo:
    """One run as it stands in the store.

    Args:
        status: "running", "finished", "failed" or "interrupted"; a run left "running" by a process that is gone reads
            "interrupted" here.
        started, ended, heartbeat: seconds since 1970 (UTC); ended is None until the run ends.
        parent: the run it goes on from, or belongs to. tags: in alphabetical order.
    """

    id: int
    project: str
    name: str
    status: str
    started: float
    ended: float | None
    config: dict[str, Any]
    environment: dict[str, Any]
    host: str
    pid: int
    heartbeat: float
    parent: int | None = None
    tags: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it ran: to its end, or to its last sign of life."""
        return max(0.0, (self.heartbeat if self.ended is None else self.ended) - self.started)


@dataclass(frozen=True)
class Columns:
    """One metric of one run, ordered by step.

    Args:
        steps: (n,) int64.
        walls: (n,) float64, seconds since 1970 (UTC).
        values: (n,) float64, NaN and both infinities as they were logged.
        stderrs: (n,) float64, NaN where no standard error was logged.
    """

    steps: np.ndarray
    walls: np.ndarray
    values: np.ndarray
    stderrs: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class ArrayRecord:
    """One array of one step.

    ``value`` has the shape and dtype it was logged with (little-endian, read-only); ``attributes`` what was said of it
    (of a spectrum: floor, dimension, count).
    """

    name: str
    step: int
    wall: float
    value: np.ndarray
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Last:
    """The last value of a metric: its step, its value, and its standard error (NaN where none was logged); and the step
    of its first.
    """

    step: int
    value: float
    stderr: float
    first: int = 0


@dataclass(frozen=True)
class Alert:
    """Something a person should look at. ``rule`` is what gave it; ``id`` grows with time through the whole store."""

    level: str
    title: str
    text: str
    step: int | None
    wall: float
    rule: str | None = None
    id: int = 0
    run_id: int = 0


@dataclass(frozen=True)
class Artifact:
    """A file that belongs to a run: either its ``path`` or, in the store, its content of ``size`` bytes."""

    name: str
    mime: str
    wall: float
    path: str | None
    size: int | None


@dataclass(frozen=True)
class ModelVersion:
    """A state of the model worth a name.

    ``baseline`` is what was measured of it, metric -> (value, standard error or NaN), for new data to be held against.
    """

    name: str
    step: int | None
    wall: float
    digest: str | None
    details: dict[str, Any]
    baseline: dict[str, tuple[float, float]] = field(default_factory=dict)
    run_id: int = 0


def encode_number(name: str, value: object) -> tuple[float | None, int, float | None]:
    """(value, kind, stderr) for SQL: value is None unless finite, stderr None where not known.

    Args:
        value: anything that ``float`` takes: a number, an Estimate, a tensor or array of one element.

    Raises:
        InputError: it is text, has several elements, or is no number.

    >>> encode_number("loss", 0.5), encode_number("loss", float("-inf"))
    ((0.5, 0, None), (None, 3, None))
    """
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError("text")
        number = float(value.item() if hasattr(value, "item") else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        shape = getattr(value, "shape", None)
        if shape is not None and math.prod(shape) != 1:
            raise InputError(
                f"metric {name!r} has shape {tuple(shape)}; a metric is one number: reduce it, or use log_array"
            ) from error
        raise InputError(
            f"metric {name!r} is {value!r:.60} ({type(value).__name__}), which is no number; convert it with float()"
        ) from error
    error_bar = getattr(value, "stderr", None)
    spread = float(error_bar) if isinstance(error_bar, (int, float)) and math.isfinite(error_bar) else None
    if math.isfinite(number):
        return number, FINITE, spread
    return None, NAN if math.isnan(number) else PLUS_INFINITY if number > 0 else MINUS_INFINITY, spread


def decode_number(value: float | None, kind: int) -> float:
    """The number that :func:`encode_number` took apart.

    >>> decode_number(None, 2)
    inf
    """
    return _RESTORED[kind] if value is None else value


def encode_baseline(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """metric -> [value, stderr] as JSON carries it: NaN and infinities as text, a standard error not known as null.

    >>> encode_baseline({"rank": 3, "trace": float("nan")})
    {'rank': [3.0, None], 'trace': ['nan', None]}
    """
    out = {}
    for name, given in values.items():
        value, kind, spread = encode_number(name, given)
        out[name] = [str(_RESTORED[kind]) if value is None else value, spread]
    return out


def decode_baseline(values: Mapping[str, list[Any]] | None) -> dict[str, tuple[float, float]]:
    """What :func:`encode_baseline` took apart.

    >>> decode_baseline({"trace": ["inf", 0.5]})
    {'trace': (inf, 0.5)}
    """
    pairs = (values or {}).items()
    return {name: (float(value), math.nan if spread is None else float(spread)) for name, (value, spread) in pairs}


def encode_array(name: str, value: Any) -> tuple[str, list[int], bytes]:
    """(dtype, shape, bytes), little-endian and in C order, of a tensor or anything numpy takes.

    bfloat16, which numpy does not know, becomes float32 without loss.

    Raises:
        InputError: it does not hold numbers.
        SizeError: it has more than 256 MB, which belongs into a file (``run.artifact``).
    """
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        try:
            value = tensor.numpy()
        except (TypeError, RuntimeError):
            value = tensor.to_dense().float().numpy() if getattr(tensor, "is_sparse", False) else tensor.float().numpy()
    data = np.asarray(value)
    if data.dtype.kind not in "biufc":
        raise InputError(f"array {name!r} has dtype {data.dtype}, which is not numeric; give it numbers")
    if data.nbytes > LARGEST_BLOB:
        raise SizeError(
            f"array {name!r} has {bytes_as_text(data.nbytes)} (limit {bytes_as_text(LARGEST_BLOB)}); "
            "save it to a file and record that with run.artifact"
        )
    little = data.dtype.newbyteorder("<")
    return little.str, list(data.shape), np.ascontiguousarray(data, dtype=little).tobytes()


def decode_array(dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    """The array that :func:`encode_array` took apart; a read-only view of ``data``."""
    return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)


def as_json(value: Any) -> Any:
    """``value`` as JSON can carry it: what is not finite and what is no plain data becomes text.

    >>> as_json({"lr": 0.1, "limit": float("inf"), 3: (1, 2), "where": PurePath("runs")})
    {'lr': 0.1, 'limit': 'inf', '3': [1, 2], 'where': 'runs'}
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((as_json(item) for item in value), key=str)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.generic):
        return as_json(value.item())
    return str(value)


def environment() -> dict[str, Any]:
    """Versions and machine of this process. Reports torch only where somebody else has imported it already."""
    import os
    import platform

    from dynaxx.version import __version__

    facts: dict[str, Any] = {
        "dynaxx": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.node(),
        "cores": os.cpu_count(),
        "script": PurePath(sys.argv[0]).name if sys.argv else "",
    }
    for name in ("numpy", "torch"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            facts[name] = str(version)
    return facts
