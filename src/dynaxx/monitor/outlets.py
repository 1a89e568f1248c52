"""A sink behind a queue and a thread, so that a slow or dead one costs the training nothing."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from dynaxx.track.records import Alert
from dynaxx.track.run import Run
from dynaxx.track.sinks.base import Record, Sink

WAITING = 10_000  # records and events that may wait for a sink
TRIES = 5
FIRST_PAUSE = 0.1  # seconds; doubles with each try


class RunSink:
    """A run of the store as a sink. The run's own writer holds what the disk refuses, see ``dynaxx.track.writer``."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def write(self, records: Sequence[Record]) -> None:
        """Numbers and arrays."""
        for record in records:
            self.run.log(record.values, step=record.step)
            for name, value in record.arrays.items():
                self.run.log_array(name, value, step=record.step)

    def event(self, event: Alert) -> None:
        """An alert."""
        self.run.alert(event.title, event.text, level=event.level, step=event.step, rule=event.rule)

    def flush(self) -> None:
        """The run's own writer does that, and ending the run waits for it."""

    def close(self) -> None:
        """The run is ended by whoever started it."""


class Outlet:
    """Hands records and events to one sink in a thread of its own, in order.

    A sink that raises is tried again with growing pauses, and given up after five failures in a row; ``failed`` then
    hears of it. What waits beyond the limit is dropped, the oldest first, and ``failed`` hears of that once.

    Args:
        sink: where to.
        failed: called with a text, from the sink's thread.
        pause: seconds before the second try.
    """

    def __init__(self, sink: Sink, failed: Callable[[str], object], pause: float = FIRST_PAUSE) -> None:
        self.sink, self.failed, self.pause = sink, failed, pause
        self.name = type(sink).__name__
        self.dead = False
        self.dropped = 0
        self._queue: deque[Record | Alert] = deque()
        self._wake, self._ended = threading.Event(), threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def put(self, item: Record | Alert) -> None:
        """Queue one record or event; returns at once."""
        if self.dead or self._closing:
            return
        self._queue.append(item)
        if len(self._queue) > WAITING:
            self._queue.popleft()
            self.dropped += 1
            if self.dropped == 1:
                self.failed(f"{self.name} is too slow: {WAITING} records wait, the oldest are being dropped")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"dynaxx-{self.name}", daemon=True)
            self._thread.start()
        self._wake.set()

    def close(self, timeout: float = 10.0) -> None:
        """Hand over what waits, then close the sink; gives up waiting after ``timeout`` seconds and says so."""
        if self._closing:
            return
        self._closing = True
        if self._thread is None:
            self._end()
            return
        self._wake.set()
        if not self._ended.wait(timeout):
            self.dead = True
            self.failed(f"{self.name} did not take what waits within {timeout:g} s: {len(self._queue)} are lost")

    def _work(self) -> None:
        while not self.dead and not (self._closing and not self._queue):
            self._wake.wait()
            self._wake.clear()
            self._hand_over()
        self._end()

    def _hand_over(self) -> None:
        failures = 0
        while self._queue and not self.dead:
            item = self._queue[0]
            try:
                self._give(item)
            except Exception as error:
                failures += 1
                if failures >= TRIES or self._closing:
                    self.dead = True
                    self.failed(
                        f"{self.name} was given up after {failures} failures, {len(self._queue)} records did not "
                        f"reach it: {type(error).__name__}: {error}"
                    )
                    self._queue.clear()
                    return
                time.sleep(self.pause * 2 ** (failures - 1))
            else:
                failures = 0
                # only this thread takes from the left, but a full queue may have dropped the item meanwhile
                if self._queue and self._queue[0] is item:
                    self._queue.popleft()

    def _give(self, item: Record | Alert) -> None:
        if isinstance(item, Record):
            self.sink.write([item])
        else:
            self.sink.event(item)

    def _end(self) -> None:
        try:
            if not self.dead:
                self.sink.flush()
            self.sink.close()
        except Exception as error:
            self.failed(f"{self.name} could not be closed: {type(error).__name__}: {error}")
        finally:
            self._ended.set()


def require_sinks(sinks: Any) -> list[Sink]:
    """The sinks, if they are such.

    Raises:
        InputError: one lacks a method.
    """
    from dynaxx.errors import InputError

    out = list(sinks)
    for sink in out:
        if not isinstance(sink, Sink):
            missing = [name for name in ("write", "event", "flush", "close") if not hasattr(sink, name)]
            raise InputError(
                f"sinks holds a {type(sink).__name__} without {', '.join(missing)}; a sink has write(records), "
                "event(event), flush() and close()"
            )
    return out
