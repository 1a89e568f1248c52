"""What more images behind the curvature are worth: K-FAC in one look and looked at again, against magnitude.

The images that dampings and BatchNorm statistics are taken from stay the same, so that only the curvature changes. The
grid of dampings has a lower one, as the lowest had been taken too often with few images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pruning_methods import METHODS, SPARSITIES, file_name, one
from pruning_models import Case, Sizes
from runs import Cells

REFERENCE = "magnitude"
PLANS: dict[str, Mapping[str, tuple[int, ...]]] = {  # method -> how many images
    "mlp": dict.fromkeys(
        (
            "magnitude + K-FAC update",
            "OBS, K-FAC",
            "magnitude + K-FAC update, recomputed",
            "OBS, K-FAC, recomputed",
        ),
        (400, 2000, 8000),
    ),
    # looked at again, 256 images are in the table of everything
    "resnet20": {
        "magnitude + K-FAC update": (256, 2048),
        "OBS, K-FAC": (256, 2048),
        "magnitude + K-FAC update, recomputed": (2048,),
    },
}
PLANS["resnet56"] = PLANS["resnet20"]


def run(
    model: str, seeds: Sequence[int], folder: Path, case: Callable[[int], Case], sizes: Sizes,
    plan: Mapping[str, Sequence[int]] | None = None, sparsities: Sequence[float] = SPARSITIES,
) -> dict[str, Any]:  # fmt: skip
    """Every cell; "model|seed|method|images" -> result, magnitude with no images."""
    cells, found = Cells(folder), {}
    sizes = replace(sizes, grid=(sizes.grid[0] / 10, *sizes.grid))
    plan = PLANS[model] if plan is None else plan
    wanted = [(REFERENCE, 0), *((name, count) for name, counts in plan.items() for count in counts)]
    for name, count in wanted:
        for seed in seeds:
            own = replace(sizes, curvature=count or sizes.curvature)
            options = {"sizes": asdict(own), "seed": seed, "method": METHODS[name], "sparsities": sparsities}
            compute = partial(_cell, case, name, count, own, seed, sparsities)
            result = cells.get(f"{model}-{seed}-{count}-{file_name(name)}", options, compute)
            if result is not None:
                found[f"{model}|{seed}|{name}|{count}"] = result
    return found


def _cell(
    case: Callable[[int], Case], name: str, count: int, sizes: Sizes, seed: int, sparsities: Sequence[float]
) -> dict[str, Any]:
    dense = case(seed)
    return one(with_images(dense, count) if count else dense, name, sizes, seed, sparsities)


def with_images(case: Case, count: int) -> Case:
    """The case with so many images behind the curvature: its own, then such as nothing else is taken from.

    Raises:
        ValueError: there are not so many.
    """
    own, x, y = len(case.curvature), *case.train
    used = {image.numpy().tobytes() for image in (*case.curvature, *case.calibration)}
    free = [i for i, image in enumerate(x) if image.numpy().tobytes() not in used][: max(0, count - own)]
    if own + len(free) < count:
        raise ValueError(f"{count} images behind the curvature, but there are {own + len(free)}; ask for fewer")
    images, labels = torch.cat([case.curvature, x[free]]), torch.cat([case.labels, y[free]])
    return replace(case, curvature=images[:count].contiguous(), labels=labels[:count])
