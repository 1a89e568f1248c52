"""Is a model version fit for use, as far as the store knows?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dynaxx.track.reader import Reader
from dynaxx.track.records import Alert, Last, ModelVersion

LARGE = 4.0  # standard errors
_LEVELS = {"warning": "warning", "error": "bad"}


@dataclass(frozen=True)
class Health:
    """A verdict, "good", "warning", "bad" or "unknown" (nothing was measured), and what it rests on."""

    level: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Drift:
    """One metric on new data against its baseline; ``deviations`` is the difference in standard errors, NaN where no
    error is known."""

    name: str
    baseline: float
    value: float
    deviations: float


def health(store: Reader, version: ModelVersion) -> Health:
    """Judge a model version by the alerts since the version before it, by values that are not finite when it was made,
    and by the drift that runs which go on from its run have measured against its baseline.

    Info alerts do not count. A warning, or a drift of more than 4 standard errors, gives "warning"; an error or a
    value that is not finite gives "bad".

    Raises:
        StoreError: its run is gone.
    """
    last = store.last(version.run_id, version.step)
    alerts = [alert for alert in store.alerts(version.run_id) if alert.level in _LEVELS]
    earlier = [other for other in store.model_versions(version.run_id) if _before(other, version) and other != version]
    alerts = [one for one in alerts if _before(one, version) and not any(_before(one, other) for other in earlier)]
    found = [(_LEVELS[one.level], one.title + ("" if one.step is None else f" (step {one.step})")) for one in alerts]
    found += [
        ("bad", f"{name} is {one.value} (step {one.step})")
        for name, one in last.items()
        if not math.isfinite(one.value)
    ]
    if version.baseline:
        for run in store.runs(parent=version.run_id):
            for one in drift(version.baseline, store.last(run.id)):
                if abs(one.deviations) > LARGE:
                    where = f"{abs(one.deviations):.1f} standard errors from its baseline in run {run.id}"
                    found.append(("warning", f"{one.name} is {where}"))
    if not last and not found:
        return Health("unknown", ("nothing was measured up to here",))
    levels = {level for level, _ in found}
    level = "bad" if "bad" in levels else "warning" if levels else "good"
    return Health(level, tuple(reason for _, reason in found) or (f"{len(last)} metrics, all finite, and no warnings",))


def drift(baseline: Mapping[str, tuple[float, float]], last: Mapping[str, Last]) -> list[Drift]:
    """Last values of the metrics that have a baseline, in standard errors of the difference.

    >>> drift({"rank": (10.0, 3.0)}, {"rank": Last(5, 30.0, 4.0), "loss": Last(5, 1.0, float("nan"))})
    [Drift(name='rank', baseline=10.0, value=30.0, deviations=4.0)]
    """
    out = []
    for name, (before, spread) in baseline.items():
        if name in last:
            now = last[name]
            error = math.hypot(*(0.0 if math.isnan(one) else one for one in (spread, now.stderr)))
            out.append(Drift(name, before, now.value, (now.value - before) / error if error > 0 else math.nan))
    return out


def _before(one: Alert | ModelVersion, version: ModelVersion) -> bool:
    """Whether it came no later than the version: by step where both have one, else by the clock."""
    if one.step is not None and version.step is not None:
        return one.step <= version.step
    return one.wall <= version.wall
