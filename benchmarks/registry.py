"""Cells: one function per (quantity, library), found by name.

A cell is prepared once and then timed. What is called returns the library's own answer; ``answer`` brings it to the
common form that check.py compares, outside of the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workloads import Workload

PRODUCTS = 20  # products with one operator, over which its construction is spread
DAMPING = 1e-2
TOP = 10

WORKLOADS = ("mlp", "cnn", "lm")


@dataclass(frozen=True)
class Quantity:
    """A row of the table.

    Args:
        title: in words.
        workloads: where it is measured.
        batch: examples, where it differs from the workload's own.
        best, goal: workload -> multiple of q0: best peer in the published table, and what dynaxx aims at.
    """

    title: str
    workloads: tuple[str, ...]
    best: dict[str, float]
    goal: dict[str, float]
    batch: int | None = None


def _row(
    title: str, best: str, goal: str, batch: int | None = None, workloads: tuple[str, ...] | None = None
) -> Quantity:
    """Figures in the order mlp/cnn/lm; a dash where there is none. Measured where there is a goal, unless told."""
    pairs = [
        {name: float(text) for name, text in zip(WORKLOADS, figures.split("/"), strict=False) if text != "-"}
        for figures in (best, goal)
    ]
    return Quantity(title, workloads or tuple(pairs[1]), pairs[0], pairs[1], batch)


QUANTITIES = {
    "diagonal_sampled": _row("Fisher diagonal, one sampled column", "1.57/2.3/1.84", "1.15/1.4/1.6"),
    "diagonal_exact": _row("Fisher diagonal, exact over 10 classes", "6.9/17.9", "3.0/9"),
    "kfac_sampled": _row("K-FAC factors, sampled", "2.0/3.7/2.47", "1.5/1.8/1.9"),
    "kfac_exact": _row("K-FAC factors, exact", "9.1/9.0", "5.5/5"),
    "fisher_product": _row(f"Fisher-vector product, one of {PRODUCTS}", "2.55/2.2/2.7", "1.25/1.9/1.5"),
    "hessian_product": _row(f"Hessian-vector product, one of {PRODUCTS}", "1.76/2.08/2.48", "1.7/2.0/2.4"),
    "trace": _row("Trace, to the accuracy of 50 probes over parameters", "111/49/-", "1.2/1.6/1.7"),
    "top_eigenvalues": _row("Top 10 eigenvalues to 1e-3", "164/74", "20/30"),
    "spectrum": _row("All non-zero eigenvalues, 128 examples", "21/129", "15/40", batch=128),
    "kfac_step": _row("K-FAC step, inverses every step", "7.4/4.0/3.5", "5/3/2.5"),
    "kfac_step_10": _row("K-FAC step, inverses every 10", "3.8/-/-", "2.5/2.2/1.9"),
    "kfac_step_spaced": _row("K-FAC step, factors and inverses every 10", "-/-/-", "-/-/-", workloads=WORKLOADS),
    "kfac_step_drawn": _row("K-FAC step with labels drawn from the model", "-/-/-", "5/3/2.5"),
}


@dataclass(frozen=True)
class Cell:
    """Something to time.

    Args:
        run: called and timed.
        per: how many answers one call gives; its time is divided by that.
        answer: brings what ``run`` returned to the common form of the quantity, or None where there is none to compare.
    """

    run: Callable[[], Any]
    per: int = 1
    answer: Callable[[Any], Any] | None = None


Prepare = Callable[[Workload], Cell]
CELLS: dict[tuple[str, str], Prepare] = {}  # (quantity, library)
CANNOT: dict[tuple[str, str, str], str] = {}  # (quantity, library, workload) -> why


def cell(quantity: str, library: str, **cannot: str) -> Callable[[Prepare], Prepare]:
    """Register a cell; ``cannot`` says for a workload why it is not run there."""
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity={quantity!r} is not a row; the rows are {', '.join(QUANTITIES)}")

    def register(prepare: Prepare) -> Prepare:
        CELLS[quantity, library] = prepare
        for workload, reason in cannot.items():
            CANNOT[quantity, library, workload] = reason
        return prepare

    return register


def cannot(quantity: str, library: str, reason: str, *workloads: str) -> None:
    """Record why a library has no cell."""
    for workload in workloads or QUANTITIES[quantity].workloads:
        CANNOT[quantity, library, workload] = reason
