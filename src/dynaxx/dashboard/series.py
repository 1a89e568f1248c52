"""Series kept between requests: a chart that is drawn again while a run goes on reads only what is new."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from dynaxx.track import Columns
from dynaxx.track.reader import Reader

Extent = tuple[int, int, float]
MOST = 5_000_000  # values kept, 32 bytes each


class SeriesCache:
    """Columns by (run, metric), as far as they were read. Safe from several threads."""

    def __init__(self, store: Reader):
        self.store = store
        self._kept: OrderedDict[tuple[int, str], tuple[Extent, Columns]] = OrderedDict()
        self._lock = threading.Lock()

    def extents(self, run_id: int, names: Sequence[str]) -> dict[str, Extent]:
        """What says whether a series has changed: its length, last step, and the time of its latest value."""
        return self.store.extent(run_id, names)

    def read(self, run_id: int, name: str, extent: Extent) -> Columns:
        """A series that has this extent now.

        Raises:
            StoreError: there is no such run or metric.
        """
        key = (run_id, name)
        with self._lock:
            before, columns = self._kept.get(key, (None, None))
        if columns is None or before != extent:
            columns = self._grown(key, columns, extent)
            with self._lock:
                self._kept[key] = (_extent(columns), columns)
                self._kept.move_to_end(key)
                while len(self._kept) > 1 and sum(len(each[1]) for each in self._kept.values()) > MOST:
                    self._kept.popitem(last=False)
        return columns

    def _grown(self, key: tuple[int, str], columns: Columns | None, extent: Extent) -> Columns:
        if columns is not None and len(columns):
            more = self.store.metrics(*key, since=_extent(columns)[2])
            old = ~np.isin(columns.steps, more.steps)  # a value logged again takes the old one's place
            parts = [
                np.concatenate([getattr(columns, name)[old], getattr(more, name)])
                for name in ("steps", "walls", "values", "stderrs")
            ]
            if len(parts[0]) == extent[0]:
                order = np.argsort(parts[0], kind="stable")
                return Columns(*(part[order] for part in parts))
        # something was written late, behind what was read already
        return self.store.metrics(*key)


def _extent(columns: Columns) -> Extent:
    return len(columns), int(columns.steps[-1]), float(columns.walls.max())
