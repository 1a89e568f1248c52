"""Every allocation of a run and its end, so that the peak can be taken apart afterwards."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from dataclasses import dataclass

from torch import Tensor, UntypedStorage

from dynaxx.memory.heap import Heap

# by the innermost module of dynaxx on the stack when the memory was taken; user code runs under model.network
KINDS = {
    "dynaxx.model.network": "activations",
    "dynaxx.model.tape": "cotangents",
    "dynaxx.model.generic": "cotangents",
    "dynaxx.assembly.pullback": "cotangents",
    "dynaxx.estimators": "cotangents",
    "dynaxx.likelihoods": "cotangents",
    "dynaxx.counter": "cotangents",
}

# they wrap operations that others ask for
AROUND = ("dynaxx.memory", "dynaxx.model.guards", "dynaxx.model.linear_maps", "dynaxx.matmul")


@dataclass(frozen=True)
class Entry:
    """One allocation: its bytes, and the function of dynaxx that asked for it."""

    size: int
    module: str
    function: str

    @property
    def kind(self) -> str:
        """activations, cotangents or workspace."""
        return next((kind for room, kind in KINDS.items() if self.module.startswith(room)), "workspace")


class Ledger:
    """Live storages by serial number, and the order in which they came and went."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.events: list[tuple[int, bool]] = []  # (serial, whether it came)
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}

    def ignore(self, tensor: Tensor) -> None:
        """Memory that was there before."""
        storage = tensor.untyped_storage()
        key = id(storage)
        self._known[key] = weakref.ref(storage, lambda _: self._known.pop(key, None))

    def add(self, tensor: Tensor) -> None:
        """Enter a tensor's storage, unless it is known: a view takes nothing."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        serial, entry = len(self.entries), Entry(storage.nbytes(), *_asked_by())
        self.entries.append(entry)
        self.events.append((serial, True))

        def gone(_: object) -> None:
            self._known.pop(key, None)
            self.events.append((serial, False))

        self._known[key] = weakref.ref(storage, gone)

    def scratch(self, size: int) -> None:
        """Memory that one operation takes and gives back."""
        serial = len(self.entries)
        self.entries.append(Entry(size, *_asked_by()))
        self.events += [(serial, True), (serial, False)]

    def peak(self, keeps: bool) -> Peak:
        """Play the events back.

        Args:
            keeps: whether freed memory stays with the process, see ``Heap``.
        """
        heap, highest, moment = Heap(keeps), 0, 0
        for number, (serial, came) in enumerate(self.events):
            (heap.take if came else heap.give)(serial, self.entries[serial].size)
            if heap.resident > highest:
                highest, moment = heap.resident, number + 1
        live, end = _live(self.events[:moment]), _live(self.events)
        passing, kept = ([self.entries[i] for i in sorted(part)] for part in (live - end, live & end))
        return Peak(highest, passing, kept)


@dataclass(frozen=True)
class Peak:
    """The highest moment.

    Args:
        resident: bytes.
        passing: what was live then and is given back before the end.
        kept: what was live then and still is at the end.
    """

    resident: int
    passing: list[Entry]
    kept: list[Entry]


def _live(events: list[tuple[int, bool]]) -> set[int]:
    live: set[int] = set()
    for serial, came in events:
        (live.add if came else live.discard)(serial)
    return live


def _asked_by() -> tuple[str, str]:
    """Module and function of the innermost frame of dynaxx; backward passes on a GPU run on a thread without one."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("dynaxx.") and not module.startswith(AROUND):
            return module, frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return "dynaxx.model.tape", "reverse pass"


def largest(entries: list[Entry], count: int) -> list[tuple[str, int]]:
    """(who asked, bytes) of the ``count`` functions that hold most."""
    sums: Counter[str] = Counter()
    for entry in entries:
        sums[f"{entry.module.removeprefix('dynaxx.')}: {entry.function}"] += entry.size
    return sums.most_common(count)
