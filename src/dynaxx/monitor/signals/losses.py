"""Signals that read losses, and need no geometry."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from dynaxx.errors import InputError
from dynaxx.monitor.signals.base import Observation, Signal


class NotFinite(Signal):
    """A loss, a parameter or a measured number is NaN or infinite.

    The statistic is the number of such numbers. Parameters are looked at with each look, the loss at each step; the
    mean loss between looks is left out, for it is not finite long after the one that made it so.
    """

    name = "not finite"
    default_level = "error"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"threshold": 1, "release": 0, **options})

    def statistic(self, seen: Observation) -> float | None:
        """How many."""
        values = {name: float(value) for name, value in seen.values.items() if name != "dynaxx/train_loss"}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if seen.loss is not None and not math.isfinite(seen.loss):
            bad.append("loss")
        broken = seen.values.get("dynaxx/parameters_not_finite", 0.0)
        if broken and math.isfinite(broken):
            bad.append(f"{int(broken)} parameter tensors")
        self.text = f"not finite: {', '.join(bad[:5])}" + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        return float(len(bad))


class Divergence(Signal):
    """The training loss gives up what it had gained.

        statistic = (m - best m) / max(m_0 - best m, m_0 / 10)

    with m the loss averaged over about ``span`` steps and m_0 its first full average: 0 while it falls, 1 when it is
    back where it started (or, if it never fell, a tenth above). NaN is ``NotFinite``'s to see.

    Args:
        span: steps of the average, and before the first verdict.
    """

    name = "divergence"
    default_level = "error"
    remembers = (*Signal.remembers, "_first", "_mean", "_best", "_start")

    def __init__(self, span: int = 20, **options: Any) -> None:
        super().__init__(**{"threshold": 1.0, "release": 0.5, "patience": 5, **options})
        if span < 1:
            raise InputError(f"span={span!r}; give at least one step to average over")
        self.span = span
        self._first: list[float] = []
        self._mean = self._best = self._start = math.nan

    def statistic(self, seen: Observation) -> float | None:
        """The share of the progress that is lost."""
        if seen.loss is None or not math.isfinite(seen.loss):
            return None
        if len(self._first) < self.span:
            self._first.append(seen.loss)
            if len(self._first) < self.span:
                return None
            # a loss that explodes within the first steps must not pass for where it started
            self._start = statistics.median(self._first[: max(1, self.span // 4)])
            self._mean = math.fsum(self._first) / self.span
            self._best = min(self._start, self._mean)
        else:
            self._mean += (seen.loss - self._mean) / self.span
            self._best = min(self._best, self._mean)
        scale = max(self._start - self._best, abs(self._start) / 10, 1e-12)
        lost = (self._mean - self._best) / scale
        self.text = f"mean loss {self._mean:.4g}, at first {self._start:.4g}, at best {self._best:.4g}"
        return lost


class LossSpike(Signal):
    """One step's loss stands far out of those before it: (loss - median) / (1.4826 MAD), over ``window`` steps."""

    name = "loss spike"
    remembers = (*Signal.remembers, "_window")

    def __init__(self, window: int = 100, **options: Any) -> None:
        super().__init__(**{"threshold": 12.0, "release": 4.0, "cooldown": window, **options})
        if window < 8:
            raise InputError(f"window={window!r}; a median of fewer than 8 losses says little")
        self._window: deque[float] = deque(maxlen=window)

    def statistic(self, seen: Observation) -> float | None:
        """Deviations from the median, in units of the usual one."""
        if seen.loss is None or not math.isfinite(seen.loss):
            return None
        full = len(self._window) == self._window.maxlen
        found = None
        if full:
            centre = statistics.median(self._window)
            usual = 1.4826 * statistics.median(abs(value - centre) for value in self._window)
            found = (seen.loss - centre) / max(usual, 1e-12)
            self.text = f"loss {seen.loss:.4g}, median of the last {len(self._window)} {centre:.4g} +- {usual:.2g}"
        self._window.append(seen.loss)
        return found


class LossShift(Signal):
    """The training loss has risen and stays up while the learning rate was the same: the data may have changed.

        statistic = (mean of the last w - mean of the w before) / sqrt(their variances / w)

    Neighbouring losses are not independent, so the threshold is far above a normal quantile. Wrong labels that begin to
    arrive look like this; so does a harder part of a curriculum.

    Args:
        window: w, steps.
    """

    name = "loss shift"
    remembers = (*Signal.remembers, "_held")

    def __init__(self, window: int = 50, **options: Any) -> None:
        super().__init__(**{"threshold": 6.0, "release": 2.0, "cooldown": 2 * window, "patience": 3, **options})
        if window < 8:
            raise InputError(f"window={window!r}; a mean of fewer than 8 losses says little")
        self.window = window
        self._held: deque[tuple[float, float | None]] = deque(maxlen=2 * window)

    def statistic(self, seen: Observation) -> float | None:
        """The rise in standard errors."""
        if seen.loss is None or not math.isfinite(seen.loss):
            return None
        self._held.append((seen.loss, seen.learning_rate))
        if len(self._held) < 2 * self.window or len({rate for _, rate in self._held}) > 1:
            return None
        losses = [loss for loss, _ in self._held]
        before, after = losses[: self.window], losses[self.window :]
        spread = math.sqrt((statistics.variance(before) + statistics.variance(after)) / self.window)
        rise = statistics.fmean(after) - statistics.fmean(before)
        self.text = (
            f"mean loss {statistics.fmean(after):.4g} over {self.window} steps, "
            f"{statistics.fmean(before):.4g} over the {self.window} before, at the same learning rate"
        )
        return rise / max(spread, 1e-12)


class ValidationSlope(Signal):
    """A validation loss that goes up: the t statistic of the slope of its last ``points`` values.

    Args:
        metric: a number reported with ``monitor.observe(validation_loss=...)``, or the probe's own loss where the probe
            holds validation data.
        points: how many.
    """

    name = "validation slope"
    remembers = (*Signal.remembers, "_held")

    def __init__(self, metric: str = "dynaxx/probe_loss", points: int = 8, **options: Any) -> None:
        super().__init__(**{"threshold": 5.0, "release": 0.0, "patience": 2, **options})
        if points < 3:
            raise InputError(f"points={points!r}; a slope with an error needs at least 3")
        self.metric = metric
        self._held: deque[tuple[int, float]] = deque(maxlen=points)

    def statistic(self, seen: Observation) -> float | None:
        """Slope over its standard error."""
        value = seen.values.get(self.metric)
        if value is None or not math.isfinite(value):
            return None
        self._held.append((seen.step, float(value)))
        if len(self._held) < (self._held.maxlen or 0):
            return None
        slope, error = line(list(self._held))
        self.text = f"{self.metric} changes by {slope:.3g} +- {error:.2g} per step over {len(self._held)} values"
        return slope / max(error, 1e-300)


def line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Slope of the least-squares line through (step, value), and its standard error.

    >>> line([(0, 0.0), (1, 1.0), (2, 2.0)])
    (1.0, 0.0)
    """
    n = len(points)
    x, y = (math.fsum(column) / n for column in zip(*points, strict=True))
    square = math.fsum((a - x) ** 2 for a, _ in points)
    slope = math.fsum((a - x) * (b - y) for a, b in points) / square if square else 0.0
    left = math.fsum((b - y - slope * (a - x)) ** 2 for a, b in points)
    return slope, math.sqrt(left / (n - 2) / square) if square else 0.0
