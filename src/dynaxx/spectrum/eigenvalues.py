"""Eigenvalues as a list, and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.spectrum.measure import Functional, Measure, require_definite, rounding
from dynaxx.spectrum.sloppiness import Gap, Slope, Sloppiness, measure, spacing_error


class Spectrum(Measure):
    """Eigenvalues of a symmetric operator and what they say.

    Args:
        eigenvalues: 1-D, any order; the non-zero ones are enough.
        dimension: p; the eigenvalues missing up to it are exact zeros. Default: as many as given.
        count: examples N behind the operator, where there are such.
        floor: at or below this magnitude an eigenvalue is rounding. Default eps(precision) * number given * largest
            magnitude.
        rank_bound: what the rank cannot exceed, such as N (C - 1) for a softmax; the reference of
            ``normalised_entropy``.
        partial: True when only the top of the spectrum is given: what lies below is then unknown, not zero.
        precision: dtype in which the operator was accumulated. Default: that of the eigenvalues, float64 for Python
            numbers.
        exact: False when the operator itself was sampled: results are then not marked exact, their standard error not
            known (NaN).

    Raises:
        InputError: the eigenvalues are not a finite 1-D list, or do not fit ``dimension``.

    >>> spectrum = Spectrum([4.0, 2.0, 1.0, 1e-17], dimension=100, count=50)
    >>> spectrum.rank, spectrum.trace(), spectrum.effective_dimension(prior_precision=1.0)
    (3, 7, 2.96552)
    """

    def __init__(
        self,
        eigenvalues: Tensor | np.ndarray | Sequence[float],
        *,
        dimension: int | None = None,
        count: int | None = None,
        floor: float | None = None,
        rank_bound: int | None = None,
        partial: bool = False,
        precision: torch.dtype | None = None,
        exact: bool = True,
    ) -> None:
        given = (
            eigenvalues.detach()
            if isinstance(eigenvalues, Tensor)
            else torch.from_numpy(np.atleast_1d(np.asarray(eigenvalues)))
        )
        if given.dim() != 1 or given.is_complex():
            raise InputError(
                f"eigenvalues of shape {tuple(given.shape)} and dtype {given.dtype}; give a 1-D list of real numbers"
            )
        precision = precision or (given.dtype if given.is_floating_point() else torch.float64)
        values = given.to("cpu", torch.float64).sort(descending=True).values
        if not bool(torch.isfinite(values).all()):
            raise InputError(
                f"{int((~torch.isfinite(values)).sum())} of {len(values)} eigenvalues are NaN or infinite; mend the "
                "operator first"
            )
        if dimension is not None and dimension < len(values):
            raise InputError(f"{len(values)} eigenvalues given for dimension={dimension}; there are at most that many")
        if floor is not None and not 0 <= floor < math.inf:
            raise InputError(
                f"floor={floor!r} is not a finite number >= 0; leave it out for the rounding of {precision}"
            )
        self.eigenvalues = values
        self.dimension = len(values) if dimension is None else dimension
        self.count = count
        self.floor = rounding(values, len(values), precision) if floor is None else float(floor)
        self.rank_bound = rank_bound
        self.partial = partial
        self.exact = exact

    @property
    def rank(self) -> int:
        """How many eigenvalues stand above the floor in magnitude."""
        self._require_whole("rank")
        return int((self.eigenvalues.abs() > self.floor).sum())

    @property
    def negative(self) -> int:
        """How many eigenvalues lie below -floor: directions in which a Hessian curves down."""
        self._require_whole("negative")
        return int((self.eigenvalues < -self.floor).sum())

    def slope(self) -> Slope:
        """Fit log10 l_i ~ a - slope * i over the middle of the spectrum, i in [0.05 rank, 0.9 rank].

        A sloppy model's eigenvalues are spread evenly over decades: R^2 near 1 with many decades. Fewer than two points
        give slope 0 and R^2 0; a flat spectrum slope 0 and R^2 1. ``.interval`` is a 95 % interval of the slope.
        """
        logs = self._positive("slope").log10()
        r = len(logs)
        y = logs[max(math.ceil(0.05 * r), 1) - 1 : math.floor(0.9 * r)]
        if len(y) < 2:
            return Slope(self._estimate(0.0), self._estimate(0.0), len(y))
        x = torch.arange(len(y), dtype=torch.float64)
        x, y = x - x.mean(), y - y.mean()
        slope, total = float(-(x @ y) / (x @ x)), float(y @ y)
        left = float((y + slope * x).square().sum())
        stderr = spacing_error(x, y[:-1] - y[1:], slope)
        return Slope(self._estimate(slope), self._estimate(1 - left / total if total > 0 else 1.0), len(y), stderr)

    def uniformity(self) -> Estimate:
        """Kolmogorov-Smirnov distance of ln l from uniform on its own range: 0 is evenly sloppy, 1 (also for fewer than
        two distinct eigenvalues) is a cluster.
        """
        logs = self._positive("uniformity").log().flip(0)
        r = len(logs)
        if r < 2 or float(logs[-1] - logs[0]) == 0:
            return self._estimate(1.0)
        uniform = (logs - logs[0]) / (logs[-1] - logs[0])
        step = torch.arange(r + 1, dtype=torch.float64) / r
        return self._estimate(float(torch.maximum(step[1:] - uniform, uniform - step[:-1]).max()))

    def gap(self) -> Gap:
        """The widest gap max_i log10 l_i / l_(i+1) above the floor and its i; (0, 0) for fewer than two eigenvalues.
        The top alone will do.
        """
        logs = self._positive("gap", whole=False).log10()
        if len(logs) < 2:
            return Gap(self._estimate(0.0), 0)
        widest = (logs[:-1] - logs[1:]).max(0)
        return Gap(self._estimate(float(widest.values)), int(widest.indices) + 1)

    def sloppiness(
        self, thresholds: tuple[float, ...] = (1e-1, 1e-2, 1e-3), fractions: tuple[float, ...] = (0.5, 0.9)
    ) -> Sloppiness:
        """Every sloppiness metric at once, each beside what it is measured against.

        Args:
            thresholds: of ``stiff_fraction``.
            fractions: of ``decades``.

        Raises:
            InputError: the spectrum holds the top only or is indefinite, or a threshold is not in (0, 1].

        Source: Transtrum et al. 2015 (sloppy models have eigenvalues spread evenly over many decades).
        """
        return measure(self, thresholds, fractions)

    def plot(self, ax: Any = None, *, reference: Spectrum | None = None, label: str | None = None, **style: Any) -> Any:
        """Draw the sorted eigenvalues on a log scale, with the rounding floor.

        Args:
            ax: matplotlib axes; default a new figure's.
            reference: another spectrum to compare shapes with, such as the data's; both are then divided by their top
                eigenvalue.
            label: of this spectrum in the legend.
            style: passed to ``ax.plot``.

        Returns:
            The axes. Negative eigenvalues are drawn by magnitude, in hollow marks.
        """
        from dynaxx.spectrum.figure import draw

        return draw(self, ax, reference, label, style)

    def as_dict(self) -> dict[str, Any]:
        """Everything in it as JSON takes it; ``from_dict`` reads it back."""
        return {
            "eigenvalues": self.eigenvalues.tolist(),
            "dimension": self.dimension,
            "count": self.count,
            "floor": self.floor,
            "rank_bound": self.rank_bound,
            "partial": self.partial,
            "exact": self.exact,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Spectrum:
        """The spectrum that ``as_dict`` wrote.

        >>> Spectrum.from_dict(Spectrum([2.0, 1.0]).as_dict()).eigenvalues.tolist()
        [2.0, 1.0]
        """
        eigenvalues = torch.tensor(record["eigenvalues"], dtype=torch.float64)
        return cls(eigenvalues, **{name: value for name, value in record.items() if name != "eigenvalues"})

    def __repr__(self) -> str:
        top = f", largest {float(self.eigenvalues[0]):.4g}" if len(self.eigenvalues) else ""
        held = (
            f"top {len(self.eigenvalues)} of {self.dimension}"
            if self.partial
            else f"dimension {self.dimension}, rank {self.rank}"
        )
        return f"Spectrum({held}{top}, floor {self.floor:.2g})"

    def _evaluate(self, verb: str, functional: Functional, *, definite: bool = True) -> Estimate:
        if definite:
            values = self._positive(verb)
        else:
            self._require_whole(verb)
            values = self.eigenvalues[self.eigenvalues.abs() > self.floor]
        return self._estimate(functional(values, torch.ones_like(values)))

    def _positive(self, verb: str, whole: bool = True) -> Tensor:
        """The eigenvalues above the floor."""
        if whole:
            self._require_whole(verb)
        require_definite(verb, self.eigenvalues, self.floor)
        return self.eigenvalues[self.eigenvalues > self.floor]

    def _require_whole(self, verb: str) -> None:
        if self.partial:
            raise InputError(
                f"{verb} needs the whole spectrum and this one holds the top {len(self.eigenvalues)} of "
                f"{self.dimension} eigenvalues; take F.spectrum() without k"
            )

    def _estimate(self, value: float) -> Estimate:
        return Estimate(value) if self.exact else Estimate(value, math.nan, 0, False)
