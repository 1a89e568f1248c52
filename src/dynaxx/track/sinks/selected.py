"""Part of what is measured, for a tracker that should not get all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from dynaxx.errors import InputError
from dynaxx.track.records import Alert
from dynaxx.track.sinks.base import Record, Sink


class Selected:
    """Hands only some numbers and arrays on to another sink; events all go through.

    A network of 200 layers has 400 curves of its own, more than a remote tracker shows well; the run store takes them.

    Args:
        sink: where to.
        names: shell patterns (``"dynaxx/layer/*"``) of the names to hand on, or a function of a name.
        but: patterns of names to leave out all the same.

    Raises:
        InputError: ``sink`` is no sink, or a pattern is not text.

    >>> from dynaxx.track.sinks import Callback
    >>> sink = Selected(Callback(record=lambda record: print(dict(record.values))), but=["dynaxx/layer/*"])
    >>> sink.write([Record(0, 0.0, {"dynaxx/trace": 3.0, "dynaxx/layer/0/trace": 1.0})])
    {'dynaxx/trace': 3.0}
    """

    def __init__(
        self, sink: Sink, names: Iterable[str] | Callable[[str], bool] = ("*",), but: Iterable[str] = ()
    ) -> None:
        if not isinstance(sink, Sink):
            raise InputError(f"Selected takes a sink, not a {type(sink).__name__}")
        self.sink = sink
        self._taken = names if callable(names) else _matcher("names", names)
        self._left = _matcher("but", but)

    def write(self, records: Sequence[Record]) -> None:
        """The records with what is selected of each; one of which nothing is left is not handed on."""
        kept = []
        for record in records:
            values = {name: value for name, value in record.values.items() if self.takes(name)}
            arrays = {name: value for name, value in record.arrays.items() if self.takes(name)}
            if values or arrays:
                kept.append(Record(record.step, record.wall, values, arrays))
        if kept:
            self.sink.write(kept)

    def takes(self, name: str) -> bool:
        """Whether this name is handed on."""
        return bool(self._taken(name)) and not self._left(name)

    def event(self, event: Alert) -> None:
        """Hand it on."""
        self.sink.event(event)

    def flush(self) -> None:
        """Hand it on."""
        self.sink.flush()

    def close(self) -> None:
        """Hand it on."""
        self.sink.close()


def _matcher(what: str, patterns: Iterable[str]) -> Callable[[str], bool]:
    given = [patterns] if isinstance(patterns, str) else list(patterns)
    if not all(isinstance(pattern, str) for pattern in given):
        raise InputError(f"{what}={given!r}; give patterns such as 'dynaxx/layer/*'")
    return lambda name: any(fnmatchcase(name, pattern) for pattern in given)
