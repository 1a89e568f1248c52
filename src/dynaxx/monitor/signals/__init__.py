"""Rules that tell when a training needs a person, each with threshold, hysteresis, patience and rest.

What fires by default is what is never healthy. Everything else is opt-in, because the geometry changes most while a
training is at its best: see docs/concepts/monitoring.md for how often each rule is wrong on healthy runs.
"""

from dynaxx.monitor.signals.base import Action, Alarm, Observation, Signal
from dynaxx.monitor.signals.geometry import Change, DeadLayers, EdgeOfStability, RankCollapse
from dynaxx.monitor.signals.losses import Divergence, LossShift, LossSpike, NotFinite, ValidationSlope

__all__ = [
    "Action",
    "Alarm",
    "Change",
    "DeadLayers",
    "Divergence",
    "EdgeOfStability",
    "LossShift",
    "LossSpike",
    "NotFinite",
    "Observation",
    "RankCollapse",
    "Signal",
    "ValidationSlope",
    "default_signals",
    "drop_by_a_fifth",
    "overfitting",
]


def default_signals() -> list[Signal]:
    """What a monitor watches for unless told otherwise: numbers that are not finite, and divergence."""
    return [NotFinite(), Divergence()]


def overfitting(metric: str = "dynaxx/posterior_entropy", validation: str = "dynaxx/probe_loss") -> Signal:
    """A change of more than four paired standard errors on three looks in a row, while the validation loss rises."""
    return Change(metric, 4.0, unit="stderr", patience=3, validation=validation)


def drop_by_a_fifth(metric: str = "dynaxx/effective_rank") -> Signal:
    """The rule of thumb "a drop by more than 20 % against the running average means over-fitting".

    It is here to be compared with, not to be trusted: it fires on most healthy trainings, usually in their first and
    best phase (docs/concepts/monitoring.md has the rate).
    """
    return Change(metric, 0.2, unit="relative", reference="smoothed", direction="down", patience=1)
