"""How many weights can go for one point of accuracy? Every criterion in one shot, 10 to 90 %, without fine-tuning.

New BatchNorm statistics cost the pretrained networks more than the first half of their weights does, so the dense
model's are tried too; held-out training images choose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pruning_methods import METHODS, NEW, Norms, file_name, one
from pruning_models import Case, Sizes
from runs import Cells

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NORMS: Norms = (False, True)
CRITERIA = ("magnitude", "OBD", "lowest Fisher", "OBS, K-FAC", "OBS, K-FAC, recomputed")


def run(
    model: str, seeds: Sequence[int], folder: Path, case: Callable[[int], Case], sizes: Sizes,
    criteria: Sequence[str] = CRITERIA, grid: Sequence[float] = GRID,
) -> dict[str, Any]:  # fmt: skip
    """Every cell; "model|seed|criterion" -> result. A recomputed curvature is looked at once per column."""
    cells, found, sizes = Cells(folder), {}, replace(sizes, steps=1)
    for name in criteria:
        for seed in seeds:
            options = {"sizes": asdict(sizes), "seed": seed, "method": METHODS[name], "sparsities": grid}
            options |= {} if model == "mlp" else {"norms": NORMS}  # it has none
            compute = partial(_cell, case, name, sizes, seed, grid, NEW if model == "mlp" else NORMS)
            result = cells.get(f"{model}-{seed}-{file_name(name)}", options, compute)
            if result is not None:
                found[f"{model}|{seed}|{name}"] = result
    return found


def _cell(
    case: Callable[[int], Case], name: str, sizes: Sizes, seed: int, grid: Sequence[float], norms: Norms
) -> dict[str, Any]:
    return one(case(seed), name, sizes, seed, grid, norms)
