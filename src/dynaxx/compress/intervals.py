"""Intervals for shares and for their paired differences."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor

from dynaxx.errors import InputError


class Interval(NamedTuple):
    """A number between its bounds."""

    value: float
    low: float
    high: float


def quantile(level: float) -> float:
    """The z with P(|Z| <= z) = level for a standard normal Z.

    Raises:
        InputError: level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError(f"level={level!r} is not in (0, 1); give 0.95 for a 95 % interval")
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """A share with Wilson's score interval: the p for which |successes/n - p| <= z sqrt(p (1 - p) / n).

    It stays within [0, 1] and keeps its coverage near 0 and 1, where accuracies live. Trials count as independent.

    Raises:
        InputError: not 0 <= successes <= trials, no trials, or a bad level.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927).

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.8, 0.49, 0.943]
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(
            f"{successes} successes in {trials} trials; give at least one trial and no more successes than trials"
        )
    z, share = quantile(level), successes / trials
    spread = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / spread
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / spread
    # the exact bounds at the ends, where rounding would leave 1e-17
    return Interval(share, 0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half)


class Change(NamedTuple):
    """A paired difference after - before with its interval, and the probability of so large a one if there were
    none.
    """

    value: float
    low: float
    high: float
    p_value: float


def paired_change(before: Tensor, after: Tensor, level: float = 0.95) -> Change:
    """Change of an accuracy measured on the same examples before and after.

    The interval is Wald's with half an observation added to each of the four cells; the p-value is McNemar's exact one,
    from the examples on which the two disagree.

    Args:
        before, after: (n,) booleans, whether each example was right.

    Raises:
        InputError: they differ in length or are empty.

    Source: Agresti & Min, Stat. Med. 24 (2005); McNemar, Psychometrika 12 (1947).

    >>> import torch
    >>> before, after = torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    >>> paired_change(before, after).value, paired_change(before, after).p_value
    (-0.25, 1.0)
    """
    if before.shape != after.shape or before.dim() != 1 or not len(before):
        raise InputError(
            f"before has shape {tuple(before.shape)} and after {tuple(after.shape)}; give two lists of the same "
            f"examples"
        )
    n, z = len(before), quantile(level)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    b, c, total = lost + 0.5, won + 0.5, n + 2
    centre = (c - b) / total
    half = z * math.sqrt((b + c) - (c - b) ** 2 / total) / total
    return Change((won - lost) / n, centre - half, centre + half, _sign_test(min(lost, won), lost + won))


def mean_change(before: Tensor, after: Tensor, level: float = 0.95) -> Change:
    """Change of a mean measured on the same examples, mean difference +- z standard errors; the p-value is the normal
    one.

    Raises:
        InputError: they differ in length, or there are fewer than two.
    """
    if before.shape != after.shape or before.dim() != 1 or len(before) < 2:
        raise InputError(
            f"before has shape {tuple(before.shape)} and after {tuple(after.shape)}; give two lists of the same two "
            f"or more examples"
        )
    difference = (after - before).double()
    centre, error = float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))
    p_value = 2 * NormalDist().cdf(-abs(centre) / error) if error > 0 else float(centre == 0)
    return Change(centre, centre - quantile(level) * error, centre + quantile(level) * error, p_value)


def _sign_test(fewer: int, disagreements: int) -> float:
    """Two-sided exact binomial probability at 1/2."""
    if disagreements == 0:
        return 1.0
    tail = sum(math.comb(disagreements, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**disagreements)


def mean_interval(values: Tensor, level: float = 0.95) -> Interval:
    """A mean with its normal interval; without spread for one value."""
    centre = float(values.double().mean())
    half = quantile(level) * float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Interval(centre, centre - half, centre + half)
