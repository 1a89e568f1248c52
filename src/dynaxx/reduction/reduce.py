"""``dynaxx.reduce``: weights projected on the leading eigenvectors of the Fisher matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dynaxx.eigenspace import Eigenspace, prepare, smaller_side
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Predict
from dynaxx.model.selection import Selector
from dynaxx.reduction.centre import centre_vector, displaced
from dynaxx.reduction.reduction import Reduction
from dynaxx.reduction.subspaces import Eigenvectors


@torch.inference_mode(False)
def reduce(
    model: nn.Module,
    data: Any,
    *,
    k: int | None = None,
    centre: Any = "origin",
    init: Any = None,
    likelihood: str | Likelihood = "categorical",
    estimator: str = "auto",
    params: Selector = None,
    samples: int = 1,
    seed: int = 0,
    calibration: Any = None,
    predict: Predict | None = None,
    progress: bool = False,
) -> Reduction:
    """Project a model's weights on the k leading eigenvectors of its Fisher matrix, for as many k as you like.

        w_k = c + sum_{i <= k} <w - c, e_i> e_i = c + G c_k,      F = (1/N) G G^T = sum_i l_i e_i e_i^T

    One decomposition serves every k. No eigenvector is stored: coordinates cost one product for all of them, each w_k
    one reverse pass. At most r eigenvectors exist, r the rank of F on the data (at most N (C - 1) for a softmax), so a
    share of parameters means little where p is larger; both shares are reported.

    Args:
        model: in evaluation mode; it is not changed, and is read again by ``apply``.
        data: training inputs, as for ``fisher``. Labels are not used.
        k: the default dimension of ``apply``.
        centre: c: "origin" (0, as published), "init" (better where it is known; give ``init``), or any weights: a state
            dict, a model, or a tensor (p,).
        init: for centre="init": the state dict, or a copy, of the model before training.
        likelihood, params, predict: as for ``fisher``. Parameters that are not selected stay as they are.
        estimator, samples, seed: as for ``eigenspace``: exact where p or N K is at most 8,192, else sampled.
        calibration: data from which BatchNorm statistics are estimated anew after the projection; default ``data``.
        progress: show a progress bar.

    Returns:
        A Reduction: ``apply``, ``energy``, ``smallest``, ``curve``, ``control``, ``about``.

    Raises:
        InputError: as for ``fisher``; a centre that does not fit; weights that equal it; k out of range.
        SizeError: more than 8,192 parameters and more than 8,192 rows.

    Cost: one sweep and one symmetric eigenvalue problem of m = min(p, N K), 16 m^2 bytes; then one reverse pass a k.

    Source: Cowlagi & Chaudhari 2022 (student abstract: the projection from the origin).

    >>> model = nn.Linear(3, 2).double()
    >>> reduction = reduce(model, torch.randn(10, 3).double())
    >>> small = reduction.apply(2)
    >>> type(small).__name__, reduction.rank, reduction.share_of_parameters(2)
    ('Linear', 4, 0.25)
    """
    network, source, chosen = prepare(model, data, likelihood, estimator, params, samples, seed, predict)
    layout = network.layout
    point = centre_vector(centre, init, layout)
    weights = layout.ravel({name: value.detach().double() for name, value in network.parameters.items()})
    displacement = displaced(weights, point)
    space = Eigenspace(smaller_side(network, source, chosen, seed=seed, progress=progress))
    made = Reduction(
        network.model,
        space,
        point,
        displacement,
        Eigenvectors(space, displacement),
        k,
        data if calibration is None else calibration,
        predict,
    )
    if k is not None:
        made.energy()
    return made
