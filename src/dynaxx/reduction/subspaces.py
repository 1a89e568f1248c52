"""Subspaces of dimension k to project a displacement on: leading eigenvectors, and the controls they are held against.

Each answers for one displacement d, in vectors of length p and never in p x k numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dynaxx.eigenspace import Eigenspace
from dynaxx.errors import InputError

CONTROLS = ("random", "magnitude", "diagonal", "data")


class Subspace(Protocol):
    """Nested or drawn subspaces, one for each k from ``least`` to ``largest``, for one displacement."""

    name: str
    least: int
    largest: int

    def projections(self, ks: Sequence[int]) -> Iterator[Tensor]:
        """P_k d, (p,) in float64, for each k."""

    def energy(self, k: int) -> float:
        """|P_k d|^2 / |d|^2."""


class Eigenvectors:
    """The k leading eigenvectors of F: one product for all k, one reverse pass for each."""

    name, least = "eigenvectors", 0

    def __init__(self, space: Eigenspace, displacement: Tensor) -> None:
        self.space, self.largest = space, space.rank
        self.coordinates = space.coordinates(displacement)
        self._squared = float(displacement.double().square().sum())

    def projections(self, ks: Sequence[int]) -> Iterator[Tensor]:
        """P_k d, a few k to a pass over the data."""
        step = self.space.columns_at_once
        for start in range(0, len(ks), step):
            some = ks[start : start + step]
            kept = torch.arange(max(some), device=self.coordinates.device)[:, None] < torch.tensor(
                some, device=self.coordinates.device
            )
            yield from self.space.combine(self.coordinates[: max(some), None] * kept).T

    def energy(self, k: int) -> float:
        """From the coordinates; no pass."""
        return float(self.coordinates[:k].square().sum()) / self._squared


class Random:
    """A random subspace of dimension k, uniform over all of them, drawn anew for each k.

        P d = c^2 d + c s |d| v,   c^2 ~ Beta(k/2, (p - k)/2),   s^2 = 1 - c^2,   v . d = 0

    The distribution of the projection of one given vector is known in closed form: the share of its square that is kept
    has a beta distribution, and by symmetry the rest of the projection points anywhere (v is a uniform unit vector). So
    p numbers do, where a basis would take p k.
    """

    name, least = "random", 0

    def __init__(self, displacement: Tensor, seed: int) -> None:
        self.displacement, self.seed, self.largest = displacement.double(), seed, len(displacement)

    def projections(self, ks: Sequence[int]) -> Iterator[Tensor]:
        """P_k d."""
        for k in ks:
            kept = self.energy(k)
            d = self.displacement
            # drawn on the CPU, so that every device gets the same
            generator = torch.Generator().manual_seed(int(self._stream(k, 1).integers(2**62)))
            v = torch.randn(len(d), generator=generator, dtype=torch.float64).to(d.device)
            v -= (v @ d) / (d @ d) * d
            length = float(v.norm())
            aside = math.sqrt(kept * (1 - kept)) * float(d.norm()) / length if length > 0 else 0.0
            yield kept * d + aside * v

    def energy(self, k: int) -> float:
        """c^2, the draw itself; k/p in the mean."""
        if k in (0, self.largest):
            return k / self.largest
        return float(self._stream(k, 0).beta(k / 2, (self.largest - k) / 2))

    def _stream(self, k: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, k, purpose])


class Coordinates:
    """The k coordinates with the largest scores; the others are put back to the centre.

    Args:
        scores: (p,), such as |d| or the diagonal of F.
    """

    least = 0

    def __init__(self, name: str, displacement: Tensor, scores: Tensor) -> None:
        self.name, self.displacement, self.largest = name, displacement.double(), len(displacement)
        self._scores = scores.detach()

    @cached_property
    def _order(self) -> Tensor:
        return self._scores.argsort(descending=True, stable=True)

    def projections(self, ks: Sequence[int]) -> Iterator[Tensor]:
        """d on k coordinates, zero elsewhere."""
        for k in ks:
            out = torch.zeros_like(self.displacement)
            kept = self._order[:k]
            out[kept] = self.displacement[kept]
            yield out

    def energy(self, k: int) -> float:
        """The share of |d|^2 on them."""
        return float(self.displacement[self._order[:k]].square().sum() / self.displacement.square().sum())


def control(name: str, space: Eigenspace, displacement: Tensor, seed: int) -> Subspace:
    """The control of that name, of those that need the weights and their metric alone."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r}; expected a whole number >= 0")
    if name == "random":
        return Random(displacement, seed)
    return Coordinates(
        name, displacement, displacement.abs() if name == "magnitude" else space.operator.diagonal().to(displacement)
    )
