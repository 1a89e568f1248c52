"""What a model costs: parameters, floating-point operations, bytes, and seconds by the clock."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynaxx.errors import InputError
from dynaxx.model.data import Batch
from dynaxx.model.guards import twice_differentiable
from dynaxx.model.network import Network, Predict
from dynaxx.model.reading import forward
from dynaxx.model.rehearsal import TOLERANCE
from dynaxx.monitor.snapshot import evaluating


@dataclass(frozen=True)
class Cost:
    """Of one model.

    Args:
        parameters: entries, a shared one counted once.
        flops: floating-point operations of one example, two to a multiply-add, matrix products and convolutions only.
        bytes: of the state dict, which is the file but for its header.
    """

    parameters: int
    flops: float
    bytes: int


class Latency(NamedTuple):
    """Median seconds of a forward pass, and a 95 % interval of the median from order statistics."""

    median: float
    low: float
    high: float


def cost(model: nn.Module, batch: Batch, predict: Predict | None = None) -> Cost:
    """Parameters, FLOPs of an example and bytes."""
    return Cost(
        sum(parameter.numel() for parameter in model.parameters()),
        flops(model, batch, predict)[""],
        sum(value.numel() * value.element_size() for value in model.state_dict().values()),
    )


def flops(model: nn.Module, batch: Batch, predict: Predict | None = None) -> dict[str, float]:
    """FLOPs of one example by module name; "" is the whole model.

    Fused attention is replaced by its plain form, which the counter knows.

    Cost: one forward pass.
    """
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), twice_differentiable(), counter:
        forward(model, batch, predict)
    top = type(model).__name__
    found = {
        name.removeprefix(top).removeprefix("."): sum(counts.values()) / batch.count
        for name, counts in counter.get_flop_counts().items()
        if name != "Global"
    }
    return found | {"": counter.get_total_flops() / batch.count}


def latency(
    models: Mapping[str, nn.Module], batch: Batch, predict: Predict | None = None, *, repeats: int = 11
) -> dict[str, Latency]:
    """Seconds of a forward pass in evaluation mode without gradients, models taking turns.

    Turns make a machine that grows busier in between slow all models alike. One round before the first is not counted.

    Args:
        models: name -> model, all called with ``batch``.
        repeats: rounds; the interval needs six, with fewer it is the range.
    """
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise InputError(f"repeats={repeats!r}; expected a whole number of at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 1):
        for name, model in models.items():
            with evaluating(model), torch.no_grad():
                _wait(batch)
                begin = time.perf_counter()
                forward(model, batch, predict)
                _wait(batch)
                if turn:
                    seconds[name].append(time.perf_counter() - begin)
    return {name: _median(values) for name, values in seconds.items()}


def _wait(batch: Batch) -> None:
    if any(isinstance(v, Tensor) and v.is_cuda for v in (*batch.args, *batch.kwargs.values())):
        torch.cuda.synchronize()


def _median(values: list[float]) -> Latency:
    ranked = sorted(values)
    # the k-th smallest and the k-th largest enclose the median with probability 1 - 2 P(Binomial(n, 1/2) < k)
    k = max(int(stats.binom.ppf(0.025, len(ranked), 0.5)), 1)
    return Latency(statistics.median(ranked), ranked[k - 1], ranked[-k])


def outputs(model: nn.Module, batch: Batch, predict: Predict | None = None) -> Tensor:
    """The model's output tensor, in evaluation mode and without gradients."""
    with evaluating(model), torch.no_grad():
        return Network(model, None, lambda name, parameter: True, predict, evaluating=False).raw(batch)


def require_same(found: Tensor, expected: Tensor, what: str) -> None:
    """Refuse a model that does not compute what it should.

    Raises:
        InputError: the outputs differ by more than rounding.
    """
    gap = math.inf
    if found.shape == expected.shape:
        gap = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    if not gap <= TOLERANCE.get(expected.dtype, 5e-2):
        raise InputError(
            f"{what}: outputs differ by {gap:.1e} of the largest; this model uses its channels in a way that its graph "
            f"does not show. Keep the layers concerned whole with protect=[...]"
        )
