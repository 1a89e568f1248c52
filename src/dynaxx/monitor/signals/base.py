"""What a signal is: a number with a threshold, that must stay beyond it for a while, and then rests."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dynaxx.errors import InputError, choose
from dynaxx.estimate import Estimate
from dynaxx.monitor.look import Look

LEVELS = ("info", "warning", "error")
Action = Callable[[Any, "Alarm"], object]
"""Called as action(monitor, alarm) when a signal has fired."""


@dataclass(frozen=True)
class Observation:
    """What a signal is shown: the loss of one step, or one look at the geometry.

    Args:
        step: optimizer steps done.
        loss: the training loss of this step, on observations of a step.
        values: numbers reported by the user (validation_loss, ...), and on observations of a look the look's.
        look: this look; None on observations of a step.
        previous, smoothed, start: the look before, the moving average of those before, the first one.
        learning_rate: the largest of the attached optimizers' groups, or None.
        limit: the curvature that the optimizer stands, see ``dynaxx.monitor.stability``; None without optimizer.
        adaptive: whether that is the curvature preconditioned as Adam does.
    """

    step: int
    loss: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    look: Look | None = None
    previous: Look | None = None
    smoothed: Look | None = None
    start: Look | None = None
    learning_rate: float | None = None
    limit: float | None = None
    adaptive: bool = False

    def change(self, name: str, reference: str) -> Estimate | None:
        """Change of a number against one of the three references, with its paired standard error; None if unknown."""
        since = getattr(self, reference)
        if self.look is None or since is None or name not in self.look.values or name not in since.values:
            return None
        return self.look.change(since)[name]


@dataclass(frozen=True)
class Alarm:
    """A signal that fired.

    Args:
        signal: its name.
        step: when.
        statistic, threshold: the number that went beyond what.
        text: what was seen, for people.
        level: "info", "warning" or "error".
    """

    signal: str
    step: int
    statistic: float
    threshold: float
    text: str
    level: str


class Signal:
    """Fires when its statistic has stood at or beyond ``threshold`` on ``patience`` observations in a row.

    It fires once: again only after the statistic has come back to ``release`` and ``cooldown`` steps have gone by.
    Observations that do not have what a signal needs are passed over. Subclasses give ``statistic``, and name in
    ``remembers`` what that keeps from one observation to the next, so that a training can go on where it was killed.

    Args:
        threshold: see the subclass for what is compared with it.
        release: where the state ends, at most ``threshold``; between the two it lasts (hysteresis).
        patience: observations in a row.
        cooldown: optimizer steps of silence after an alarm.
        actions: what to do when it fires, in order. Nothing by default.
        level: "info", "warning" or "error".

    Raises:
        InputError: release above threshold, patience below 1, a negative cooldown, an unknown level.
    """

    name: ClassVar[str] = "signal"
    default_level: ClassVar[str] = "warning"
    remembers: ClassVar[tuple[str, ...]] = ("active", "_streak", "_fired")
    """Attributes for a checkpoint: numbers, None, and lists or deques of such."""

    def __init__(
        self,
        threshold: float,
        *,
        release: float | None = None,
        patience: int = 1,
        cooldown: int = 0,
        actions: Sequence[Action] = (),
        level: str | None = None,
    ) -> None:
        self.threshold = float(threshold)
        self.release = self.threshold if release is None else float(release)
        if self.release > self.threshold:
            raise InputError(f"release={release!r} is above threshold={threshold!r}; a signal must be able to end")
        if patience < 1 or cooldown < 0:
            raise InputError(f"patience={patience!r}, cooldown={cooldown!r}; give at least 1 and at least 0")
        self.patience, self.cooldown, self.actions = patience, cooldown, tuple(actions)
        self.level = choose("level", level or self.default_level, LEVELS)
        self.active = False
        self.text = ""
        self._streak = 0
        self._fired: int | None = None

    def statistic(self, seen: Observation) -> float | None:
        """The number to compare with the threshold, or None where this observation does not tell. It may set
        ``text``."""
        raise NotImplementedError

    def observe(self, seen: Observation) -> Alarm | None:
        """Take one observation in; an Alarm when the signal fires."""
        value = self.statistic(seen)
        if value is None or value != value:
            return None
        if self.active:
            self.active = value > self.release
            self._streak = 0
            return None
        self._streak = self._streak + 1 if value >= self.threshold else 0
        resting = self._fired is not None and seen.step - self._fired < self.cooldown
        if self._streak < self.patience or resting:
            return None
        self.active, self._streak, self._fired = True, 0, seen.step
        return Alarm(self.name, seen.step, value, self.threshold, self.text or self._plain(value), self.level)

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as ``torch.load(weights_only=True)`` can read it."""
        held = {name: getattr(self, name) for name in self.remembers}
        return {name: list(value) if isinstance(value, (list, deque)) else value for name, value in held.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it."""
        for name in self.remembers:
            if name not in state:
                continue
            now = getattr(self, name)
            if isinstance(now, deque):
                setattr(self, name, deque(state[name], now.maxlen))
            else:
                setattr(self, name, list(state[name]) if isinstance(now, list) else state[name])

    def _plain(self, value: float) -> str:
        return f"{self.name} is {value:.4g}, threshold {self.threshold:.4g}"

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(threshold={self.threshold:g}, release={self.release:g}, patience={self.patience})"
        )


def remembered(signals: Iterable[Signal]) -> list[dict[str, Any]]:
    """What each remembers, in order."""
    return [{"kind": _kind(signal), "state": signal.state_dict()} for signal in signals]


def recall(signals: Iterable[Signal], states: Iterable[Mapping[str, Any]]) -> None:
    """Give it back, the n-th of a kind to the n-th of that kind; a signal that was not there begins anew."""
    held: dict[tuple[str, int], Any] = {}
    count: Counter[str] = Counter()
    for each in states:
        held[each["kind"], count[each["kind"]]] = each["state"]
        count[each["kind"]] += 1
    count.clear()
    for signal in signals:
        kind = _kind(signal)
        signal.load_state_dict(held.get((kind, count[kind]), {}))
        count[kind] += 1


def _kind(signal: Signal) -> str:
    return f"{type(signal).__name__} {signal.name}"
