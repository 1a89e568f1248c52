"""The verbs that a list of eigenvalues and a sampled measure of them share, each a functional of the measure."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate

# A functional of a measure: eigenvalues above the floor, descending, and how many directions each stands for, both
# float64 (m,).
Functional = Callable[[Tensor, Tensor], float]


class Measure:
    """The verbs that a full list of eigenvalues and a sampled measure of them share. Subclasses say how one is
    evaluated.
    """

    dimension: int
    count: int | None
    floor: float
    rank_bound: int | None

    def _evaluate(self, verb: str, functional: Functional, *, definite: bool = True) -> Estimate:
        raise NotImplementedError

    def trace(self) -> Estimate:
        """T = sum l_i; indefinite spectra included."""
        return self._evaluate("trace", lambda l, w: float((w * l).sum()), definite=False)

    def entropy(self) -> Estimate:
        """Spectral entropy -sum q ln q, nats, between 0 and ln rank; 0 for the zero spectrum.

        >>> from dynaxx.spectrum import Spectrum
        >>> Spectrum([1.0, 1.0, 1.0, 1.0]).entropy() - math.log(4)
        0.0
        """
        return self._evaluate("entropy", _entropy)

    def normalised_entropy(self) -> Estimate:
        """Spectral entropy over its largest possible value, ln of ``rank_bound`` (default ``dimension``), in [0, 1]; 0
        where that is 1.
        """
        directions = self.dimension if self.rank_bound is None else min(self.dimension, self.rank_bound)
        most = math.log(directions) if directions > 1 else math.inf
        return self._evaluate("normalised_entropy", lambda l, w: _entropy(l, w) / most)

    def effective_rank(self) -> Estimate:
        """exp of the spectral entropy, between 1 and rank; 0 for the zero spectrum."""
        return self._evaluate("effective_rank", lambda l, w: math.exp(_entropy(l, w)) if len(l) else 0.0)

    def participation_ratio(self) -> Estimate:
        """(sum l)^2 / sum l^2 = (tr F)^2 / |F|_F^2, between 1 and rank; 0 for the zero spectrum."""
        return self._evaluate("participation_ratio", _participation_ratio)

    def effective_dimension(self, *, prior_precision: float, count: int | None = None) -> Estimate:
        """sum N l / (N l + d), between 0 and rank: how many directions the data determine better than the prior does.

        It is -2 times the derivative of ``posterior_entropy`` by ln N.

        Args:
            prior_precision: d > 0 of the Gaussian prior, in the units of N l (with weight decay c on a mean loss: c N).
            count: N; default the examples behind the spectrum.

        Raises:
            InputError: d is not positive, or N is not known.
        """
        ratio = self._information(prior_precision, count)
        return self._evaluate("effective_dimension", lambda l, w: float((w * (ratio * l) / (ratio * l + 1)).sum()))

    def posterior_entropy(self, *, prior_precision: float, count: int | None = None) -> Estimate:
        """-1/2 sum ln(1 + N l / d) <= 0, nats: entropy of the Laplace posterior less that of the prior; by -ln 2, bits
        in the weights.

        Args and Raises as for ``effective_dimension``.
        """
        ratio = self._information(prior_precision, count)
        return self._evaluate("posterior_entropy", lambda l, w: 0.0 - 0.5 * float((w * torch.log1p(ratio * l)).sum()))

    def logdet(self, damping: float) -> Estimate:
        """ln det(A + damping I) over all ``dimension`` directions, nats; the missing ones count as zeros.

        Raises:
            InputError: damping is not positive.
        """
        _require_positive("damping", damping, "without it the log-determinant of a singular operator is -infinity")
        rest = self.dimension * math.log(damping)
        return self._evaluate("logdet", lambda l, w: rest + float((w * torch.log1p(l / damping)).sum()))

    def stiff_fraction(self, threshold: float = 1e-2) -> Estimate:
        """Share of the eigenvalues above the floor that reach ``threshold`` * l_1; 0 for the zero spectrum."""
        _require_fraction("threshold", threshold)
        return self._evaluate(
            "stiff_fraction", lambda l, w: float(w[l >= threshold * l[0]].sum() / w.sum()) if len(l) else 0.0
        )

    def decades(self, fraction: float = 0.9) -> Estimate:
        """log10 l_1 / l_m with m = ceil(fraction * rank): how many decades that share of the spectrum spans; 0 for the
        zero spectrum.
        """
        _require_fraction("fraction", fraction)
        return self._evaluate("decades", lambda l, w: _decades(l, w, fraction))

    def _information(self, prior_precision: float, count: int | None) -> float:
        """N / d."""
        _require_positive("prior_precision", prior_precision, "the prior's precision; weight decay times N, or 1")
        count = self.count if count is None else count
        if count is None:
            raise InputError("how many examples N the posterior has seen is not known to this spectrum; give count=")
        _require_positive("count", count, "the number of examples N")
        return count / prior_precision


def _entropy(l: Tensor, w: Tensor) -> float:
    if not len(l):
        return 0.0
    q = l / l[0]  # by the largest first, so that nothing overflows
    q = q / (w * q).sum()
    return max(0.0, -float((w * q * q.log()).sum()))


def _participation_ratio(l: Tensor, w: Tensor) -> float:
    if not len(l):
        return 0.0
    q = l / l[0]
    return float((w * q).sum().square() / (w * q.square()).sum())


def _decades(l: Tensor, w: Tensor, fraction: float) -> float:
    if not len(l):
        return 0.0
    reached = w.cumsum(0)
    # A hair below, so that 0.9 * 10 is the ninth eigenvalue whatever rounding makes of the product
    last = int(torch.searchsorted(reached, float(fraction * reached[-1]) * (1 - 1e-12)))
    return math.log10(float(l[0])) - math.log10(float(l[min(last, len(l) - 1)]))


def rounding(values: Tensor, size: int, precision: torch.dtype) -> float:
    """The floor eps * size * the largest magnitude: an eigenvalue computed at or below it is rounding."""
    return torch.finfo(precision).eps * size * float(values.abs().max()) if values.numel() else 0.0


def require_definite(verb: str, values: Tensor, floor: float) -> None:
    """Refuse a spectrum with eigenvalues below -floor, naming the verb that cannot be answered.

    Raises:
        InputError: there are such.
    """
    below = values[values < -floor]
    if len(below):
        raise InputError(
            f"{verb} needs a positive semi-definite operator; this spectrum has {len(below)} eigenvalues below "
            f"-{floor:.2g}, the least {float(below.min()):.3g}. For an indefinite one (a Hessian) use .eigenvalues, "
            ".negative, .rank, .trace() and .plot(); entropies, dimensions and sloppiness are for Fisher matrices"
        )


def _require_positive(name: str, given: float, why: str) -> None:
    if not 0 < given < math.inf:
        raise InputError(f"{name}={given!r} is not a finite number > 0 ({why})")


def _require_fraction(name: str, given: float) -> None:
    if not 0 < given <= 1:
        raise InputError(f"{name}={given!r} is not in (0, 1]; it is a fraction")
