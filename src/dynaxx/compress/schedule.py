"""How sparse to be after each of several steps."""

from __future__ import annotations


def cubic(sparsity: float, steps: int, start: float = 0.0) -> list[float]:
    """s_j = s - (s - s_0) (1 - j/k)^3 for j = 1 ... k: much at first, while there is much to spare.

    Source: Zhu & Gupta, To prune or not to prune, 2017.

    >>> [round(s, 2) for s in cubic(0.8, 4)]
    [0.46, 0.7, 0.79, 0.8]
    """
    return [sparsity - (sparsity - start) * (1 - j / steps) ** 3 for j in range(1, steps)] + [sparsity]


def exponential(sparsity: float, steps: int, start: float = 0.0) -> list[float]:
    """The same share of what is left goes each time: 1 - s_j = (1 - s_0) ((1 - s) / (1 - s_0))^(j/k).

    >>> [round(s, 3) for s in exponential(0.75, 2)]
    [0.5, 0.75]
    """
    ratio = (1 - sparsity) / (1 - start)
    return [1 - (1 - start) * ratio ** (j / steps) for j in range(1, steps)] + [sparsity]
