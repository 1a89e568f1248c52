"""A number that knows how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterable


class Estimate(float):
    """A float with its standard error: ``Estimate(value, stderr, samples, exact)``.

    It is a float wherever a float is wanted; what was sampled keeps its error beside it.

    Args:
        value: the number.
        stderr: standard error of the mean; 0 for exact numbers, NaN where it is not known.
        samples: independent draws behind it; 0 for exact numbers.
        exact: True when the number is free of sampling error (rounding remains).

    >>> trace = Estimate(3.0, stderr=0.2, samples=10)
    >>> trace, trace / 2, trace.exact
    (3 ± 0.2 (10 draws), 1.5, False)
    """

    __slots__ = ("exact", "samples", "stderr")

    stderr: float
    samples: int
    exact: bool

    def __new__(cls, value: float, stderr: float = 0.0, samples: int = 0, exact: bool | None = None) -> Estimate:
        """Exactness defaults to whether there are no samples."""
        self = super().__new__(cls, value)
        self.stderr = float(stderr)
        self.samples = int(samples)
        self.exact = (samples == 0) if exact is None else bool(exact)
        return self

    def __getnewargs__(self) -> tuple[float, float, int, bool]:  # type: ignore[override]
        return float(self), self.stderr, self.samples, self.exact

    @property
    def value(self) -> float:
        """The number alone."""
        return float(self)

    @classmethod
    def mean(cls, draws: Iterable[float]) -> Estimate:
        """Mean of independent draws, with the standard error s / sqrt(n) (NaN for one draw)."""
        values = [float(draw) for draw in draws]
        n = len(values)
        centre = math.fsum(values) / n
        spread = math.fsum((value - centre) ** 2 for value in values)
        return cls(centre, math.sqrt(spread / (n - 1) / n) if n > 1 else math.nan, n, False)

    def __repr__(self) -> str:
        if self.exact:
            return f"{float(self):.6g}"
        return f"{float(self):.6g} ± {self.stderr:.2g} ({self.samples} {'draw' if self.samples == 1 else 'draws'})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else repr(self)
