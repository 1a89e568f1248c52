"""Estimates of the trace, each with its standard error.

Which one? ``hutchinson`` needs nothing but products and wins on flat spectra, its relative error being at most sqrt(2 /
(samples * participation ratio)). The others project out what a sketch of the range has found: below about twice the
effective rank in sketch columns they gain nothing, above it 10 to 1000 times. ``xnystrace`` is the sharpest of them
where the operator is PSD.

All take signs, keyed by probe index. ``samples`` counts products; with samples >= p each returns the exact trace by p
products with columns of the identity (``exact`` is True).
"""

import math
import warnings

import torch
from torch import Tensor

from dynaxx.errors import ConvergenceWarning, InputError
from dynaxx.estimate import Estimate
from dynaxx.linalg.dense import diagonal_exact
from dynaxx.linalg.probes import RESIDUAL, signs
from dynaxx.linalg.protocol import Operator, chunks, dimension, product, products, require_count, require_room
from dynaxx.linalg.sketch import independent, leave_one_out, pair_inverse, standard_error


def hutchinson(
    op: Operator, *, samples: int = 32, seed: int = 0, tolerance: float | None = None, max_samples: int | None = None
) -> Estimate:
    """The trace as the mean of x^T A x over sign vectors x.

    Unbiased for symmetric A, with variance 2 (|A|_F^2 - sum_i A_ii^2) / samples.

    Args:
        op: symmetric operator (p, p).
        samples: products, >= 2; with a tolerance, products per round.
        seed: of the signs.
        tolerance: go on in rounds of ``samples`` until the standard error is at most this fraction of the estimate.
            Stopping by what was drawn biases the result a little towards draws that agree; take rounds of 10 or more.
        max_samples: where to stop at the latest; default 100 * samples.

    Returns:
        Estimate, exact where the number of products would reach p. A ConvergenceWarning is issued where the tolerance
        was not reached.

    Raises:
        InputError: samples < 2, or a tolerance that is not positive.

    Cost: one product per sample; memory 2 p per column of a product.

    Source: Hutchinson, Commun. Stat. Simul. Comput. 18 (1989).

    >>> hutchinson(torch.diag(torch.arange(1., 101.)), samples=4)
    5050 ± 0 (4 draws)
    """
    p = dimension(op)
    require_count("samples", samples, 2, "one draw has no standard error")
    if tolerance is not None and not tolerance > 0:
        raise InputError(f"tolerance={tolerance!r} is not a number > 0; it is the relative standard error to stop at")
    most = samples
    if tolerance is not None:
        most = (
            100 * samples
            if max_samples is None
            else require_count("max_samples", max_samples, samples, "a round is samples")
        )
    draws: list[float] = []
    while True:
        target = min(len(draws) + samples, most)
        if target >= p:
            return _exact(op)
        for start, stop in chunks(op, len(draws), target):
            x = signs(op, start, stop, seed=seed)
            draws += (x * product(op, x)).sum(0).tolist()
        estimate = Estimate.mean(draws)
        if tolerance is None or estimate.stderr <= tolerance * abs(estimate):
            return estimate
        if len(draws) >= most:
            warnings.warn(
                f"hutchinson: after {len(draws)} samples the trace is {estimate}, its relative standard error above "
                f"tolerance={tolerance:g}; raise max_samples, or use xtrace if the spectrum decays",
                ConvergenceWarning,
                stacklevel=2,
            )
            return estimate


