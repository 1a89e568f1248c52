"""What a monitor remembers and passes on: records, events, and faults that must not reach the training."""

from __future__ import annotations

import atexit
import json
import logging
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from dynaxx.monitor.outlets import Outlet, RunSink, require_sinks
from dynaxx.track.records import Alert
from dynaxx.track.run import Run
from dynaxx.track.sinks.base import Record, Sink
from dynaxx.track.store import Store

PATIENCE, STORE_PATIENCE = 10.0, 30.0  # seconds that closing waits for a sink, and for a store that others hold

_log = logging.getLogger("dynaxx.monitor")


class MonitorWarning(UserWarning):
    """Something in the training, or in its monitor, needs a person. Training goes on."""


class Journal:
    """Keeps records and events, and hands each to every outlet.

    Args:
        sinks: where they go besides memory.
    """

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self.history: list[Record] = []
        self.events: list[Alert] = []
        self.run: Run | None = None
        self._owned: Store | None = None  # a store whose run was started here
        self._outlets: list[Outlet] = []
        for sink in require_sinks(sinks):
            self._connect(sink)
        _OPEN.add(self)

    def keep(
        self, store: Any, name: str | None, project: str, config: Mapping[str, Any], protocol: Mapping[str, Any]
    ) -> None:
        """Record in a store as well, from now on.

        Args:
            store: a path or URL, a Store, or an open Run.
            name, project, config: of the run, unless one is given.
            protocol: how numbers are measured; in the run's configuration and beside it as a file.

        Raises:
            StoreError: the store cannot be opened or written.
        """
        if isinstance(store, Run):
            self.run = store
        else:
            holder = store if isinstance(store, Store) else Store(store)
            self._close_store = holder is not store
            self.run = holder.run(name, project, {**config, "dynaxx": dict(protocol)})
            self._owned = holder
        text = json.dumps(protocol, indent=1, default=str)
        self.run.artifact("dynaxx/protocol.json", text.encode(), "application/json")
        self._connect(RunSink(self.run))

    def record(self, record: Record) -> None:
        """Remember it and pass it on."""
        self.history.append(record)
        for outlet in self._outlets:
            outlet.put(record)

    def event(self, level: str, title: str, text: str, step: int | None, without: Any = None) -> None:
        """Remember it, pass it on (except to ``without``), and warn unless the level is "info"."""
        event = Alert(level, title, text, step, time.time())
        self.events.append(event)
        for outlet in self._outlets:
            if outlet is not without:
                outlet.put(event)
        if level != "info":
            _warn(f"{title}{'' if step is None else f' (step {step})'}: {text}")

    def safely(self, what: str, work: Callable[[], Any], step: int | None = None) -> Any:
        """Do it; what goes wrong becomes an event, and the answer None. Ctrl-C passes."""
        try:
            return work()
        except Exception as error:
            try:
                self.event("warning", f"monitor: {what} failed", f"{type(error).__name__}: {error}", step)
            except Exception:
                _log.exception("monitor: %s failed, and so did saying so", what)
            return None

    def close(self, status: str) -> None:
        """Hand over what waits; the store comes last, because it notes what happened to the others."""
        for outlet in sorted(self._outlets, key=lambda outlet: isinstance(outlet.sink, RunSink)):
            patience = STORE_PATIENCE if isinstance(outlet.sink, RunSink) else PATIENCE
            self.safely("closing a sink", partial(outlet.close, patience))
        if self._owned is not None and self.run is not None:
            self.safely("ending the run", lambda: self.run.finish(status) if self.run else None)
            if self._close_store:
                self.safely("closing the store", self._owned.close)
        _OPEN.discard(self)

    def _connect(self, sink: Sink) -> None:
        def failed(text: str) -> None:
            self.event("warning", "sink", text, None, without=outlet)

        outlet = Outlet(sink, failed)
        self._outlets.append(outlet)


_OPEN: weakref.WeakSet[Journal] = weakref.WeakSet()


def _at_exit() -> None:
    """What waits in the threads of journals that nobody closed. Stores end their runs themselves."""
    for journal in list(_OPEN):
        for outlet in journal._outlets:
            outlet.close(timeout=5.0)


atexit.register(_at_exit)


def _warn(message: str) -> None:
    try:
        warnings.warn(message, MonitorWarning, stacklevel=5)
    except Warning:  # a filter made it an error, which must not reach a training loop
        _log.warning(message)
