"""``dynaxx.estimate_memory``: the peak of a call, before it runs."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dynaxx.errors import InputError, bytes_as_text
from dynaxx.fisher import fisher
from dynaxx.memory.dry import Dry, Enough
from dynaxx.memory.ledger import Ledger, largest
from dynaxx.model.data import Data, map_tensors, read_batch, tensors

SITES = 5  # functions that are named
OF_NUMBERS = ("dynaxx.spectrum", "dynaxx.linalg", "dynaxx.operators")  # rooms whose way depends on values


@dataclass(frozen=True)
class MemoryEstimate:
    """What is held at the highest moment of a call, bytes.

    Args:
        total: everything below.
        model: parameters and buffers, held before the call.
        data: the batches, held before the call.
        activations: what the forward pass keeps for the reverse passes.
        cotangents: drawn in output space and pulled back to layer outputs.
        result: what the answer keeps.
        workspace: everything else, such as chunks of per-example gradients.
        holes: freed, and kept by the C library for later (CPU on Linux).
        live: highest sum of tensors, the growth where freed memory goes back at once: on a GPU, and on Linux with
            MALLOC_MMAP_THRESHOLD_=65536 in the environment, which makes allocations slower.
        largest: (function of dynaxx, bytes) of those that hold most of the growth.
        stopped: why the run ended before the call did, or "": numbers were needed to go on (statistics of a spectrum),
            or it lasted too long even without numbers. The figures are a lower bound then.
    """

    total: int
    model: int
    data: int
    activations: int
    cotangents: int
    result: int
    workspace: int
    holes: int
    live: int
    largest: tuple[tuple[str, int], ...]
    stopped: str = ""

    @property
    def growth(self) -> int:
        """What the call adds at its peak to what was held before."""
        return self.total - self.model - self.data

    def __str__(self) -> str:
        names = ("model", "data", "activations", "cotangents", "result", "workspace", "holes")
        parts = ", ".join(f"{name} {bytes_as_text(getattr(self, name))}" for name in names)
        return f"{bytes_as_text(self.total)} ({parts}){f', at least: {self.stopped}' if self.stopped else ''}"


def estimate_memory(
    model: nn.Module,
    data: Any,
    *,
    call: Callable[[nn.Module, Any], Any] | None = None,
    batch_size: int | None = None,
    seconds: float = 60.0,
    **options: Any,
) -> MemoryEstimate:
    """Predict the peak memory of ``dynaxx.fisher(model, data, **options)``, or of any call, before it runs.

    The call is run on tensors that have shapes and no storage, and every allocation is noted with its end. So it is
    the engine itself that is asked, chunk sizes and all, and the model is not touched. The 16 calls that took 200 MB or
    more in docs/scale-limits.md were predicted within 20 %; small ones are off by more. The interpreter's and torch's
    own memory (about 0.4 GB) and what libraries take inside an operation are not in it.

    Args:
        model: any module whose forward pass does not read values to choose shapes.
        data: a batch, or an iterable of batches, of which the first is taken as the largest.
        call: call(model, data), if it is not ``fisher``: ``lambda m, d: dynaxx.fisher(m, d).trace()``. Give linear
            algebra on spectra a look of its own: Lanczos stops when values say so, and here there are none.
        batch_size: examples in a batch, if not as many as in the one given.
        seconds: stop there; see ``stopped``.
        options: of ``dynaxx.fisher``.

    Returns:
        A MemoryEstimate.

    Raises:
        InputError: what the call would raise, SizeError among it; options given beside ``call``; or the model cannot
            be run without numbers.

    Cost: no arithmetic; 1.4 to 36 s of one core in the cells of benchmarks/scale.py, 2.1 s at the median. Memory: no
        tensor.

    Source: torch's fake tensors; the idea of a dry run is that of accelerate's ``estimate-memory``.

    >>> model = nn.Linear(1000, 1000)
    >>> estimate = estimate_memory(model, torch.randn(8, 1000), form="diagonal", estimator="hutchinson")
    >>> estimate.model, estimate.result
    (4004000, 4004000)
    """
    if call is not None and options:
        raise InputError(f"options {sorted(options)} belong to dynaxx.fisher; with call= put them inside it")
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size={batch_size!r}; expected a whole number of at least 1")
    run = call or (lambda m, d: fisher(m, d, **options))
    ledger, fake = Ledger(), FakeTensorMode(allow_non_fake_inputs=True)
    held: list[Tensor] = [fake.from_tensor(tensor) for tensor in (*model.parameters(), *model.buffers())]
    batches = [_without_numbers(batch, fake, batch_size) for batch in _first(data)]
    given = list(tensors(batches))
    for tensor in (*held, *given):
        ledger.ignore(tensor)
    answer, stopped = None, ""
    try:
        with fake, Dry(ledger, seconds):
            answer = run(model, batches[0] if Data(data, torch.device("cpu")).single else batches)
    except Enough:
        stopped = f"it lasts longer than {seconds:g} s even without numbers"
    except Exception as error:
        room = _room(error)
        if room.startswith(OF_NUMBERS):
            stopped = f"{room} goes by numbers, and there are none"
        elif isinstance(error, InputError):
            raise
        else:
            raise InputError(
                f"this call cannot be run without numbers: {type(error).__name__} in {room}, "
                f"{(str(error).splitlines() or [''])[0][:150]}; measure it on a small batch with "
                f"dynaxx.memory.peak.measured()"
            ) from error
    peak = ledger.peak(keeps=sys.platform == "linux" and all(tensor.device.type == "cpu" for tensor in held))
    del answer
    sums = dict.fromkeys(("activations", "cotangents", "result", "workspace"), 0)
    for entry in peak.passing:
        sums[entry.kind] += entry.size
    for entry in peak.kept:
        sums["result" if entry.kind != "activations" else "activations"] += entry.size
    before = {"model": _bytes(held), "data": _bytes(given)}
    return MemoryEstimate(
        peak.resident + sum(before.values()), **before, **sums, holes=peak.resident - sum(sums.values()),
        live=ledger.peak(keeps=False).resident,
        largest=tuple(largest(peak.passing + peak.kept, SITES)), stopped=stopped,
    )  # fmt: skip


def _first(data: Any) -> list[Any]:
    """The first batch; twice where there are more, because one is held while the next is read."""
    if isinstance(data, Iterator):
        raise InputError(
            f"data is a {type(data).__name__}, and looking at its first batch would take it away from the call; give "
            f"a batch, a list or a DataLoader"
        )
    source = Data(data, torch.device("cpu"))
    first = [batch.raw for batch in islice(iter(source), 1 if source.single else 2)]
    return first[:1] * len(first)


def _without_numbers(batch: Any, fake: FakeTensorMode, size: int | None) -> Any:
    count = read_batch(batch, torch.device("cpu")).count

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        empty: Tensor = fake.from_tensor(leaf)
        if size is not None and leaf.dim() and len(leaf) == count:
            with fake:
                empty = torch.empty(size, *leaf.shape[1:], dtype=leaf.dtype, device=leaf.device)
        return empty

    return map_tensors(convert, batch)


def _room(error: BaseException) -> str:
    """The innermost module of dynaxx that an error came through."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((str(n) for n in reversed(names) if n.startswith("dynaxx.") and ".memory" not in n), "the model")


def _bytes(held: list[Tensor]) -> int:
    storages = {id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(storages.values())
