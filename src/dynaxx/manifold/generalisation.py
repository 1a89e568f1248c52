"""A bound of the generalisation error, estimated from a spectrum alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.spectrum import Spectrum

SCALES = tuple(float(10**power) for power in np.linspace(-3, 8, 111))  # prior precisions, ten to the decade
STEPS = np.linspace(math.log(1e-5), math.log(1e5), 21)  # ln of kappa / (8 (n - 1)); at a minimum that is the root


@dataclass(frozen=True)
class PacBayes:
    """What ``pac_bayes`` found.

    Args:
        bound: training_error + gap + sqrt((divergence + union + confidence terms) / (2 (n - 1))). Says nothing at or
            above 1.
        gap: sum l_i / lbar_i, what the posterior's width costs.
        complexity: the square root.
        divergence: KL(posterior || prior), nats: its two parts below.
        curvature_divergence: 1/2 sum ln(lbar_i / e) + e / lbar_i - 1.
        displacement_divergence: e |w - w0|^2 / 2.
        union: nats paid for choosing the prior's scale after the fact, ln of the number of scales tried.
        confidence: nats paid for certainty, ln(n / failure).
        prior_precision: e, the best of the scales.
        precision_per_eigenvalue: kappa; the posterior's precisions are lbar_i = e + kappa l_i.
        effective_directions: eigenvalues with kappa l_i >= e, whose posterior is at least twice as precise as the
            prior.
        threshold: e / kappa, the eigenvalue where that begins.
        dimension: p.
        count: n.
        training_error: as given.
    """

    bound: float
    gap: float
    complexity: float
    divergence: float
    curvature_divergence: float
    displacement_divergence: float
    union: float
    confidence: float
    prior_precision: float
    precision_per_eigenvalue: float
    effective_directions: int
    threshold: float
    dimension: int
    count: int
    training_error: float

    def __repr__(self) -> str:
        return (
            f"PacBayes(bound {self.bound:.4g} = {self.training_error:.3g} + gap {self.gap:.3g} + complexity "
            f"{self.complexity:.3g}; KL {self.divergence:.4g} nats, {self.effective_directions} effective directions "
            f"of {self.dimension}, prior precision {self.prior_precision:.3g})"
        )


def pac_bayes(
    spectrum: Any,
    *,
    displacement: float | Tensor | Mapping[str, Tensor],
    count: int | None = None,
    failure: float = 0.05,
    training_error: float = 0.0,
    prior_precisions: Sequence[float] = SCALES,
) -> PacBayes:
    """PAC-Bayes bound of the error of random weights around w, in the quadratic approximation of the loss.

        prior N(w0, 1/e),   posterior N(w, sum_i e_i e_i^T / lbar_i)   with l_i, e_i the eigenpairs of F at w,
        KL = 1/2 [sum_i ln(lbar_i / e) + e / lbar_i - 1  +  e |w - w0|^2],
        bound = training_error + sum_i l_i / lbar_i + sqrt((KL + ln(n / failure) + ln(scales)) / (2 (n - 1))),

    minimised over the lbar_i and the scale e. The minimum has lbar_i = e + kappa l_i with one number kappa = 8 (n - 1)
    sqrt(...), so directions with l_i far below e / kappa keep the prior and cost nothing: a sloppy spectrum has few
    others.

    **This estimates a bound; it is no certificate.** 1/2 sum l_i / lbar_i is the expected rise of the cross-entropy in
    nats to second order, and cross-entropy / ln 2 bounds the error rate, so sum l_i / lbar_i is above both; but the
    quadratic approximation is unchecked far from w, and F stands for the Hessian. A certificate draws weights from the
    posterior and counts errors. It matters: on binary MNIST the formula says .18, and weights drawn from the posterior
    it chose are wrong half the time (docs/studies/sloppiness.md).

    Args:
        spectrum: of F on training examples: a Spectrum with all eigenvalues above its floor, or an operator.
        displacement: w - w0 as a tensor or as name -> tensor, or its Euclidean length. w0 is the prior's mean, the
            initialisation, and must not depend on the training data.
        count: n, the training examples; default those behind the spectrum.
        failure: the probability with which the bound may fail.
        training_error: of w itself, between 0 and 1; its training loss in nats divided by ln 2 is a safe choice.
        prior_precisions: the scales e to choose from, fixed before the data are seen; default ten to the decade from
            1e-3 to 1e8. Trying K of them costs ln K nats.

    Returns:
        PacBayes: the bound, its terms, the effective directions and the scale.

    Raises:
        InputError: the spectrum is sampled or holds the top only, or a number is out of its range.

    Cost: some 50 passes over the eigenvalues per scale; no model is run.

    Source: Yang, Mao, Chaudhari 2022 (posterior in the eigenbasis, minimised analytically); McAllester 1999 (the form
    of the bound); Dziugaite & Roy 2017 (choosing the prior's scale by a union bound, there over a countable grid).

    >>> sloppy = Spectrum([10.0 ** -i for i in range(8)], dimension=1000, count=50_000)
    >>> flat = Spectrum([1.1111111 / 1000] * 1000, count=50_000)
    >>> a, b = (pac_bayes(s, displacement=5.0) for s in (sloppy, flat))
    >>> a.effective_directions, b.effective_directions, a.bound < b.bound
    (5, 1000, True)
    """
    values, dimension, known = _eigenvalues(spectrum)
    n = known if count is None else count
    if n is None or not n >= 2:
        raise InputError(f"count={n!r}; how many training examples n >= 2 the weights were fitted to is needed")
    if not 0 < failure < 1 or not 0 <= training_error <= 1:
        raise InputError(f"failure={failure!r} must be in (0, 1) and training_error={training_error!r} in [0, 1]")
    scales = np.asarray(prior_precisions, dtype=np.float64)
    if scales.ndim != 1 or not len(scales) or not ((scales > 0) & np.isfinite(scales)).all():
        raise InputError("prior_precisions must be a list of positive finite numbers")
    squared = _squared_length(displacement)
    confidence, union = math.log(n / failure), math.log(len(scales))

    def terms(kappa: float, scale: float) -> tuple[float, float, float]:
        ratio = kappa * values / scale
        gap = float((values / (scale * (1 + ratio))).sum())
        curvature = 0.5 * float((np.log1p(ratio) - ratio / (1 + ratio)).sum())
        divergence = curvature + 0.5 * scale * squared
        return gap, curvature, math.sqrt((divergence + confidence + union) / (2 * (n - 1)))

    def total(step: float, scale: float) -> float:
        gap, _, complexity = terms(8 * (n - 1) * math.exp(step), scale)
        return gap + complexity

    best = (math.inf, 0.0, 0.0)
    for scale in scales:
        # the bound may have several minima in kappa: scanned first, then followed down
        index = int(np.argmin([total(step, scale) for step in STEPS]))
        ends = (STEPS[max(index - 1, 0)], STEPS[min(index + 1, len(STEPS) - 1)])
        found = minimize_scalar(total, bounds=ends, args=(scale,), method="bounded", options={"xatol": 1e-9})
        best = min(best, (float(found.fun), float(scale), 8 * (n - 1) * math.exp(found.x)))
    _, scale, kappa = best
    gap, curvature, complexity = terms(kappa, scale)
    return PacBayes(
        bound=training_error + gap + complexity,
        gap=gap,
        complexity=complexity,
        divergence=curvature + 0.5 * scale * squared,
        curvature_divergence=curvature,
        displacement_divergence=0.5 * scale * squared,
        union=union,
        confidence=confidence,
        prior_precision=scale,
        precision_per_eigenvalue=kappa,
        effective_directions=int((kappa * values >= scale).sum()),
        threshold=scale / kappa,
        dimension=dimension,
        count=int(n),
        training_error=float(training_error),
    )


def _eigenvalues(given: Any) -> tuple[np.ndarray, int, int | None]:
    """Those above the floor, p, and how many examples are behind them."""
    spectrum = given if hasattr(given, "floor") else given.spectrum() if hasattr(given, "spectrum") else given
    if not isinstance(spectrum, Spectrum) or spectrum.partial:
        held = "the top of a spectrum only" if isinstance(spectrum, Spectrum) else f"a {type(spectrum).__name__}"
        raise InputError(
            f"pac_bayes needs every eigenvalue above the floor and was given {held}; make it with "
            f"dynaxx.fisher(..., form='gram').spectrum(), on part of the training examples if need be, with count= all"
        )
    if spectrum.negative:
        raise InputError(f"{spectrum.negative} eigenvalues are negative; give the spectrum of a Fisher matrix")
    values = spectrum.eigenvalues[spectrum.eigenvalues > spectrum.floor]
    return values.numpy(), spectrum.dimension, spectrum.count


def _squared_length(displacement: float | Tensor | Mapping[str, Tensor]) -> float:
    parts = displacement.values() if isinstance(displacement, Mapping) else [displacement]
    squared = sum(float(torch.as_tensor(part, dtype=torch.float64).detach().square().sum()) for part in parts)
    if not math.isfinite(squared):
        raise InputError("displacement is not finite; give w - w0, or its length")
    return squared
