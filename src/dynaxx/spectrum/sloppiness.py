"""How sloppy a spectrum is: every number with the threshold and the rounding floor it depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from dynaxx.estimate import Estimate

if TYPE_CHECKING:
    from dynaxx.spectrum.eigenvalues import Spectrum

NORMAL_95 = 1.959964  # two-sided 95 % point of the normal distribution


class Slope(NamedTuple):
    """Decades lost per eigenvalue (least squares, >= 0 for a descending spectrum), the fit's R^2, and the points it
    went through.

    ``stderr`` takes the spacings between neighbours for independent draws; see ``interval``.
    """

    slope: Estimate
    r_squared: Estimate
    points: int
    stderr: float = math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the slope, if spacings of log-eigenvalues are independent (as for log-uniform eigenvalues).

        The textbook error of a regression takes the residuals of sorted numbers for independent, which they are far
        from being, and is several times too small. Over seeds or parts of the data, ``Estimate.mean`` and
        ``jackknife`` say more.
        """
        half = NORMAL_95 * self.stderr
        return float(self.slope) - half, float(self.slope) + half


class Gap(NamedTuple):
    """The widest gap between neighbours, in decades, and how many eigenvalues stand above it."""

    decades: Estimate
    above: int


def spacing_error(x: Tensor, spacings: Tensor, slope: float) -> float:
    """Standard error of a least-squares slope through sorted numbers.

        slope = sum_i c_i D_i,   D_i = y_i - y_(i+1),   c_i = sum_(j>i) x_j / sum x^2,   sum c = 1
        var   = s^2 sum c^2,     s^2 = sum c^2 (D - slope)^2 / (sum c^2 - 2 sum c^3 + (sum c^2)^2)

    The slope is a weighted mean of the spacings, and the weighted variance of these, unbiased where they are
    independent and alike, is its error.

    Args:
        x: (n,) centred indices.
        spacings: (n - 1,) y_i - y_(i+1).
        slope: the fitted one.

    Returns:
        The standard error; NaN for fewer than three points.
    """
    if len(x) < 3:
        return math.nan
    c = x.flip(0).cumsum(0).flip(0)[1:] / (x @ x)
    squares = float(c.square().sum())
    unbiased = squares - 2 * float(c.pow(3).sum()) + squares**2
    spread = float((c.square() * (spacings - slope).square()).sum())
    return math.sqrt(spread / unbiased * squares)


@dataclass(frozen=True)
class Sloppiness:
    """The sloppiness metrics of one spectrum; eigenvalues at or below ``floor`` enter none of them.

    Args:
        rank: eigenvalues above the floor.
        dimension: p.
        floor: at or below it an eigenvalue is rounding.
        largest: l_1.
        stiff: threshold t -> share of the rank with l >= t l_1.
        decades: share a -> log10 l_1 / l_m, m = ceil(a rank).
        slope: fit of log10 l_i over i in [0.05 rank, 0.9 rank].
        uniformity: Kolmogorov-Smirnov distance of ln l from uniform.
        gap: the widest gap between neighbours.
        participation_ratio, effective_rank: how many directions share the trace.
    """

    rank: int
    dimension: int
    floor: float
    largest: float
    stiff: dict[float, Estimate]
    decades: dict[float, Estimate]
    slope: Slope
    uniformity: Estimate
    gap: Gap
    participation_ratio: Estimate
    effective_rank: Estimate

    def rows(self) -> list[tuple[str, float, str]]:
        """(name, value, what it is measured against) for a table.

        >>> from dynaxx.spectrum import Spectrum
        >>> Spectrum([1.0, 0.1, 0.01]).sloppiness().rows()[2]
        ('stiff fraction', 0.666667, 'share of the rank with l >= 0.1 l_1')
        """
        low, high = self.slope.interval
        return [
            ("rank", self.rank, f"of {self.dimension}, above the rounding floor {self.floor:.2g}"),
            ("largest eigenvalue", self.largest, f"{self._above():.1f} decades above the floor"),
            *(("stiff fraction", value, f"share of the rank with l >= {t:g} l_1") for t, value in self.stiff.items()),
            *(("decades", value, f"spanned by the top {a:.0%} of the rank") for a, value in self.decades.items()),
            ("slope", self.slope.slope, f"decades per eigenvalue, 95 % [{low:.3g}, {high:.3g}]"),
            ("R^2", self.slope.r_squared, f"of the fit through {self.slope.points} eigenvalues"),
            ("uniformity", self.uniformity, "distance of ln l from uniform: 0 is evenly sloppy"),
            ("gap", self.gap.decades, f"decades, below the first {self.gap.above}"),
            ("participation ratio", self.participation_ratio, "directions"),
            ("effective rank", self.effective_rank, "directions"),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON takes it."""
        return {
            "rank": self.rank,
            "dimension": self.dimension,
            "floor": self.floor,
            "largest": self.largest,
            "stiff": {f"{t:g}": float(value) for t, value in self.stiff.items()},
            "decades": {f"{a:g}": float(value) for a, value in self.decades.items()},
            "slope": float(self.slope.slope),
            "slope_stderr": self.slope.stderr,
            "r_squared": float(self.slope.r_squared),
            "points": self.slope.points,
            "uniformity": float(self.uniformity),
            "gap_decades": float(self.gap.decades),
            "gap_above": self.gap.above,
            "participation_ratio": float(self.participation_ratio),
            "effective_rank": float(self.effective_rank),
        }

    def _above(self) -> float:
        return math.log10(self.largest / self.floor) if self.floor > 0 and self.largest > 0 else math.inf


def measure(spectrum: Spectrum, thresholds: tuple[float, ...], fractions: tuple[float, ...]) -> Sloppiness:
    """Read them all off; see ``Spectrum.sloppiness``."""
    return Sloppiness(
        rank=spectrum.rank,
        dimension=spectrum.dimension,
        floor=spectrum.floor,
        largest=float(spectrum.eigenvalues[0]) if len(spectrum.eigenvalues) else 0.0,
        stiff={t: spectrum.stiff_fraction(t) for t in thresholds},
        decades={a: spectrum.decades(a) for a in fractions},
        slope=spectrum.slope(),
        uniformity=spectrum.uniformity(),
        gap=spectrum.gap(),
        participation_ratio=spectrum.participation_ratio(),
        effective_rank=spectrum.effective_rank(),
    )
