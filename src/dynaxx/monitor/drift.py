"""Has the data moved away from what the model was measured on? A deployed model on new examples against its record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.model.selection import unwrap
from dynaxx.monitor.look import Look
from dynaxx.monitor.presets import PRESETS
from dynaxx.monitor.snapshot import Probe
from dynaxx.monitor.subject import Subject
from dynaxx.track.store import Store


@dataclass(frozen=True)
class Baseline:
    """What a model was like on the examples it was accepted with.

    Args:
        values: name -> number; only those with a standard error are compared.
        count: examples of that probe: effective rank and dimension grow with it.
        preset: how it was measured.
        step: of the training.
    """

    values: dict[str, float]
    count: int
    preset: str
    step: int

    @classmethod
    def of(cls, look: Look, count: int, preset: str, step: int = 0) -> Baseline:
        """From a look."""
        return cls(dict(look.values), count, preset, step)

    @classmethod
    def stored(cls, store: Store, run_id: int, step: int | None = None) -> Baseline:
        """From a run that a monitor recorded, its last look by default.

        Raises:
            InputError: the run was not recorded by a monitor, or has no look at that step.
        """
        protocol = store.info(run_id).config.get("dynaxx")
        metrics = store.metrics(run_id)
        if not isinstance(protocol, dict) or "dynaxx/trace" not in metrics:
            raise InputError(f"run {run_id} holds no look of a monitor; record one with Monitor(..., store=...)")
        steps = metrics["dynaxx/trace"].steps
        chosen = int(steps[-1]) if step is None else step
        if chosen not in steps:
            raise InputError(f"run {run_id} has no look at step {step}; it has {steps[:8].tolist()}, ...")
        values: dict[str, float] = {}
        for name, columns in metrics.items():
            for at, value, stderr in zip(columns.steps, columns.values, columns.stderrs, strict=True):
                if at == chosen and math.isfinite(stderr):
                    values[name] = Estimate(float(value), float(stderr), int(protocol["probe"]["count"]), False)
        return cls(values, int(protocol["probe"]["count"]), str(protocol["preset"]), chosen)


@dataclass(frozen=True)
class Shift:
    """One number on new data against its baseline.

    Args:
        z: (now - then) / sqrt(now.stderr^2 + then.stderr^2); the two samples are independent.
        significant: |z| is beyond the threshold.
    """

    name: str
    then: Estimate
    now: Estimate
    z: float
    significant: bool


def drift(
    model: nn.Module, probe: Probe, baseline: Baseline, *, threshold: float = 4.0, params: Any = None, **options: Any
) -> list[Shift]:
    """Compare a model's geometry on new examples with its baseline, the largest shift first.

    Labels are not needed; with labels the loss is compared too. Before comparing, make sure that model and baseline
    belong together: different weights shift everything.

    Args:
        model: as deployed.
        probe: new examples, as many as the baseline's.
        baseline: from ``Baseline.of`` or ``Baseline.stored``.
        threshold: in standard errors; 4 keeps a dozen comparisons below one false alarm in a thousand if the errors are
            normal.
        params, options: as the baseline was made, see ``Subject``.

    Returns:
        A Shift for each number that has a standard error in both.

    Raises:
        InputError: the numbers of examples differ, or nothing can be compared.

    Cost: one look of the baseline's preset.

    >>> import torch
    >>> from dynaxx.monitor.economy import economy
    >>> model, x = nn.Linear(4, 3), torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> look = economy(Subject(model, Probe("accepted", x[:32])))
    >>> shifts = drift(model, Probe("today", 10 * x[32:]), Baseline.of(look, 32, "economy"))
    >>> any(shift.significant for shift in shifts)
    True
    """
    if probe.count != baseline.count:
        raise InputError(
            f"probe {probe.name!r} has {probe.count} examples, the baseline {baseline.count}; effective rank and "
            "dimension grow with the number of examples, so give as many"
        )
    look = PRESETS[baseline.preset](Subject(unwrap(model), probe, params, **options))
    shifts = []
    for name, then in baseline.values.items():
        now = look.values.get(name)
        if isinstance(now, Estimate) and isinstance(then, Estimate) and now.stderr + then.stderr > 0:
            z = (float(now) - float(then)) / math.hypot(now.stderr, then.stderr)
            shifts.append(Shift(name, then, now, z, abs(z) >= threshold))
    if not shifts:
        raise InputError("nothing can be compared: baseline and look share no number with a standard error")
    return sorted(shifts, key=lambda shift: -abs(shift.z))
