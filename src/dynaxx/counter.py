"""Random numbers that depend on what they are for, not on when they are drawn.

``bits(seed, keys, draws)`` hashes (seed, key, counter) with two rounds of the splitmix64 finaliser (Steele, Lea &
Flood 2014). An example's signs and labels are keyed by its global index, so batching, sharding and the order of calls
change nothing, and the user's random state is never touched.
"""

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical right shift: torch's is arithmetic for signed integers."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def bits(seed: int, keys: Tensor, shape: tuple[int, ...] = (), stream: int = 0, skip: int = 0) -> Tensor:
    """64 hashed bits per key and draw.

    Args:
        seed: the user's seed.
        keys: (N,) int64, one key per example (its global index).
        shape: shape of what is drawn for each example.
        stream: keeps draws for different purposes (labels, signs, probes) apart.
        skip: draws of each key that were taken before, so that a long row can be drawn in pieces.

    Returns:
        (N, *shape) int64, on the device of ``keys``.
    """
    count = math.prod(shape)
    salt = _mix(torch.tensor([(seed * 2 + 1) & 0x7FFFFFFFFFFFFFFF, stream + 1], device=keys.device) * _GOLDEN)
    rows = _mix(_mix(keys.to(torch.int64) + salt[0]) + salt[1])
    draws = torch.arange(skip + 1, skip + count + 1, device=keys.device) * _GOLDEN
    return _mix(rows[:, None] + draws).view(len(keys), *shape)


def uniform(seed: int, keys: Tensor, shape: tuple[int, ...] = (), stream: int = 0) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float64, shape (N, *shape)."""
    return (_shift(bits(seed, keys, shape, stream), 11).to(torch.float64) + 0.5) * 2.0**-53


def signs(
    seed: int,
    keys: Tensor,
    shape: tuple[int, ...] = (),
    stream: int = 0,
    dtype: torch.dtype | None = None,
    skip: int = 0,
) -> Tensor:
    """Rademacher signs +1 and -1, shape (N, *shape)."""
    top = _shift(bits(seed, keys, shape, stream, skip), 63)
    return (top * 2 - 1).to(dtype or torch.get_default_dtype())
