"""Random vectors on the operator's device, keyed by their index, so that more of them extend fewer."""

import math

import torch
from torch import Tensor

from dynaxx import counter
from dynaxx.linalg.protocol import Operator

# Streams of the counter: what must be independent under one seed stands in different ones.
PROBES, RESIDUAL, STARTS = 101, 102, 103


def signs(op: Operator, start: int, stop: int, *, seed: int, stream: int = PROBES) -> Tensor:
    """Rademacher probes start..stop, one per column, (p, stop - start): E x x^T = I, and each x_j^2 = 1."""
    keys = torch.arange(start, stop, device=op.device)
    return counter.signs(seed, keys, (op.shape[0],), stream, op.dtype).T


def gaussian(op: Operator, index: int, *, seed: int, stream: int = STARTS) -> Tensor:
    """The standard normal vector (p,) of this index (Box & Muller 1958).

    Start vectors of Krylov methods are drawn from here: a vector of signs is exactly orthogonal to a Hadamard-like
    eigenvector with a probability that is not small, and would then never see it.
    """
    keys = torch.tensor([index], device=op.device)
    radius, angle = counter.uniform(seed, keys, (2, op.shape[0]), stream)[0]
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).to(op.dtype)
