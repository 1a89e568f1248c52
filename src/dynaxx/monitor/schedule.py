"""When to look."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from dynaxx.errors import InputError

SHARE = 0.01  # of the time a training takes
PATIENT = 8.0  # a calm training is looked at so many times less often than the budget allows; what that saves is kept
EAGER = 0.25  # and spent in a stir, four times as often as the budget would sustain


class Schedule(Protocol):
    """Decides at which steps a look is due."""

    def due(self, step: int) -> bool:
        """Whether to look after so many optimizer steps. Asked once a step."""

    def looked(self, step: int, seconds: float, moved: bool) -> None:
        """A look was taken at this step, took so long, and found things changed or not."""


class Fixed:
    """Every so many steps.

    >>> schedule = Fixed(100)
    >>> [step for step in range(1, 301) if schedule.due(step)]
    [100, 200, 300]
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def due(self, step: int) -> bool:
        """At multiples."""
        return step % self.every == 0

    def looked(self, step: int, seconds: float, moved: bool) -> None:
        """Nothing to learn."""


class Adaptive:
    """As often as a budget of time allows while things move, less often while they do not.

    The training's time earns the looks' time: T seconds of it earn ``share`` * T, and a look is due when what was
    earned covers one. While looks find nothing new, the wait from one to the next doubles, up to eight times what the
    budget asks for; what that saves is kept, up to eight looks, and spent four times as fast when things move again.
    The look at the start is free.

    Args:
        share: looks' time over training time, between 0 and 1.
        clock: seconds from anywhere, only for tests.
    """

    def __init__(self, share: float = SHARE, clock: Callable[[], float] = time.perf_counter) -> None:
        if not 0 < share < 1:
            raise InputError(f"budget={share!r}; give the share of training time that looks may take, such as 0.01")
        self.share, self._clock = share, clock
        self._cost = 0.0  # of one look, seconds
        self._earned = self._since = 0.0  # in all, and since the last look
        self._wait = EAGER  # in looks: how much has to be earned from one to the next
        self._last = clock()

    def due(self, step: int) -> bool:
        """Whether enough has been earned."""
        now = self._clock()
        gained = self.share * (now - self._last)
        self._earned, self._since, self._last = self._earned + gained, self._since + gained, now
        if not self._cost:
            return True  # what a look costs is not known before there was one
        self._earned = min(self._earned, PATIENT * self._cost)
        return self._earned >= self._cost and self._since >= self._wait * self._cost

    def looked(self, step: int, seconds: float, moved: bool) -> None:
        """Spend, and learn what a look costs."""
        first = not self._cost
        self._earned -= 0.0 if first else seconds
        # the first look of a process is slow (kernels are chosen, memory is found), so later ones count for more
        self._cost = seconds if first else 0.5 * (self._cost + seconds)
        self._wait = EAGER if moved else min(2 * self._wait, PATIENT)
        self._since, self._last = 0.0, self._clock()


def schedule(every: int | str, budget: float) -> Schedule:
    """``every`` as users give it.

    Raises:
        InputError: neither a number of steps nor "adaptive".
    """
    if every == "adaptive":
        return Adaptive(budget)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InputError(f"every={every!r}; give a number of optimizer steps from 1, such as 100, or 'adaptive'")
    return Fixed(every)
