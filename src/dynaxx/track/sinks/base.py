"""What a sink is: where measurements go besides the run store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from dynaxx.track.records import Alert


@dataclass(frozen=True)
class Record:
    """What one look at a training found.

    Args:
        step: optimizer steps done.
        wall: when, seconds since 1970 (UTC).
        values: ``dynaxx/<quantity>`` or ``dynaxx/layer/<name>/<quantity>`` -> number; one with a standard error is an
            Estimate (a float with ``stderr``).
        arrays: name -> array, such as a spectrum.
    """

    step: int
    wall: float
    values: Mapping[str, float]
    arrays: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Sink(Protocol):
    """Takes records and events. One thread at a time calls it, never the training loop's, so it may be slow and may
    raise.
    """

    def write(self, records: Sequence[Record]) -> None:
        """Take these records, in the order of their steps."""

    def event(self, event: Alert) -> None:
        """Take something that a person should look at."""

    def flush(self) -> None:
        """Pass on what was taken and is still held."""

    def close(self) -> None:
        """Nothing will follow."""
