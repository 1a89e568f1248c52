"""The spectrum as a sampled measure."""

import math
from typing import Any

import torch
from torch import Tensor

from dynaxx.estimate import Estimate
from dynaxx.spectrum.jackknife import jackknife_error
from dynaxx.spectrum.measure import Functional, Measure, require_definite, rounding


class SampledSpectrum(Measure):
    """The same verbs from a sampled measure of the eigenvalues (stochastic Lanczos quadrature), each with its standard
    error.

    Values come from the measure pooled over probes, standard errors from the jackknife over probes (each left out in
    turn), so that ratios such as entropies are treated alike. They cover the draw of the probes, not the resolution of
    the quadrature: nodes merge eigenvalues that lie close, so ``slope``, ``uniformity`` and ``gap`` are left to
    ``Spectrum``, while ``stiff_fraction`` and ``decades`` are good to the distance between nodes.

    Args:
        quadrature: what ``dynaxx.linalg.quadrature`` returns, or anything with its ``nodes`` and ``weights`` (probes,
            steps), ``dimension``, ``precision``, ``exact`` and ``density``.
        count, rank_bound: see ``Spectrum``.
        floor: as there; its default takes p for the number of eigenvalues.
    """

    def __init__(
        self, quadrature: Any, *, count: int | None = None, floor: float | None = None, rank_bound: int | None = None
    ) -> None:
        self.quadrature = quadrature
        self.nodes: Tensor = quadrature.nodes
        self.weights: Tensor = quadrature.weights
        self.dimension = quadrature.dimension
        self.count = count
        self.floor = rounding(self.nodes, self.dimension, quadrature.precision) if floor is None else float(floor)
        self.rank_bound = rank_bound

    def density(self, grid: Tensor | None = None, width: float | None = None) -> tuple[Tensor, Tensor]:
        """(grid, density): eigenvalues smoothed by a Gaussian, integrating to 1.

        Args:
            grid: (g,) in units of the eigenvalues; default 400 points over their range and three widths beyond.
            width: standard deviation; default a hundredth of the range.
        """
        low, high = float(self.nodes.min()), float(self.nodes.max())
        width = width or (high - low) / 100 or max(abs(high), 1.0) / 100
        if grid is None:
            grid = torch.linspace(low - 3 * width, high + 3 * width, 400, dtype=torch.float64)
        return grid, self.quadrature.density(grid, width)

    def __repr__(self) -> str:
        probes, steps = self.nodes.shape
        top = float(self.nodes.max())
        return f"SampledSpectrum(dimension {self.dimension}, {probes} probes of {steps} nodes, largest {top:.4g})"

    def _evaluate(self, verb: str, functional: Functional, *, definite: bool = True) -> Estimate:
        probes = len(self.nodes)
        if definite:
            require_definite(verb, self.nodes[self.weights > 0], self.floor)

        def value(rows: Tensor) -> float:
            nodes, weights = self.nodes[rows].flatten(), self.weights[rows].flatten() * (self.dimension / len(rows))
            nodes, order = nodes.sort(descending=True)
            weights = weights[order]
            counted = (weights > 0) & ((nodes if definite else nodes.abs()) > self.floor)
            return functional(nodes[counted], weights[counted])

        every = torch.arange(probes)
        if self.quadrature.exact:
            return Estimate(value(every))
        if probes == 1:
            return Estimate(value(every), math.nan, 1, False)
        return Estimate(value(every), jackknife_error([value(every[every != i]) for i in range(probes)]), probes, False)
