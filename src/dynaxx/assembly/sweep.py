"""One pass over the data with every collector listening, and the sampling error estimated beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from dynaxx.assembly.head import find_head, tied_rest
from dynaxx.errors import InputError
from dynaxx.estimators import Estimator
from dynaxx.model.data import Batch, Data
from dynaxx.model.network import Network
from dynaxx.model.rehearsal import rehearse, spread_out
from dynaxx.model.rules.base import norms
from dynaxx.model.tape import Arrangements, Layers, Tape
from dynaxx.operators.base import Operator, Sampling

COTANGENT_BYTES = 2**28  # pulled cotangents that exist at one time
STREAM_BYTES = 2**22  # the same for forms that gain nothing from many at once: memory that was just used is fast
ERROR_DRAWS = (16, 128)  # example draws behind the standard error of a trace, at least and at most
ERROR_ENTRIES = 2**22  # pulled entries that are cheap whatever the sweep itself costs


class Gatherer(Protocol):
    """What listens while the sweep goes by. It may say ``streams = True``: that it takes cotangents one after another
    as cheaply as together.
    """

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Take in one chunk of cotangents (K, N, P, C) of one batch."""


class Collector(Gatherer, Protocol):
    """What makes a form of it.

    ``head``: whether it takes the head's share in closed form, so that nothing of it is sampled.
    """

    head: bool

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
        self._versions = network.versions()
        self._entries = 0  # of the first tape
        self.ready: Tape | None = None  # the tape of data that is one batch, made before it was needed: taken once

    def tapes(self) -> Iterator[tuple[Tape, Tensor]]:
        """(tape, global example indices) for each batch of one pass. The caller holds ``network.guarded()``."""
        self.require_unchanged()
        with bar(self.data, self.progress, "batches") as batches:
            for batch in batches:
                yield self.tape(batch), self.keys(batch)

    def require_unchanged(self) -> None:
        """Refuse to read a model that is no longer the one that was asked about.

        Raises:
            InputError: the selected parameters have changed.
        """
        if self.network.versions() != self._versions:
            raise InputError(
                "the model's parameters have changed since this operator was made, and its form reads the model; "
                "make a new one, or use a form that stores numbers (diagonal, kfac, dense)"
            )

    def tape(self, batch: Batch) -> Tape:
        """The forward pass of one batch.

        The first one rehearses, and any other whose shapes leave open where its examples are.
        """
        if self.ready is not None and self.ready.count == batch.count:
            tape, self.ready = self.ready, None
            return tape
        tape = Tape(self.network, self.layers, batch, self.arrangements, self.estimator.group)
        if batch.count == 1 or self.arrangements is None or not tape.fits(self.arrangements):
            tape, learnt = spread_out(tape, rehearse(self.network, self.layers, batch, tape))
            self.arrangements = learnt if batch.count > 1 else self.arrangements
        self._entries = self._entries or tape.entries
        return tape

    def keys(self, batch: Batch) -> Tensor:
        """Global indices of a batch's examples."""
        return torch.arange(batch.start, batch.start + batch.count, device=self.network.device)

    def chunks(
        self, tape: Tape, keys: Tensor, estimator: Estimator | None = None, limit: int = COTANGENT_BYTES
    ) -> Iterator[Tensor]:
        """The batch's cotangents, as many at a time as ``limit`` bytes allow."""
        size = max(1, limit // max(1, tape.entries * tape.output.z.element_size()))
        return (estimator or self.estimator).chunks(tape.output, keys, size)

    def run(self, collectors: Sequence[Collector], beside: Sequence[Gatherer] = ()) -> list[Operator]:
        """One sweep, one operator per collector; those ``beside`` them listen first."""
        count, first = self.feed([*beside, *collectors])
        with without_autocast(self.network):
            operators = [
                collector.finish(count, self.sampling(first, count, collector.head)) for collector in collectors
            ]
        for operator in operators:
            _require_finite(operator)
        return operators

    def feed(self, collectors: Sequence[Gatherer]) -> tuple[int, Batch | None]:
        """Every collector takes in every batch: how many examples there were, and the first batch."""
        count, first = 0, None
        streams = all(getattr(collector, "streams", False) for collector in collectors)
        limit = STREAM_BYTES if streams else COTANGENT_BYTES
        with self.network.guarded():
            for tape, keys in self.tapes():
                first = first or tape.batch
                with without_autocast(self.network):
                    for cotangents in self.chunks(tape, keys, limit=limit):
                        for collector in collectors:
                            collector.add(tape, keys, cotangents)
                count += len(keys)
        return count, first

    def sampling(
        self, first: Batch | None, count: int, head: bool = False, drawn: Tensor | None = None
    ) -> Sampling | None:
        """The randomness of an operator made from ``count`` examples that began with the batch ``first``.

        Args:
            head: as for ``example_norms``.
            drawn: squared gradient norms (1, groups) of that batch, where the sweep has one sample and knows them.
        """
        if self.estimator.samples == 0 or first is None:
            return None
        versions = self.network.versions()

        def stderr() -> float:
            # measured when asked for; once the weights have moved on it can no longer be known
            known = self.network.versions() == versions
            return self._trace_error(first, head, drawn) / math.sqrt(count) if known else math.nan

        return Sampling(self.estimator.samples, stderr)

    def _trace_error(self, first: Batch, head: bool, drawn: Tensor | None) -> float:
        """Root of the variance per example of the sampled trace.

        A single draw per example cannot tell sampling noise from differences between examples, so some examples are
        drawn again from streams of their own: as many draws as half of the batch's sweep had, more where that is
        cheap, and at least two an example. The sweep's own draw is one of them where it is known.
        """
        size = self.estimator.group or first.count
        budget = max(first.count * self.estimator.samples // 2, ERROR_ENTRIES * first.count // max(1, self._entries))
        budget = min(max(budget, ERROR_DRAWS[0]), ERROR_DRAWS[1])
        part = first.part(0, max(1, min(first.count, budget // 2) // size) * size)
        groups = -(-part.count // size)
        draws = max(2, math.ceil(budget / part.count), 16 if groups == 1 else 2)
        # (draws, groups): the trace of a group from one draw
        traces = [] if drawn is None else [drawn[:, :groups]]
        draws -= len(traces)
        extra = self.estimator.again(draws)
        with self.network.guarded():
            tape = self.tape(part)
            traces += [example_norms(tape, u, head) * draws for u in self.chunks(tape, self.keys(part), extra)]
        variance = float(torch.cat(traces).double().var(0).sum()) / part.count
        return math.sqrt(variance * self.estimator.variance_factor(tape.output.z) / self.estimator.samples)


def _require_finite(operator: Operator) -> None:
    """Outputs were finite, gradients need not be: sqrt at 0 has none.

    Raises:
        InputError: the operator's numbers are not finite.
    """
    for value in operator.state()[0].values():
        if value.is_floating_point() and not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
            raise InputError(
                "the outputs are finite but their gradients hold nan or inf; look for sqrt, norm or division at 0 in "
                "forward, "
                "or for values that overflow the dtype"
            )


def example_norms(tape: Tape, cotangents: Tensor, head: bool = False) -> Tensor:
    """Squared norm of each example's (or group's) whole gradient, (K, N): summed over N examples and divided by N it
    is the trace.

    Args:
        head: leave out what the head's closed form makes exact.
    """
    with without_autocast(tape.network):
        return _example_norms(tape, cotangents, head)


def _example_norms(tape: Tape, cotangents: Tensor, head: bool) -> Tensor:
    pulled = tape.pulled(cotangents)
    found = find_head(tape, pulled) if head else None
    total = cotangents.new_zeros(len(cotangents), -(-cotangents.shape[1] // tape.group))
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    for name, uses in pulled.items():
        if found is None or name not in (found.weight, found.bias):
            total = total + norms(uses, tape.network.parameters[name].numel())
        elif name == found.weight and found.tied:
            for k, examples, _, rest in tied_rest(uses):
                total[k].index_add_(0, examples, rest.sum(1))
    return total


def without_autocast(network: Network) -> AbstractContextManager[None]:
    """The user's autocast is for the forward pass; cotangents, products and sums are made in float32 at least."""
    return torch.autocast(network.device.type, enabled=False)


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