def hutch_plus_plus(op: Operator, *, samples: int = 30, seed: int = 0) -> Estimate:
    """The trace on a sketched subspace, exactly, plus Hutchinson's estimate of the rest.

        tr A = tr Q^T A Q + E x^T (I - QQ^T) A (I - QQ^T) x,    Q = orth(A S),    S and x independent signs

    Unbiased for any Q that does not depend on x; exact when Q holds the range of A. The standard error is that of the
    second term.

    Args:
        op: symmetric operator (p, p).
        samples: products in all, >= 6: a third each for the sketch, for A Q, and (with what is left over) for the rest.
        seed: of the signs.

    Raises:
        InputError: samples < 6.
        SizeError: samples vectors of length p do not fit.

    Cost: ``samples`` products, p samples^2 / 9 flops of QR; memory p * samples.

    Source: Meyer, Musco, Musco & Woodruff, Hutch++: optimal stochastic trace estimation, SOSA 2021.

    >>> hutch_plus_plus(torch.ones(100, 100), samples=6).value  # rank 1
    100.0...
    """
    p = dimension(op)
    if require_count("samples", samples, 6, "two probes for the rest have a standard error") >= p:
        return _exact(op)
    require_room("the sketch", op, samples, "take fewer samples")
    k = samples // 3
    q, _ = torch.linalg.qr(products(op, signs(op, 0, k, seed=seed)))
    x = signs(op, 0, samples - 2 * k, seed=seed, stream=RESIDUAL)
    x -= q @ (q.T @ x)
    found = float((q * products(op, q)).sum())
    rest = Estimate.mean((x * products(op, x)).sum(0).tolist())
    return Estimate(found + rest.value, rest.stderr, rest.samples, False)


