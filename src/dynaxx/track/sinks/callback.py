"""A sink of plain functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dynaxx.errors import InputError
from dynaxx.track.records import Alert
from dynaxx.track.sinks.base import Record


class Callback:
    """Calls ``record(record)`` for each record and ``event(event)`` for each event, in the sink's own thread.

    To change the training, use an action (``dynaxx.monitor.actions``), which is called in the training's thread.

    Args:
        record: takes a Record, or None.
        event: takes an Alert, or None.

    Raises:
        InputError: neither is given, or one cannot be called.

    >>> seen = []
    >>> Callback(record=lambda record: seen.append(record.step)).write([Record(7, 0.0, {})])
    >>> seen
    [7]
    """

    def __init__(
        self, record: Callable[[Record], object] | None = None, event: Callable[[Alert], object] | None = None
    ) -> None:
        if record is None and event is None:
            raise InputError("Callback() would call nothing; give record=, event=, or both")
        for name, function in (("record", record), ("event", event)):
            if function is not None and not callable(function):
                raise InputError(f"Callback({name}={function!r}) cannot be called; give a function of one argument")
        self._record, self._event = record, event

    def write(self, records: Sequence[Record]) -> None:
        """Call for each."""
        if self._record is not None:
            for record in records:
                self._record(record)

    def event(self, event: Alert) -> None:
        """Call."""
        if self._event is not None:
            self._event(event)

    def flush(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is open."""
