"""The smallest k that is good enough, by bisection and a look at what lies above it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from dynaxx.assembly.sweep import bar
from dynaxx.errors import InputError

CHECKS = 4  # larger k at which the answer is checked


class Smallest(NamedTuple):
    """The smallest k that bisection found, and all it tried.

    Args:
        k: within the tolerance, or None where not even the whole rank is.
        score: at k; NaN for None.
        reference: the full model's score.
        tried: (k, score) of every evaluation, by k.
        dips: larger k that were tried and fell outside the tolerance: the score is not monotone, and a smaller k than
            this one may do as well.
    """

    k: int | None
    score: float
    reference: float
    tried: tuple[tuple[int, float], ...]
    dips: tuple[int, ...]


def bisect(
    score: Callable[[int], float], largest: int, *, reference: float, tolerance: float, progress: bool = False
) -> Smallest:
    """The smallest k in 1..largest with score(k) >= reference - tolerance, if the score grows with k.

    Args:
        score: k -> score; asked once for each k.
        progress: show a progress bar.

    Raises:
        InputError: the tolerance is negative or not finite.

    >>> bisect(lambda k: k / 100, 100, reference=1.0, tolerance=0.3)[:2]
    (70, 0.7)
    """
    if not (isinstance(tolerance, (int, float)) and 0 <= tolerance < math.inf):
        raise InputError(f"tolerance={tolerance!r}; expected a number >= 0, in units of evaluate's score")
    tried: dict[int, float] = {}

    def passes(k: int) -> bool:
        if k not in tried:
            tried[k] = score(k)
        return tried[k] >= reference - tolerance

    low, high = 0, largest
    if not passes(high):
        return Smallest(None, math.nan, reference, tuple(sorted(tried.items())), ())
    with bar(range(high.bit_length()), progress, "bisection") as steps:
        for _ in steps:
            if high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if passes(middle) else (middle, high)
    above = {round(high * (largest / high) ** (i / CHECKS)) for i in range(1, CHECKS)}
    dips = tuple(sorted(k for k in {*above, *tried} if k > high and not passes(k)))
    return Smallest(high, tried[high], reference, tuple(sorted(tried.items())), dips)
