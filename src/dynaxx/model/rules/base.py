"""What every rule can do, derived from one thing: per-example gradients.

Shapes: K cotangents, N examples, T positions that share the parameter (absent where there are none), S the parameter's
    shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynaxx.matmul import add_product

CHUNK_BYTES = 2**25  # per-example gradients that exist at one time: glibc maps what is larger anew each time
TILE = 192  # rows of a symmetric product that are made together


class Rule:
    """Per-example algebra of one parameter's use: ``a`` went in, ``g`` is the cotangent of what came out.

    A subclass defines ``gradients``; it overrides the rest only where algebra makes it faster. One contract test holds
    every override against what is derived here.
    """

    positional = False  # inputs are (N, T, ...), so that the examples of a group can be further positions of one

    def gradients(self, a: Any, g: Tensor) -> Tensor:
        """Per-example gradients G = d<g, out>/dw, shape (K, N, *S)."""
        raise NotImplementedError

    def squares(self, a: Any, g: Tensor) -> Tensor:
        """Sum over cotangents and examples of G**2, shape S."""
        return self.gradients(a, g).square().sum((0, 1))

    def norms(self, a: Any, g: Tensor) -> Tensor:
        """Squared norms of G, shape (K, N)."""
        return rows(self.gradients(a, g)).square().sum(2)

    def collapses(self, g: Tensor) -> bool:
        """Whether ``squares`` depends on the cotangents by the sum of their squares alone."""
        return False

    def inner(self, a: Any, g: Tensor, b: Any, h: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Inner products of the gradients of two batches, shape (K, N, L, M), made and summed in ``dtype``.

        Of a batch with itself (a is b and g is h) only the lower half of the matrix (K N, L M) need be there; the sum
        over parameters is completed once, by ``mirrored``.
        """
        left = rows(self.gradients(a, g)).flatten(0, 1)
        right = left if a is b and g is h else rows(self.gradients(b, h)).flatten(0, 1)
        return products([(left, right)], dtype).view(*g.shape[:2], *h.shape[:2])


class Given(Rule):
    """Gradients that are already there, (K, N, *S): the generic path's answer in the form of a use."""

    def gradients(self, a: Any, g: Tensor) -> Tensor:
        return g


class Grouped(Rule):
    """Consecutive examples taken as one, their gradients summed.

    a: (groups, size, ...), g: (K, groups, size, ...).
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def gradients(self, a: Any, g: Tensor) -> Tensor:
        G = self.rule.gradients(None if a is None else a.flatten(0, 1), g.flatten(1, 2))
        return G.unflatten(1, g.shape[1:3]).sum(2)


@dataclass(frozen=True)
class Use:
    """One use of one parameter: the rule, what went in (N, ...) and the pulled cotangents (K, N, ...)."""

    rule: Rule
    a: Any
    g: Tensor

    def part(self, start: int, stop: int) -> Use:
        """Examples start to stop - 1."""
        return Use(self.rule, None if self.a is None else self.a[start:stop], self.g[:, start:stop])

    def grouped(self, size: int) -> Use:
        """The same use with groups of ``size`` examples in place of examples.

        A last group that is too small is filled with zeros.
        """
        lacking = -self.g.shape[1] % size
        a, g = self.a, self.g
        if lacking:
            g = torch.cat([g, g.new_zeros(len(g), lacking, *g.shape[2:])], 1)
            a = None if a is None else torch.cat([a, a[:1].expand(lacking, *a.shape[1:])])
        g, a = g.unflatten(1, (-1, size)), None if a is None else a.unflatten(0, (-1, size))
        if self.rule.positional:
            return Use(self.rule, None if a is None else a.flatten(1, 2), g.flatten(2, 3))
        return Use(Grouped(self.rule), a, g)


def rows(G: Tensor) -> Tensor:
    """Per-example gradients (K, N, *S) as rows (K, N, s), a scalar parameter's too."""
    return G.reshape(*G.shape[:2], -1)


def gradients(uses: Sequence[Use]) -> Tensor:
    """Per-example gradients of a parameter, summed over its uses before anything is squared: (K, N, *S)."""
    total = uses[0].rule.gradients(uses[0].a, uses[0].g)
    for use in uses[1:]:
        total = total + use.rule.gradients(use.a, use.g)
    return total


