"""The workflow's view of models and data: batches, what the model says of them, and which examples stand for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dynaxx.errors import InputError
from dynaxx.likelihoods import Likelihood
from dynaxx.model.data import Batch, Data, map_tensors
from dynaxx.model.network import Network, Output, Predict
from dynaxx.model.selection import unwrap


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters live; the CPU where it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def batches(model: nn.Module, data: Any) -> Iterator[Batch]:
    """One pass over ``data``, on the model's device."""
    return iter(Data(data, device_of(model)))


@contextmanager
def unmoved(data: Any) -> Iterator[None]:
    """A pass inside leaves no trace: torch's global generator and those of a DataLoader are put back at the end.

    So looking at training data changes nothing about the order in which training reads it.
    """
    owners = [data, *(getattr(data, name, None) for name in ("sampler", "batch_sampler", "dataset"))]
    generators = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners) if isinstance(g, Generator)}
    states = [(generator, generator.get_state()) for generator in generators.values()]
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


class Reader:
    """A model and a likelihood as (outputs, labels) of batches, in whatever mode the model is.

    Raises:
        InputError: the model has no parameter that requires grad.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood, predict: Predict | None = None) -> None:
        self.model, self.likelihood = unwrap(model), likelihood
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()  # a Network is made for evaluation; reading in training mode is this class's own affair
        try:
            self._network = Network(self.model, likelihood, None, predict)
        finally:
            for module, mode in modes:
                module.training = mode

    def __call__(self, batch: Batch) -> Output:
        """Outputs (N, P, C) and labels of a batch.

        Raises:
            InputError: the batch has no labels, or outputs or labels do not fit the likelihood; NaN outputs, which a
                diverged training gives.
        """
        output = self._network(batch)
        if output.targets is None:
            raise InputError(f"batch {batch.index} has no labels; training and validation need (x, y)")
        return output

    def log_likelihood(self, output: Output) -> Tensor:
        """log p(y|x) per example, summed over unmasked positions, (N,)."""
        values = self.likelihood.log_prob(output.z, output.targets)  # type: ignore[arg-type]
        return (values if output.mask is None else values * output.mask).flatten(1).sum(1)


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