def xtrace(op: Operator, *, samples: int = 30, seed: int = 0) -> Estimate:
    """The trace from h = samples / 2 probes, each in turn left out of the sketch and used on the rest.

        t_i = tr Q_i^T A Q_i + x_i^T (I - Q_i Q_i^T) A (I - Q_i Q_i^T) x_i,
        Q_i = orth(A [x_j, j != i]),    tr A = E mean_i t_i

    Unbiased; exact when rank A < h. The standard error is that of ``sketch.standard_error``, from leaving out two
    probes as well; it makes no products of its own. It leans to the large side where h is close to the number of
    outlying eigenvalues.

    Args:
        op: symmetric operator (p, p).
        samples: products in all, >= 4, rounded down to an even number.
        seed: of the signs.

    Raises:
        InputError: samples < 4.
        SizeError: 2 samples vectors of length p do not fit.

    Cost: ``samples`` products, p samples^2 flops; memory 2 p samples.

    Source: Epperly, Tropp & Webber, XTrace: making the most of every sample in stochastic trace estimation, SIMAX 45
    (2024).

    >>> round(xtrace(torch.ones(100, 100), samples=6), 3)  # rank 1
    100.0
    """
    p = dimension(op)
    if require_count("samples", samples, 4, "two probes have a standard error") >= p:
        return _exact(op)
    require_room("the sketch", op, 2 * samples, "take fewer samples")
    x = signs(op, 0, samples // 2, seed=seed)
    q, r, s = leave_one_out(products(op, x))
    inner = q.T @ products(op, q)
    w = q.T @ x
    inner_s, inner_w = inner @ s, inner @ w
    whole, direct, gap = inner.trace(), (w * r).sum(0), (s * r).sum(0)
    ss, sw, own = s.T @ inner_s, s.T @ inner_w, (w * inner_w).sum(0)
    along = s.T @ w

    def draw(taken: Tensor, a_j: Tensor, mixed: Tensor, squared: Tensor) -> Tensor:
        # Q_i Q_i^T = Q (I - P) Q^T and c = (I - P) w_j = w_j - S a, P the projector on what is left out; A x_j = Q r_j
        return whole - taken + direct - 2 * (direct - a_j * gap) + own - 2 * mixed + squared

    a = along.diagonal()
    draws = draw(ss.diagonal(), a, a * sw.diagonal(), a.square() * ss.diagonal())
    # The same with i (rows) left out beside j (columns)
    pair = pair_inverse(s.T @ s)
    a_i, a_j = pair.own * along + pair.cross * a, pair.own * a + pair.cross * along
    taken = pair.own * (ss.diagonal()[:, None] + ss.diagonal()) + 2 * pair.cross * ss
    mixed = a_i * sw + a_j * sw.diagonal()
    squared = a_i.square() * ss.diagonal()[:, None] + 2 * a_i * a_j * ss + a_j.square() * ss.diagonal()
    return _leave_one_out_estimate(draws, draw(taken, a_j, mixed, squared))


def xnystrace(op: Operator, *, samples: int = 30, seed: int = 0) -> Estimate:
    """The trace of a PSD operator from its Nystrom approximation, each probe in turn left out.

        t_i = tr N_i + x_i^T (A - N_i) x_i,    N_i = Y_i (X_i^T Y_i)^+ Y_i^T,
        Y = A X, column i left out of X and Y,    tr A = E mean_i t_i

    With M = X^T Y and G = M^+ the pseudo-inverse, leaving out i takes Y G e_i e_i^T G Y^T / G_ii off N, and the
    residual form is 1 / G_ii. No shift of A is needed (the paper adds one): directions of M at the level of rounding
    are dropped, which moves the result by rounding only, and a probe that depends on the others through what is left
    takes nothing off.

    Unbiased up to rounding; exact when rank A < samples. Its standard error is that of ``sketch.standard_error``.

    Args:
        op: symmetric PSD operator (p, p).
        samples: products, >= 2.
        seed: of the signs.

    Raises:
        InputError: samples < 2, or the operator is seen to be indefinite.
        SizeError: 3 samples vectors of length p do not fit.

    Cost: ``samples`` products, p samples^2 flops; memory 3 p samples.

    Source: Epperly, Tropp & Webber, SIMAX 45 (2024); Gittens & Mahoney, JMLR 17 (2016), for the
    approximation.

    >>> round(xnystrace(torch.ones(100, 100), samples=3), 3)  # rank 1
    100.0
    """
    p = dimension(op)
    if require_count("samples", samples, 2, "two probes have a standard error") >= p:
        return _exact(op)
    require_room("the sketch", op, 3 * samples, "take fewer samples")
    x = signs(op, 0, samples, seed=seed)
    y = products(op, x)
    core = (x.T @ y).to(torch.float64)
    values, u = torch.linalg.eigh((core + core.T) / 2)
    values, u = values.flip(0), u.flip(1)
    # Entries of the core are as exact as the products, not as float64.
    noise = torch.finfo(op.dtype).eps * float(y.norm()) * math.sqrt(p * samples)
    if float(values[-1]) < -10 * noise:
        raise InputError(
            f"xnystrace takes a PSD operator; this one has x^T A x = {float(values[-1]):.3g} for some x in the span "
            f"of its probes (rounding is {noise:.1g}); use xtrace"
        )
    rank = int((values > noise).sum())
    values, u = values[:rank], u[:, :rank]
    root = (y @ u.to(op.dtype)).to(torch.float64) / values.sqrt()  # N = root root^T
    half = u / values.sqrt()
    apart = independent(u.square().sum(1))
    inverse = torch.where(apart, half.square().sum(1), 1)  # G_ii
    unit = torch.where(apart[:, None], half, 0) / inverse.sqrt()[:, None]  # G_ij / sqrt(G_ii G_jj) = <unit_i, unit_j>
    removed = unit @ (root.T @ root) @ unit.T
    residual = torch.where(apart, 1 / inverse, 0)
    draws = root.square().sum() - removed.diagonal() + residual
    pair = pair_inverse(unit @ unit.T)
    taken = pair.own * (removed.diagonal()[:, None] + removed.diagonal()) + 2 * pair.cross * removed
    return _leave_one_out_estimate(draws, root.square().sum() - taken + pair.own * residual)


def _leave_one_out_estimate(draws: Tensor, pairs: Tensor) -> Estimate:
    """The mean of draws t_j (h,), its standard error from pairs (h, h): t_j made without probe i in row i."""
    h = len(draws)
    beside = ~torch.eye(h, dtype=torch.bool, device=pairs.device)
    return Estimate(float(draws.mean()), float(standard_error(draws, pairs[beside].view(h, h - 1))), h, False)


def _exact(op: Operator) -> Estimate:
    return Estimate(float(diagonal_exact(op).to(torch.float64).sum()))
