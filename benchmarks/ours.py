"""The cells of dynaxx: its public functions, called as a user would."""

from __future__ import annotations

from typing import Any

import torch
from registry import DAMPING, PRODUCTS, TOP, Cell, cell
from torch import Tensor
from workloads import Workload, gradient

import dynaxx

SAMPLED = "hutchinson"  # one column; the same cost as "monte_carlo", and a smaller error
EVERY = 10


def fisher(workload: Workload, **options: Any) -> Any:
    """Inputs alone: labels are needed by estimator="empirical" only."""
    return dynaxx.fisher(workload.model, workload.x, **options)


def vectors(workload: Workload) -> list[Tensor]:
    """PRODUCTS normal vectors of length p, the first one the one that check.py compares."""
    size = sum(parameter.numel() for parameter in workload.model.parameters())
    generator = torch.Generator().manual_seed(1)
    dtype, device = next(workload.model.parameters()).dtype, workload.x.device
    drawn = torch.randn(PRODUCTS, size, generator=generator)
    return [vector.to(device, dtype) for vector in drawn]


def by_name(operator: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Kronecker factors: weight name -> (of the inputs, of the cotangents)."""
    return {part.names[0]: (part.right, part.left) for part in operator.parts if part.form == "kfac"}


@cell("diagonal_sampled", "dynaxx")
def diagonal_sampled(workload: Workload) -> Cell:
    return Cell(lambda: fisher(workload, form="diagonal", estimator=SAMPLED), answer=lambda F: F.diagonal())


@cell("diagonal_exact", "dynaxx")
def diagonal_exact(workload: Workload) -> Cell:
    return Cell(lambda: fisher(workload, form="diagonal"), answer=lambda F: F.diagonal())


@cell("kfac_sampled", "dynaxx")
def kfac_sampled(workload: Workload) -> Cell:
    return Cell(lambda: fisher(workload, form="kfac", estimator=SAMPLED), answer=by_name)


@cell("kfac_exact", "dynaxx")
def kfac_exact(workload: Workload) -> Cell:
    return Cell(lambda: fisher(workload, form="kfac"), answer=by_name)


@cell("fisher_product", "dynaxx")
def fisher_product(workload: Workload) -> Cell:
    given = vectors(workload)

    def run() -> list[Tensor]:
        F = fisher(workload)
        return [F @ vector for vector in given]

    return Cell(run, PRODUCTS, lambda products: products[0])


@cell("hessian_product", "dynaxx")
def hessian_product(workload: Workload) -> Cell:
    given = vectors(workload)

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return workload.loss(output.flatten(0, -2), targets.flatten())

    def run() -> list[Tensor]:
        H = dynaxx.hessian(workload.model, (workload.x, workload.y), loss)
        return [H @ vector for vector in given]

    return Cell(run, PRODUCTS, lambda products: products[0])


@cell("trace", "dynaxx")
def trace(workload: Workload) -> Cell:
    return Cell(lambda: fisher(workload, estimator=SAMPLED).trace(), answer=float)


@cell("top_eigenvalues", "dynaxx")
def top_eigenvalues(workload: Workload) -> Cell:
    return Cell(lambda: fisher(workload).eigenvalues(TOP, tolerance=1e-3), answer=lambda values: values)


@cell("spectrum", "dynaxx")
def spectrum(workload: Workload) -> Cell:
    return Cell(lambda: fisher(workload, form="gram").spectrum(), answer=lambda s: s.eigenvalues)


def step(workload: Workload, estimator: str, held: Any = None) -> tuple[Any, Tensor]:
    """Gradient, factors of this batch, and the direction from ``held`` (those of this batch without)."""
    given = workload.x, workload.y
    F, slopes = dynaxx.fisher(workload.model, given, form="kfac", estimator=estimator, gradient=True)
    held = F if held is None else held
    positions = workload.y[0].numel()  # the loss of the peers is a mean over positions too
    return held, F.ravel(held.solve(slopes, damping=DAMPING, method="factored")) / positions


@cell("kfac_step", "dynaxx")
def kfac_step(workload: Workload) -> Cell:
    """From the observed labels' scores, as the peers' optimisers take them: not the Fisher information."""
    return Cell(lambda: step(workload, "empirical")[1], answer=lambda direction: direction)


@cell("kfac_step_drawn", "dynaxx")
def kfac_step_drawn(workload: Workload) -> Cell:
    """The Fisher information, which takes a reverse pass of its own."""
    return Cell(lambda: step(workload, SAMPLED)[1], answer=lambda direction: direction)


@cell("kfac_step_10", "dynaxx")
def kfac_step_10(workload: Workload) -> Cell:
    def run() -> Tensor:
        held, direction = step(workload, "empirical")
        for _ in range(EVERY - 1):
            _, direction = step(workload, "empirical", held)
        return direction

    return Cell(run, EVERY, lambda direction: direction)


@cell("kfac_step_spaced", "dynaxx")
def kfac_step_spaced(workload: Workload) -> Cell:
    """Between its factors a step is a plain gradient and a solve."""

    def run() -> Tensor:
        held, direction = step(workload, "empirical")
        for _ in range(EVERY - 1):
            gradient(workload)
            slopes = {name: parameter.grad for name, parameter in workload.model.named_parameters()}
            direction = held.ravel(held.solve(slopes, damping=DAMPING, method="factored"))
        return direction

    return Cell(run, EVERY, lambda direction: direction)
