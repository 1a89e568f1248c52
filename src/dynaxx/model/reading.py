"""Reading data once without a trace: batches on the model's device, and the first examples as one batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dynaxx.errors import InputError
from dynaxx.model.data import Batch, Data, map_tensors
from dynaxx.model.network import Predict


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters live; the CPU where it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def batches(model: nn.Module, data: Any) -> Iterator[Batch]:
    """One pass over ``data``, on the model's device."""
    return iter(Data(data, device_of(model)))


def generators_of(data: Any) -> list[Generator]:
    """The random generators that a DataLoader reads with, each once."""
    owners = [data, *(getattr(data, name, None) for name in ("sampler", "batch_sampler", "dataset"))]
    found = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners) if isinstance(g, Generator)}
    return list(found.values())


@contextmanager
def unmoved(data: Any) -> Iterator[None]:
    """A pass inside leaves no trace: torch's global generator and those of a DataLoader are put back at the end.

    So looking at training data changes nothing about the order in which training reads it.
    """
    states = [(generator, generator.get_state()) for generator in generators_of(data)]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def require_rereadable(what: str, data: Any) -> None:
    """Refuse an iterator that one epoch would use up.

    Raises:
        InputError: it is one.
    """
    if isinstance(data, Iterator):
        raise InputError(
            f"{what} is a {type(data).__name__}, which can be read once, and training reads it every epoch; give a "
            f"list or a DataLoader"
        )


def forward(model: nn.Module, batch: Batch, predict: Predict | None = None) -> Any:
    """The model's raw answer to a batch."""
    return predict(model, batch.raw) if predict is not None else model(*batch.args, **batch.kwargs)


def gather(data: Any, examples: int, seed: int = 0) -> Any:
    """The first ``examples`` examples of a pass, as one batch where they fit together, else as a list of batches.

    A loader that shuffles with torch's global generator is read under ``seed``, so that the answer is the same each
    time; the state of its own generator, if it has one, is put back.

    Raises:
        InputError: data is empty.
    """
    parts: list[Batch] = []
    left = examples
    with unmoved(data):
        torch.manual_seed(seed)
        for batch in Data(data, torch.device("cpu")):
            parts.append(batch.part(0, min(batch.count, left)))
            left -= parts[-1].count
            if left <= 0:
                break
    raws = [part.raw for part in parts]
    if len(raws) > 1:
        return _joined(raws)
    return tuple(raws[0]) if isinstance(raws[0], list) else raws[0]


def _joined(raws: list[Any]) -> Any:
    leaves: list[list[Tensor]] = []
    for raw in raws:
        found: list[Tensor] = []

        def add(leaf: Any, found: list[Tensor] = found) -> Any:
            if isinstance(leaf, Tensor):
                found.append(leaf)
            return leaf

        map_tensors(add, raw)
        leaves.append(found)
    if len({tuple(tuple(t.shape[1:]) for t in found) for found in leaves}) > 1 or any(
        t.dim() == 0 for found in leaves for t in found
    ):
        return raws
    columns = iter([torch.cat(column) for column in zip(*leaves, strict=True)])
    joined = map_tensors(lambda leaf: next(columns) if isinstance(leaf, Tensor) else leaf, raws[0])
    return tuple(joined) if isinstance(joined, list) else joined
