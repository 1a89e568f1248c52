"""What trackers take of a record: plain numbers by name, and a spectrum as a histogram."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from dynaxx.errors import InputError
from dynaxx.track.names import LONGEST, clean_name, is_spectrum
from dynaxx.track.sinks.base import Record

ERROR = "_stderr"  # after a number's name; no further level of it, because some trackers keep levels as folders
BINS = 60


def numbers(record: Record) -> dict[str, float]:
    """Name -> float, the standard error of an Estimate as ``<name>_stderr``; names that every tracker accepts.

    >>> from dynaxx.estimate import Estimate
    >>> numbers(Record(0, 0.0, {"dynaxx/trace": Estimate(2.0, 0.5, 8, False), "blocks[0]": 1}))
    {'dynaxx/trace': 2.0, 'dynaxx/trace_stderr': 0.5, 'blocks_0_': 1.0}
    """
    out: dict[str, float] = {}
    for name, value in record.values.items():
        out[clean_name(name)] = float(value)
        error = stderr(value)
        if error is not None:
            out[clean_name(name)[-(LONGEST - len(ERROR)) :] + ERROR] = error
    return out


def stderr(value: object) -> float | None:
    """The standard error that a number carries, where it is known and not zero."""
    error = getattr(value, "stderr", None)
    return float(error) if isinstance(error, (int, float)) and math.isfinite(error) and error > 0 else None


def histograms(arrays: Mapping[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each spectrum, log10 of its positive eigenvalues: name -> (values, counts, edges), with sixty bins.

    >>> found = histograms({"dynaxx/spectrum": [100.0, 1.0, 0.0], "dynaxx/map": [1.0]})
    >>> {name: values.tolist() for name, (values, counts, edges) in found.items()}
    {'dynaxx/spectrum_log10': [2.0, 0.0]}
    """
    out = {}
    for name, array in arrays.items():
        if not is_spectrum(name):
            continue
        detached = array.detach().cpu() if hasattr(array, "detach") else array
        values = np.asarray(detached, dtype=np.float64).ravel()
        values = np.log10(values[(values > 0) & np.isfinite(values)])
        if len(values):
            counts, edges = np.histogram(values, BINS)
            out[clean_name(name)[-(LONGEST - 6) :] + "_log10"] = (values, counts, edges)
    return out


def require(sink: str, module: str, package: str) -> Any:
    """The library that a sink writes to.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{sink} needs {package}, which cannot be imported ({error}); pip install {package}"
        ) from error


def refuse_beside_a_run(sink: str, **options: Any) -> None:
    """Refuse options of a new run where a run is open already.

    Raises:
        InputError: one of ``options`` is set.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(
            f"{sink}: {', '.join(given)} would name a new run, but a run is open already; leave it out, or end that run"
        )
