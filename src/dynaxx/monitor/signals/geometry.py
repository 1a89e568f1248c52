"""Signals that read looks at the geometry."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from dynaxx.errors import InputError, choose
from dynaxx.monitor.signals.base import Observation, Signal
from dynaxx.monitor.signals.losses import line

UNITS = ("stderr", "nats", "relative")
REFERENCES = ("previous", "smoothed", "start")


class Change(Signal):
    """A number of the geometry has changed: |change|, or the change in one direction, against a reference.

    Early in a training everything changes by many standard errors, and that is health. So a change alone is worth
    recording, not an alarm; with ``validation`` it counts only while a validation loss rises as well.

    Args:
        metric: such as "dynaxx/posterior_entropy".
        unit: "stderr" (of the paired difference over the probe's examples), "nats" (the difference itself), or
            "relative" (over the size of the reference).
        reference: "previous" look, "smoothed" average of those before, or "start".
        direction: "both", "up" or "down".
        validation: the name of a validation loss whose slope over its last three values must be positive; None for no
            condition.
    """

    name = "change"
    remembers = (*Signal.remembers, "_validation")

    def __init__(
        self,
        metric: str,
        threshold: float = 4.0,
        *,
        unit: str = "stderr",
        reference: str = "previous",
        direction: str = "both",
        validation: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(threshold, **{"patience": 3, **options})
        self.metric, self.validation = metric, validation
        self.unit = choose("unit", unit, UNITS)
        self.reference = choose("reference", reference, REFERENCES)
        self.direction = choose("direction", direction, ("both", "up", "down"))
        self._validation: deque[tuple[int, float]] = deque(maxlen=3)

    def statistic(self, seen: Observation) -> float | None:
        """The change in the unit asked for; 0 where the validation loss does not rise."""
        if self.validation is not None and self.validation in seen.values:
            self._validation.append((seen.step, float(seen.values[self.validation])))
        change = seen.change(self.metric, self.reference)
        if change is None:
            return None
        size = float(change)
        if self.unit == "stderr":
            if not change.stderr > 0:
                return None
            size /= change.stderr
        elif self.unit == "relative":
            since = getattr(seen, self.reference)
            size /= max(abs(float(since.values[self.metric])), 1e-300)
        self.text = f"{self.metric} against {self.reference}: {change!r}"
        if self.validation is not None and (len(self._validation) < 3 or line(list(self._validation))[0] <= 0):
            return 0.0
        return {"both": abs(size), "up": size, "down": -size}[self.direction]


class EdgeOfStability(Signal):
    """The loss is sharper than the optimizer's step can stand: curvature over ``stability.limit``.

    Reads ``dynaxx/hessian/preconditioned`` (Adam), else ``dynaxx/hessian/top_eigenvalue``, else, for optimizers without
    preconditioner, ``dynaxx/top_eigenvalue`` of F, which leaves out the residuals' part. Full-batch training hovers at
    1 in good health (Cohen et al. 2021), hence a threshold above it and the level "info".
    """

    name = "edge of stability"
    default_level = "info"

    def __init__(self, threshold: float = 1.5, **options: Any) -> None:
        super().__init__(threshold, **{"release": min(1.1, threshold), "patience": 2, **options})

    def statistic(self, seen: Observation) -> float | None:
        """Curvature over limit."""
        if seen.look is None or not seen.limit:
            return None
        values = seen.look.values
        plain = ("dynaxx/hessian/top_eigenvalue", "dynaxx/top_eigenvalue")
        names = ("dynaxx/hessian/preconditioned",) if seen.adaptive else plain
        name = next((name for name in names if name in values), None)
        if name is None:
            return None
        self.text = f"{name} is {float(values[name]):.4g}, the step is stable up to {seen.limit:.4g}"
        return float(values[name]) / seen.limit


class DeadLayers(Signal):
    """Layers that no longer move the output: their share of tr F is below ``share``. The statistic is how many.

    A layer is compared with the whole, so a network that is confident everywhere has no dead layers.
    """

    name = "dead layers"

    def __init__(self, share: float = 1e-9, **options: Any) -> None:
        super().__init__(**{"threshold": 1, "release": 0, "patience": 2, **options})
        self.share = share

    def statistic(self, seen: Observation) -> float | None:
        """How many."""
        if seen.look is None:
            return None
        shares = {
            name.removeprefix("dynaxx/layer/").removesuffix("/share"): float(value)
            for name, value in seen.look.values.items()
            if name.startswith("dynaxx/layer/") and name.endswith("/share")
        }
        if not shares:
            return None
        dead = [name for name, value in shares.items() if value <= self.share]
        self.text = f"no share in the Fisher information: {', '.join(dead[:8])}"
        return float(len(dead))


class RankCollapse(Signal):
    """The effective rank has fallen to a few directions: threshold over effective rank, so that 1 is at it.

    Args:
        rank: the effective rank that counts as collapsed.
    """

    name = "rank collapse"

    def __init__(self, rank: float = 1.5, metric: str = "dynaxx/effective_rank", **options: Any) -> None:
        super().__init__(**{"threshold": 1.0, "release": 0.8, "patience": 2, **options})
        if not rank >= 1:
            raise InputError(f"rank={rank!r}; an effective rank is at least 1")
        self.rank, self.metric = rank, metric

    def statistic(self, seen: Observation) -> float | None:
        """rank over effective rank."""
        value = None if seen.look is None else seen.look.values.get(self.metric)
        if value is None or not math.isfinite(value):
            return None
        self.text = f"{self.metric} is {float(value):.3g}"
        return self.rank / max(float(value), 1e-12)
