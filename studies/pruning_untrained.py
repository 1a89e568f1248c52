"""Pruned before training: SNIP, GraSP and SynFlow on an untrained perceptron, then one and the same training.

Each beside its own masks shuffled within each layer (Frankle, Dziugaite, Roy & Carbin 2021: what is left of a criterion
when only its share of each layer is kept), beside magnitude and random choice at initialisation, and beside magnitude
after a training that is then repeated on what is left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pruning_methods import file_name
from pruning_models import Sizes, answers, mlp_images, packed, perceptron, train_perceptron
from runs import Cells
from torch import Tensor, nn

from dynaxx.compress.masks import shuffled
from dynaxx.compress.recipe import Recipe

METHODS = {"magnitude": "magnitude", "random": "random", "SNIP": "snip", "GraSP": "grasp", "SynFlow": "synflow"}
AFTER = "magnitude, after training"
NAMES = (AFTER, *METHODS, *(f"{name}, shuffled" for name in METHODS if name != "random"))
GRID = (0.5, 0.8, 0.9, 0.95, 0.98)


def run(
    seeds: Sequence[int], folder: Path, data: Path, sizes: Sizes, names: Sequence[str] = NAMES,
    grid: Sequence[float] = GRID,
) -> dict[str, Any]:  # fmt: skip
    """Every cell; "seed|name" -> {"count", "dense", "rows": sparsity -> {"hits", "right"}}."""
    cells, found = Cells(folder), {}
    for seed in seeds:
        for name in names:
            options = {"sizes": asdict(sizes), "seed": seed, "name": name, "sparsities": grid}
            result = cells.get(f"{seed}-{file_name(name)}", options, partial(one, name, data, seed, sizes, grid))
            if result is not None:
                found[f"{seed}|{name}"] = result
    return found


def one(name: str, data: Path, seed: int, sizes: Sizes, grid: Sequence[float]) -> dict[str, Any]:
    """A network of its own seed: dense, and at every sparsity, each after the same training."""
    train, test = mlp_images(data)
    start = perceptron(seed)

    def trained(model: nn.Module, masks: dict[str, Tensor] | None = None) -> nn.Module:
        return train_perceptron(copy.deepcopy(model), train, sizes, seed, masks)

    dense, rows = trained(start), {}
    begun = dense if name == AFTER else start
    masks = chosen(name, begun, train, seed, sizes)
    for sparsity in grid:
        right = answers(trained(begun, masks(sparsity)), test)
        rows[f"{sparsity:g}"] = {"hits": int(right.sum()), "right": packed(right)}
        print(f"  {name} {sparsity:g}: {rows[f'{sparsity:g}']['hits']}", flush=True)
    return {"count": len(test[1]), "dense": int(answers(dense, test).sum()), "rows": rows}


def chosen(
    name: str, model: nn.Module, train: tuple[Tensor, Tensor], seed: int, sizes: Sizes
) -> Callable[[float], dict[str, Tensor]]:
    """Sparsity -> masks of a method, of the first images."""
    bare, shuffles = name.removesuffix(", shuffled"), name.endswith(", shuffled")
    recipe = Recipe(criterion="magnitude" if name == AFTER else METHODS[bare], seed=seed)
    first = (train[0][: sizes.curvature], train[1][: sizes.curvature])

    def masks(sparsity: float) -> dict[str, Tensor]:
        found = recipe.prune(model, first, sparsity).masks
        return shuffled(found, seed) if shuffles else found

    return masks
