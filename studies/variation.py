"""Coefficient of variation against cost: predicted from the exact variance formulas, and drawn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from runs import bootstrap
from torch import Tensor, nn

import dynaxx
from dynaxx.linalg.diagonal import hutchinson_diagonal, xdiag
from dynaxx.linalg.trace import hutch_plus_plus, hutchinson, xnystrace, xtrace

Draw = Callable[[int], tuple[Tensor | None, float]]  # seed -> (diagonal or None, trace)
TENTHS = (0.1, 0.5, 0.9)


def predicted(model: nn.Module, batch: Any, params: Any, groups: Sequence[str | int] = ("example", 8, "batch")) -> Any:
    """Spread over entries (10 %, median, 90 %) of the coefficient of variation of one draw, by estimator and group.

    Exact: no number is drawn. ``batch`` must be one batch.
    """
    options: list[dict[str, Any]] = [
        {"estimator": "hutchinson", "factor": factor} for factor in ("symmetric", "householder", "cholesky", "eigen")
    ]
    options.append({"estimator": "monte_carlo"})
    found = []
    for option in options:
        for group in groups:
            error = dynaxx.predicted_error(model, batch, params=params, group=group, **option)
            ratio = error.coefficient_of_variation()[error.diagonal > 1e-9 * error.diagonal.max()]
            ordered = ratio.sort().values
            spread = [float(ordered[round(q * (len(ordered) - 1))]) for q in TENTHS]
            stderr = error.trace_stderr
            trace = None if stderr is None else stderr / error.trace
            found.append({**option, "group": group, "diagonal": spread, "trace": trace})
    return found


def drawn(draw: Draw, diagonal: Tensor, trace: float, draws: int, unit: float) -> dict[str, Any]:
    """Relative errors of ``draws`` independent runs, with bootstrap intervals over runs, and time in units.

    The diagonal's is the median over entries of root mean squared error over truth, entries below 1e-9 of the largest
    left out.

    Args:
        diagonal, trace: the truth.
        unit: seconds of one forward and backward pass on the same batch.
    """
    diagonals, traces, times = [], [], []
    for seed in range(draws):
        started = time.perf_counter()
        found, total = draw(seed)
        times.append(time.perf_counter() - started)
        traces.append(total / trace - 1)
        if found is not None:
            diagonals.append(found.double())
    keep = diagonal > 1e-9 * diagonal.max()
    result: dict[str, Any] = {
        "draws": draws,
        "units": statistics.median(times) / unit,
        "trace": bootstrap(torch.tensor(traces, dtype=torch.float64), lambda e: float(e.square().mean().sqrt())),
    }
    if diagonals:
        places = keep.nonzero()[:, 0]
        places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:2000]]
        errors = torch.stack([d[places] for d in diagonals]) / diagonal[places].double() - 1
        result["diagonal"] = bootstrap(errors, lambda e: float(e.square().mean(0).sqrt().median()))
    return result


def passes(model: nn.Module, batch: Any, repeats: int = 5) -> float:
    """Seconds of one forward and backward pass of the mean log likelihood, the median of ``repeats``."""
    inputs = batch[0] if isinstance(batch, tuple) else batch
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        z = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        torch.autograd.grad(z.log_softmax(-1)[..., 0].mean(), [p for p in model.parameters() if p.requires_grad])
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def candidates(model: nn.Module, batch: Any, samples: Sequence[int], sketches: Sequence[int]) -> dict[str, Draw]:
    """Every estimator of the diagonal or the trace: name -> how to draw it."""

    def entries(**options: Any) -> Draw:
        def draw(seed: int) -> tuple[Tensor | None, float]:
            F = dynaxx.fisher(model, batch, form="diagonal", seed=seed, **options)
            return F.diagonal(), float(F.values.sum(dtype=torch.float64))

        return draw

    def deflated(sketch: int) -> Draw:
        def draw(seed: int) -> tuple[Tensor | None, float]:
            F = dynaxx.fisher(model, batch)
            found = dynaxx.deflated(F, sketch=sketch, samples=sketch, seed=seed)
            return found.diagonal, float(found.trace)

        return draw

    def black_box(method: Any, number: int) -> Draw:
        def draw(seed: int) -> tuple[Tensor | None, float]:
            found = method(dynaxx.fisher(model, batch), samples=number, seed=seed)
            return (None, float(found)) if isinstance(found, float) else (found.diagonal, float(found.diagonal.sum()))

        return draw

    named: dict[str, Draw] = {}
    for s in samples:
        for group in ("example", "batch"):
            named[f"signs, {group}, {s}"] = entries(estimator="hutchinson", samples=s, group=group)
            named[f"labels, {group}, {s}"] = entries(estimator="monte_carlo", samples=s, group=group)
        named[f"signs, Cholesky, {s}"] = entries(estimator="hutchinson", samples=s, factor="cholesky")
        named[f"signs, head exact, {s}"] = entries(estimator="hutchinson", samples=s, head="exact")
        if s > 1:
            named[f"signs, Hadamard, {s}"] = entries(estimator="hutchinson", samples=s, probes="hadamard")
    for k in sketches:
        named[f"deflated, {k}"] = deflated(k)
        named[f"XDiag, {k}"] = black_box(xdiag, k)
        named[f"Bekas, {k}"] = black_box(hutchinson_diagonal, k)
        named[f"Hutchinson over parameters, {k}"] = black_box(hutchinson, k)
        named[f"Hutch++, {k}"] = black_box(hutch_plus_plus, k)
        named[f"XTrace, {k}"] = black_box(xtrace, k)
        named[f"XNysTrace, {k}"] = black_box(xnystrace, k)
    return named


def timed(call: Callable[[], object], repeats: int, ahead: int = 1) -> float:
    """Seconds of a call, the median of ``repeats`` after ``ahead`` that are not counted."""
    times = []
    for _ in range(repeats + ahead):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[ahead:])


def in_passes(calls: Mapping[str, Callable[[], object]], unit: Callable[[], float], repeats: int) -> dict[str, Any]:
    """Times of calls as multiples of a unit measured right before and after each: (lowest, median, highest).

    Calls take turns, so that a busy spell of a shared machine hits all of them.
    """
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    before = unit()
    for _ in range(repeats):
        for name, call in calls.items():
            took = timed(call, 1, ahead=0)
            after = unit()
            ratios[name].append(2 * took / (before + after))
            before = after
    return {name: [min(found), statistics.median(found), max(found)] for name, found in ratios.items()}
