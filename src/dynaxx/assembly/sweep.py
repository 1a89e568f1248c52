"""One pass over the data with every collector listening, and the sampling error estimated beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from dynaxx.estimators import Estimator
from dynaxx.model.data import Batch, Data
from dynaxx.model.network import Network
from dynaxx.model.rehearsal import rehearse
from dynaxx.model.rules.base import norms
from dynaxx.model.tape import Arrangements, Layers, Tape
from dynaxx.operators.base import Operator, Sampling

COTANGENT_BYTES = 2**28  # pulled cotangents that exist at one time
ERROR_DRAWS = 256  # example draws behind the standard error of a trace


class Collector(Protocol):
    """What a form gathers while the sweep goes by."""

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Take in one chunk of cotangents (K, N, P, C) of one batch."""

    def finish(self, count: int, sampling: Sampling | None) -> Operator:
        """The operator, as the mean over ``count`` examples."""


class Sweeper:
    """Runs tapes over the data: rehearses on the first batch, numbers the examples, cuts cotangents into chunks that
    fit.

    Args:
        network, data, estimator: what is measured, on what, how.
        progress: show a progress bar.
    """

    def __init__(self, network: Network, data: Data, estimator: Estimator, progress: bool = False) -> None:
        self.network, self.data, self.estimator, self.progress = network, data, estimator, progress
        self.layers = Layers(network)
        self.arrangements: Arrangements | None = None

    def tapes(self) -> Iterator[tuple[Tape, Tensor]]:
        """(tape, global example indices) for each batch of one pass. The caller holds ``network.guarded()``."""
        with bar(self.data, self.progress, "batches") as batches:
            for batch in batches:
                yield self.tape(batch), self.keys(batch)

    def tape(self, batch: Batch) -> Tape:
        """The forward pass of one batch; the first one also rehearses."""
        if self.arrangements is None:
            full = Tape(self.network, self.layers, batch, {}, self.estimator.group)
            self.arrangements = rehearse(self.network, self.layers, batch, full)
            full.arrange(self.arrangements)
            return full
        return Tape(self.network, self.layers, batch, self.arrangements, self.estimator.group)

    def keys(self, batch: Batch) -> Tensor:
        """Global indices of a batch's examples."""
        return torch.arange(batch.start, batch.start + batch.count, device=self.network.device)

    def chunks(self, tape: Tape, keys: Tensor) -> Iterator[Tensor]:
        """The batch's cotangents, as many at a time as COTANGENT_BYTES allows."""
        size = max(1, COTANGENT_BYTES // max(1, tape.entries * tape.output.z.element_size()))
        return self.estimator.chunks(tape.output, keys, size)

    def run(self, collectors: Sequence[Collector]) -> list[Operator]:
        """One sweep, one operator per collector."""
        count, sampling = 0, None
        with self.network.guarded():
            for tape, keys in self.tapes():
                if count == 0:
                    sampling = self.sampling_of_first(tape, keys)
                for cotangents in self.chunks(tape, keys):
                    for collector in collectors:
                        collector.add(tape, keys, cotangents)
                count += len(keys)
        sampling = None if sampling is None else sampling.over(count)
        return [collector.finish(count, sampling) for collector in collectors]

    def sampling_of_first(self, tape: Tape, keys: Tensor) -> Sampling | None:
        """Root of the variance per example of the sampled trace, pooled over groups of the first batch.

        A single draw per example cannot tell sampling noise from differences between examples, so some examples are
        drawn again, at least twice, from streams of their own: about ERROR_DRAWS draws in all, on at most half as many
            examples.
        """
        estimator = self.estimator
        if estimator.samples == 0:
            return None
        size = tape.group
        groups = max(1, min(len(keys), ERROR_DRAWS // 2) // size)
        few = min(groups * size, len(keys))
        draws = max(2, math.ceil(ERROR_DRAWS / few), 16 if groups == 1 else 2)
        part = self.tape(tape.batch.part(0, few)) if few < len(keys) else tape
        extra = estimator.again(draws)
        size = max(1, COTANGENT_BYTES // max(1, part.entries * part.output.z.element_size()))
        chunks = extra.chunks(part.output, keys[:few], size)
        # (draws, groups): the trace of a group from one draw
        traces = torch.cat([example_norms(part, cotangents) for cotangents in chunks]).double() * draws
        variance = float(traces.var(0).sum()) / few
        return Sampling(estimator.samples, math.sqrt(variance / estimator.samples))


def example_norms(tape: Tape, cotangents: Tensor) -> Tensor:
    """Squared norm of each example's (or group's) whole gradient, (K, N):

    their sum over N examples, divided by N, is the trace.
    """
    groups = -(-cotangents.shape[1] // tape.group)
    total = cotangents.new_zeros(len(cotangents), groups)
    for name, uses in tape.pulled(cotangents).items():
        total = total + norms(uses, tape.network.parameters[name].numel())
    return total


@contextmanager
def bar(items: Iterable[Any], show: bool, what: str) -> Iterator[Iterable[Any]]:
    """A rich progress bar around an iterable, if asked for and on a terminal."""
    if not show:
        yield items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), transient=True
    ) as progress:
        total = len(items) if isinstance(items, Sized) else None
        yield progress.track(items, total=total, description=what)
