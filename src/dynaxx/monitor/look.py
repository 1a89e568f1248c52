"""What one look at a model found, and how far two looks on the same examples are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dynaxx.estimate import Estimate

MOVED = 2.0  # paired standard errors
MOVED_SHARE = 0.05  # of the value, where its error is not known
WATCHED = ("dynaxx/trace", "dynaxx/posterior_entropy", "dynaxx/effective_dimension")


@dataclass(frozen=True)
class Look:
    """Numbers of one model on one probe.

        stderr^2 = sum_n I_n^2 / (N (N - 1))

    where I_n, the influence of example n, is by how much the number rises when the data's distribution moves towards
    that example (for a mean: its own value less the mean). Of two looks on the same examples the influences are
    subtracted example by example, so that the standard error of a change is that of paired data, far below that of
    either value.

    Args:
        values: name -> number; an Estimate where its error is known.
        influences: name -> (N,) float64 on the CPU, for the numbers that have them.
        arrays: name -> array, such as the eigenvalues.

    Source: Jaeckel 1972, The infinitesimal jackknife; Efron 1982, ch. 6.

    >>> look = Look.of_means({"a": torch.tensor([1.0, 2.0, 3.0])})
    >>> look.values["a"]
    2 ± 0.58 (3 draws)
    """

    values: Mapping[str, float]
    influences: Mapping[str, Tensor] = field(default_factory=dict)
    arrays: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_means(cls, examples: Mapping[str, Tensor]) -> Look:
        """Means over examples of the numbers (N,) given for each."""
        columns = {name: column.detach().double().cpu() for name, column in examples.items()}
        return cls.of_influences(
            {name: float(column.mean()) for name, column in columns.items()},
            {name: column - column.mean() for name, column in columns.items()},
        )

    @classmethod
    def of_influences(cls, values: Mapping[str, float], influences: Mapping[str, Tensor]) -> Look:
        """Values with the errors that their influences give; a value without influences stays as it is."""
        return cls(
            {
                name: estimate(value, influences[name]) if name in influences else value
                for name, value in values.items()
            },
            dict(influences),
        )

    def state_dict(self) -> dict[str, Any]:
        """What ``of_influences`` takes, plain enough for a checkpoint; arrays are not in it."""
        return {"values": {k: float(v) for k, v in self.values.items()}, "influences": dict(self.influences)}

    def joined(self, *others: Look) -> Look:
        """This look and others of the same model and probe as one."""
        looks = (self, *others)
        return Look(
            {name: value for look in looks for name, value in look.values.items()},
            {name: value for look in looks for name, value in look.influences.items()},
            {name: value for look in looks for name, value in look.arrays.items()},
        )

    def blended(self, newer: Look, weight: float) -> Look:
        """(1 - weight) of this and weight of a newer one, name by name: a moving average that knows its error."""
        both = [name for name in self.values if name in newer.values]
        mixed = {n: (1 - weight) * float(self.values[n]) + weight * float(newer.values[n]) for n in both}
        shared = [name for name in both if self._pairs(newer, name)]
        influences = {n: (1 - weight) * self.influences[n] + weight * newer.influences[n] for n in shared}
        return Look.of_influences({n: newer.values[n] for n in newer.values if n not in mixed} | mixed, influences)

    def change(self, since: Look) -> dict[str, Estimate]:
        """Value less that of ``since``, for names in both; the standard error is NaN where influences are missing."""
        return {
            name: self._compared(since, name, float(self.values[name]) - float(since.values[name]), 1.0, 1.0)
            for name in self.values
            if name in since.values
        }

    def ratio(self, since: Look) -> dict[str, Estimate]:
        """Value over that of ``since``, for names in both and not zero there."""
        out = {}
        for name in self.values:
            then = float(since.values.get(name, 0.0))
            if then:
                share = float(self.values[name]) / then
                out[name] = self._compared(since, name, share, 1 / then, share / then)
        return out

    def _pairs(self, other: Look, name: str) -> bool:
        mine, theirs = self.influences.get(name), other.influences.get(name)
        return mine is not None and theirs is not None and len(mine) == len(theirs)

    def _compared(self, since: Look, name: str, value: float, mine: float, theirs: float) -> Estimate:
        if not self._pairs(since, name):
            return Estimate(value, math.nan, 0, False)
        return estimate(value, mine * self.influences[name] - theirs * since.influences[name])


def estimate(value: float, influences: Tensor) -> Estimate:
    """A number with the standard error that the influences (N,) of its examples give."""
    count = len(influences)
    spread = float(influences.square().sum()) / (count * (count - 1)) if count > 1 else math.nan
    return Estimate(float(value), math.sqrt(spread), count, False)


def is_entropy(name: str) -> bool:
    """Whether a number is in nats, so that its zero is a convention and only differences of it mean something."""
    return name.endswith("entropy")


def since_start(look: Look, start: Look) -> dict[str, Estimate]:
    """Values relative to those at the start: ``dynaxx/change/...`` in nats for entropies, else the ratio
    ``dynaxx/relative/...``. Layers are left out, they have shares."""
    changes, ratios = look.change(start), look.ratio(start)
    out = {}
    for name in look.values:
        kind, table = ("change", changes) if is_entropy(name) else ("relative", ratios)
        if name in table and not name.startswith("dynaxx/layer/"):
            out[name.replace("dynaxx/", f"dynaxx/{kind}/", 1)] = table[name]
    return out


def moved(look: Look, previous: Look | None) -> bool:
    """Whether a number by which an adaptive schedule goes has changed beyond its error since the look before."""
    if previous is None:
        return True
    changes = {n: c for n, c in look.change(previous).items() if n in WATCHED}
    return any(
        abs(c) > (MOVED * c.stderr if c.stderr >= 0 else MOVED_SHARE * abs(float(look.values[n])))
        for n, c in changes.items()
    )


def not_finite(tensors: list[Tensor]) -> int:
    """How many of these tensors hold a NaN or an infinity. Each device is waited for once."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(~torch.isfinite(tensor.detach()).all())
    return sum(int(torch.stack(found).sum()) for found in by_device.values())
