"""What advice rests on, measured on the data: sizes, how sure the model is, how concentrated the spectrum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from dynaxx import estimators, likelihoods
from dynaxx.assembly.concentration import Concentration, measure
from dynaxx.assembly.sweep import Sweeper
from dynaxx.estimate import Estimate
from dynaxx.likelihoods import Likelihood
from dynaxx.model.data import Batch, Data
from dynaxx.model.network import Network, Predict
from dynaxx.model.selection import Selector

SKETCHES = (4, 8, 16, 32, 64)
PIECE, PIECES = 4, 8  # consecutive examples that are looked at together, and at least so many such pieces of the data


@dataclass(frozen=True)
class Facts:
    """What the advice rests on, measured on the data.

    Args:
        examples: N. outputs: C. positions: P, places of an example that have an output of their own. parameters: p.
        columns: K, cotangents an example has under the exact estimator.
        surprise: expected share of sampled labels that differ from the likeliest one, 1 - mean max p; 1/2 where labels
            are not classes.
        entries: layer-output entries of an example, which is what one cotangent occupies.
        itemsize: bytes of a parameter.
        participation_ratio: (tr F)^2 / |F|_F^2, an effective rank, with its standard error, from the Gram matrix of a
            few examples' sampled gradients; None where the goal does not ask for it, NaN where F is zero.
        within: mean of |F_n|_F^2 over (tr F)^2.
        noise: by estimator, relative standard error of the trace from one draw per example, measured.
        unevenness: mean of (tr F_n)^2 over (tr F)^2, one where all examples weigh alike.
        remainders: by columns of a sketch, the shares of tr F and of |F|_F (both over tr F) that deflation leaves.
    """

    examples: int
    outputs: int
    positions: int
    parameters: int
    columns: int
    surprise: float
    entries: int
    itemsize: int
    participation_ratio: Estimate | None = None
    within: float = math.nan
    noise: Mapping[str, float] = field(default_factory=dict)
    unevenness: float = 1.0
    remainders: Mapping[int, tuple[float, float]] = field(default_factory=dict)


def gather(
    model: nn.Module,
    data: Any,
    likelihood: str | Likelihood,
    params: Selector,
    predict: Predict | None,
    concentrated: bool,
) -> Facts:
    """Look at the data once, and at a few examples' gradients if ``concentrated``."""
    meaning = likelihoods.resolve(likelihood)
    network = Network(model, meaning, params, predict)
    exact = estimators.resolve("exact", meaning)
    sweeper = Sweeper(network, Data(data, network.device), exact)
    examples = positions = columns = entries = outputs = 0
    certainty = 0.0
    pieces = _Pieces()
    with network.guarded():
        for batch in sweeper.data:
            if examples == 0:
                tape = sweeper.tape(batch)
                output, entries = tape.output, tape.entries // batch.count
                positions, columns, outputs = output.z.shape[1], exact.number(output), output.z.shape[2]
            else:
                with torch.no_grad():
                    output = network(batch)
            examples += batch.count
            pieces.offer(batch)
            if isinstance(meaning, likelihoods.Categorical):
                certainty += float(torch.softmax(output.z.detach().float(), -1).amax(-1).mean(1).sum())
    surprise = 1 - certainty / examples if isinstance(meaning, likelihoods.Categorical) else 0.5
    size = network.layout.size
    basic = Facts(examples, outputs, positions, size, columns, surprise, entries, network.layout.dtype.itemsize)
    if not concentrated:
        return basic
    found = measure(network, list(pieces), examples)
    return replace(basic, **_concentration(found), noise=_noise(sweeper, pieces.kept[0][0], examples, found.trace()))


def _noise(sweeper: Sweeper, batch: Batch, examples: int, trace: float) -> dict[str, float]:
    found = {}
    for name in ("hutchinson", "monte_carlo") if trace > 0 else ():
        estimator = estimators.resolve(name, sweeper.network.likelihood)
        sampling = Sweeper(sweeper.network, sweeper.data, estimator).sampling(batch, examples)
        found[name] = sampling.trace_stderr / trace if sampling else 0.0
    return found


class _Pieces:
    """A few pieces of the data at even distances, chosen while it goes by and its length is not known."""

    def __init__(self) -> None:
        self.kept: list[tuple[Batch, int]] = []
        self.seen, self.stride = 0, 1

    def offer(self, batch: Batch) -> None:
        """Take what falls on the stride; with twice too many, every second stays and the stride doubles."""
        for start in range(0, batch.count, PIECE):
            if self.seen % self.stride == 0:
                self.kept.append((batch, start))
            if len(self.kept) >= 2 * PIECES:
                self.kept, self.stride = self.kept[::2], 2 * self.stride
            self.seen += 1

    def __iter__(self) -> Iterator[Batch]:
        for batch, start in self.kept:
            yield batch.part(start, min(start + PIECE, batch.count))


def _concentration(found: Concentration) -> dict[str, Any]:
    ratio = found.participation_ratio()
    if math.isnan(ratio):
        return {"participation_ratio": ratio}
    return {
        "participation_ratio": ratio,
        "within": found.within(),
        "unevenness": found.unevenness(),
        "remainders": {k: found.remainder(k) for k in SKETCHES if k <= found.columns},
    }
