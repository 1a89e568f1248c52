"""Estimates of the diagonal, entry by entry, each with its standard error. Signs only: they alone make x_i^2 = 1
exact.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dynaxx.linalg.dense import diagonal_exact
from dynaxx.linalg.probes import signs
from dynaxx.linalg.protocol import Operator, chunks, dimension, product, products, require_count, require_room
from dynaxx.linalg.sketch import leave_one_out, pair_inverse, standard_error


class DiagonalEstimate(NamedTuple):
    """``diagonal`` (p,) and its standard error ``stderr`` (p,), zeros where the answer is exact."""

    diagonal: Tensor
    stderr: Tensor


def hutchinson_diagonal(op: Operator, *, samples: int = 32, seed: int = 0) -> DiagonalEstimate:
    """The diagonal as the mean of x * (A x) over sign vectors x.

    Unbiased, with variance sum_{j != i} A_ij^2 / samples in entry i: it can be negative for a PSD operator, and its
    relative error has no bound. With samples >= p the exact diagonal is returned, by p products with columns of the
    identity.

    Args:
        op: symmetric operator (p, p).
        samples: products, >= 2.
        seed: of the signs.

    Raises:
        InputError: samples < 2.

    Cost: one product per sample; memory 2 p per column of a product.

    Source: Bekas, Kokiopoulou & Saad, An estimator for the diagonal of a matrix, Appl. Numer. Math. 57 (2007).

    >>> hutchinson_diagonal(torch.diag(torch.arange(100.)), samples=2).diagonal[:3].tolist()
    [0.0, 1.0, 2.0]
    """
    p = dimension(op)
    if require_count("samples", samples, 2, "one draw has no standard error") >= p:
        return _exact(op)
    mean = torch.zeros(p, dtype=op.dtype, device=op.device)
    squares = torch.zeros_like(mean)
    for start, stop in chunks(op, 0, samples):
        x = signs(op, start, stop, seed=seed)
        draws = x * product(op, x)
        # Pooled mean and sum of squared deviations (Chan, Golub & LeVeque 1979): a mean of squares would cancel.
        centre, many = draws.mean(1), stop - start
        squares += (draws - centre[:, None]).square().sum(1) + (centre - mean).square() * (start * many / stop)
        mean += (centre - mean) * (many / stop)
    return DiagonalEstimate(mean, (squares / (samples - 1) / samples).sqrt())


def xdiag(op: Operator, *, samples: int = 30, seed: int = 0) -> DiagonalEstimate:
    """The diagonal from h = samples / 2 probes, each in turn left out of the sketch and used on the rest.

        d_i = diag(Q_i Q_i^T A) + x_i * (I - Q_i Q_i^T) A x_i,    Q_i = orth(A [x_j, j != i]);    diag A ~ mean_i d_i

    Unbiased; exact when rank A < h. Better than ``hutchinson_diagonal`` where the spectrum decays within h, worse where
    it is flat. The standard error is that of ``sketch.standard_error``, entry by entry. With samples >= p the exact
    diagonal is returned.

    Args:
        op: symmetric operator (p, p).
        samples: products in all, >= 4, rounded down to an even number.
        seed: of the signs.

    Raises:
        InputError: samples < 4.
        SizeError: 3 samples vectors of length p do not fit.

    Cost: ``samples`` products, 2 p samples^2 flops; memory 3 p samples.

    Source: Epperly, Tropp & Webber, XTrace, SIMAX 45 (2024).

    >>> estimate = xdiag(torch.ones(100, 100), samples=6)  # rank 1
    >>> torch.allclose(estimate.diagonal, torch.ones(100), atol=1e-4)
    True
    """
    p = dimension(op)
    if require_count("samples", samples, 4, "two probes have a standard error") >= p:
        return _exact(op)
    require_room("the sketch", op, 3 * samples, "take fewer samples")
    x = signs(op, 0, samples // 2, seed=seed)
    q, r, s = leave_one_out(products(op, x))
    images = products(op, q)
    h = x.shape[1]
    # Q_i Q_i^T = QQ^T - (Q s_i)(Q s_i)^T. A x_i = Q r_i is in the sketch, so of its residual only Q s_i (s_i . r_i)
    # remains.
    normals, turned, scaled = q @ s, images @ s, x * (s * r).sum(0)
    draws = normals * (scaled - turned)
    own, cross = pair_inverse(s.T @ s)

    def fewer(i: int) -> Tensor:
        """The draws of the other probes, made without probe i."""
        n, t = normals[:, i, None], turned[:, i, None]
        draw = own[i] * (normals * (scaled - turned) - n * t) + cross[i] * (n * (scaled - turned) - normals * t)
        return torch.cat([draw[:, :i], draw[:, i + 1 :]], 1)

    error = standard_error(draws, (fewer(i) for i in range(h)))
    return DiagonalEstimate((q * images).sum(1) + draws.mean(1), error)


def _exact(op: Operator) -> DiagonalEstimate:
    diagonal = diagonal_exact(op)
    return DiagonalEstimate(diagonal, torch.zeros_like(diagonal))