def squares(uses: Sequence[Use], size: int) -> Tensor:
    """Diagonal of sum G G^T for a parameter of ``size`` entries, shape S."""
    if len(uses) == 1 and not isinstance(uses[0].rule, (Grouped, Given)):
        return uses[0].rule.squares(uses[0].a, uses[0].g)
    return _total(gradients(part).square().sum((0, 1)) for part in parts(uses, size))


def norms(uses: Sequence[Use], size: int) -> Tensor:
    """Squared norms of the per-example gradients, shape (K, N)."""
    if len(uses) == 1:
        return uses[0].rule.norms(uses[0].a, uses[0].g)
    return torch.cat([rows(gradients(part)).square().sum(2) for part in parts(uses, size)], 1)


def inner(left: Sequence[Use], right: Sequence[Use], dtype: torch.dtype = torch.float64) -> Tensor:
    """Block of the Gram matrix, (K, N, L, M), made and summed in ``dtype``; its lower half where left is right."""
    if len(left) == len(right) == 1:
        return left[0].rule.inner(left[0].a, left[0].g, right[0].a, right[0].g, dtype)
    one = rows(gradients(left))
    two = one if left is right else rows(gradients(right))
    flat = one.flatten(0, 1)
    return products([(flat, flat if two is one else two.flatten(0, 1))], dtype).view(*one.shape[:2], *two.shape[:2])


def products(pairs: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """Sum over pairs of L R^T for rows L (m, s) and R (n, s), made and summed in ``dtype``.

    Pairs of one tensor with itself cost half: only tiles on and below the diagonal are multiplied, the others are zero
    until ``mirrored`` fills them.
    """
    total: Tensor | None = None
    rooms: dict[int, Tensor] = {}  # made anew for every piece, they would be mapped anew too

    def widened(matrix: Tensor, side: int) -> Tensor:
        if matrix.dtype == dtype:
            return matrix
        if side not in rooms or rooms[side].numel() < matrix.numel():
            rooms[side] = matrix.new_empty(matrix.numel(), dtype=dtype)
        return rooms[side][: matrix.numel()].view(matrix.shape).copy_(matrix)

    for left, right in _narrow(pairs, dtype):
        symmetric = left is right
        wide = widened(left, 0)
        other = wide if symmetric else widened(right, 1)
        beta = 0 if total is None else 1
        total = wide.new_empty(len(wide), len(other)) if total is None else total
        for i in range(0, len(other), TILE):
            low = i if symmetric else 0
            add_product(total[low:, i : i + TILE], wide[low:], other[i : i + TILE].T, beta)
            if not beta:
                total[:low, i : i + TILE] = 0
    assert total is not None
    return total


def _narrow(pairs: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """The same pairs, by columns that fit CHUNK_BYTES in ``dtype`` where they are not in it already."""
    for left, right in pairs:
        rows = len(left) + (0 if left is right else len(right))
        width = max(1, left.shape[1])  # a parameter without entries adds zeros
        step = width if left.dtype == right.dtype == dtype else chunk(rows * dtype.itemsize)
        for start in range(0, width, step):
            part = left[:, start : start + step]
            yield part, part if left is right else right[:, start : start + step]


def mirrored(matrix: Tensor) -> Tensor:
    """A matrix known by its tiles on and below the diagonal, completed in place."""
    for i in range(TILE, len(matrix), TILE):
        for j in range(0, i, TILE):  # a tile at a time stays in cache, where a transposed strip does not
            matrix[j : j + TILE, i : i + TILE] = matrix[i : i + TILE, j : j + TILE].T
    return matrix


def parts(uses: Sequence[Use], size: int) -> Iterator[list[Use]]:
    """Cut uses along the examples so that per-example gradients of ``size`` entries stay within CHUNK_BYTES."""
    columns, count = uses[0].g.shape[:2]
    members = uses[0].g.shape[2] if isinstance(uses[0].rule, Grouped) else 1
    step = chunk(columns * size * members * uses[0].g.element_size())
    for start in range(0, count, step):
        yield [use.part(start, start + step) for use in uses]


def chunk(bytes_per_example: int) -> int:
    """Examples whose per-example gradients fit CHUNK_BYTES, at least one."""
    return max(1, CHUNK_BYTES // max(1, bytes_per_example))


def _total(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total
