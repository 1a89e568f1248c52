"""The Frobenius norm from products."""

import math

import torch

from dynaxx.estimate import Estimate
from dynaxx.linalg.probes import signs
from dynaxx.linalg.protocol import Operator, chunks, dimension, identity_columns, product, require_count


def frobenius(op: Operator, *, samples: int = 32, seed: int = 0) -> Estimate:
    """|A|_F, from |A|_F^2 = E |A x|^2 over sign vectors x.

    The standard error is that of the square, divided by 2 |A|_F (delta method); the root bends the mean down by a
    relative (stderr / |A|_F)^2 / 2, small beside it. With samples >= p the exact norm is returned, by p products with
    columns of the identity.

    Args:
        op: symmetric operator (p, p).
        samples: products, >= 2.
        seed: of the signs.

    Raises:
        InputError: samples < 2.

    Cost: one product per sample; memory 2 p per column of a product.

    >>> frobenius(torch.diag(torch.tensor([3., 4.])))
    5
    """
    p = dimension(op)
    exact = require_count("samples", samples, 2, "one draw has no standard error") >= p
    draws: list[float] = []
    for start, stop in chunks(op, 0, p if exact else samples):
        x = identity_columns(op, start, stop) if exact else signs(op, start, stop, seed=seed)
        draws += product(op, x).to(torch.float64).square().sum(0).tolist()
    if exact:
        return Estimate(math.sqrt(math.fsum(draws)))
    square = Estimate.mean(draws)
    norm = math.sqrt(square)
    return Estimate(norm, square.stderr / (2 * norm) if norm else 0.0, samples, False)
