"""``dynaxx.prune``: masks from curvature. The model itself is left as it is."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynaxx.compress.masks import require_sparsity
from dynaxx.compress.patterns import agreed, parse
from dynaxx.compress.recipe import Recipe
from dynaxx.compress.result import PruningResult
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Predict
from dynaxx.model.selection import Selector


def prune(
    model: nn.Module,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    sparsity: float | None = None,
    criterion: str = "obd",
    scope: str = "global",
    pattern: str | tuple[int, int] | None = None,
    curvature: str | None = None,
    compensation: str | None = None,
    steps: int | None = None,
    params: Selector = None,
    estimator: str | None = None,
    samples: int = 1,
    damping: float | str | None = None,
    block: int = 32,
    seed: int = 0,
    predict: Predict | None = None,
    progress: bool = False,
) -> PruningResult:
    """Which weights of a trained model to drop, and how the rest makes up for them.

        magnitude  |w_i|                    needs no data
        obd        1/2 F_ii w_i^2           the loss rises by the sum of these, to second order, if F were diagonal
        obs        w_i^2 / (2 [H^-1]_ii)    H = F + damping I; the rest moves: dw = -H^-1[:,Q] (H^-1[Q,Q])^-1 w_Q
        fisher     F_ii                     a control that ignores the size of the weight: it collapses at high sparsity
        random                              the other control
        snip, grasp, synflow                for a model that has not been trained

    Three choices are independent: the criterion ranks, the curvature says how weights make up for each other, and
    ``steps`` says how often both are looked at anew. Looking anew matters most at high sparsity, then the compensation,
    then the ranking: see the concepts page on pruning for numbers.

    Args:
        model: in evaluation mode. It is not changed; ``result.apply(model)`` changes it.
        data, likelihood, estimator, samples, seed, predict: as for ``dynaxx.fisher``. data may be None for magnitude
            and random. estimator defaults to "monte_carlo" for curvature "rows" and "block", where each cotangent is a
            row, else to "exact".
        sparsity: share of the prunable weights to drop, in [0, 1): exactly round(sparsity * prunable) of them. May be
            left out with pattern "n:m", which implies it.
        criterion: who goes.
        scope: "global" ranks all prunable weights together, "layer" drops the same share of each tensor, "erk" drops
            more of the larger ones.
        pattern: "n:m" such as "2:4" keeps the n best of every m consecutive inputs; (4, 1) drops blocks of outputs x
            inputs. Tensors that it does not divide stay whole, and the report says so.
        curvature: "dense" (p x p), "rows" (all weights coupled, through one gradient row per example), "block"
            (``block`` consecutive weights coupled), "kfac" or "ekfac" (the weights of a layer coupled); default "dense"
            up to 4096 parameters, "kfac" beyond.
        compensation: "obs" moves the weights that stay, biases included, to the constrained optimum, also under a
            magnitude mask; "none" leaves them. Default "obs" for criterion "obs".
        steps: how often to look anew, along a cubic schedule; default 1, and 100 (exponential) for synflow.
        params: what may be pruned; default every parameter with two axes or more, so that biases and norms are kept.
        damping: added to F's diagonal; default none for obd, 0.1 times F's mean eigenvalue where weights are coupled.
            As it grows all turn into magnitude. "auto" tries 1e-3 to 10 times the mean eigenvalue at every step and
            takes the one whose pruned model stays closest (KL) to the dense model on a quarter of ``data`` that the
            curvature has not seen.
        progress: show a bar over steps.

    Returns:
        PruningResult with ``masks``, ``scores``, ``report``, ``weights`` (where compensated),
        ``predicted_loss_increase``, its shares by parameter ``predicted``, and ``apply``. Equal scores, such as the
        zeros of dead units, are ranked by magnitude, then by position, so the masks are deterministic.

    Raises:
        InputError: an option or the data cannot be used; the message says which and what would do. SizeError: a
            curvature that would not fit.

    Cost per step: magnitude and random none; obd, fisher one sweep over the data; dense 24 p^2 bytes and p^3
    operations; rows 4 m p bytes and m^2 p operations for m rows (times 1 + the five dampings of "auto"); block
    4 p block bytes and p (m block + block^2) operations, and where that is more than half of the free memory, the
    blocks of the largest parameter and some twenty sweeps instead of one, with the same result; kfac two factors per
    layer, and conjugate gradients.

    Source: LeCun, Denker & Solla 1989 (obd); Hassibi & Stork 1992 (obs); Singh & Alistarh 2020, Kurtic et al. 2022
    (blocks of the inverse, joint groups); Zhu & Gupta 2017 (schedule).

    >>> import torch
    >>> result = prune(nn.Linear(4, 5), torch.randn(20, 4), sparsity=0.5)
    >>> result.kept, result.prunable
    (10, 20)
    """
    parsed = parse(pattern)
    if sparsity is not None:
        require_sparsity(sparsity)
    sparsity = agreed(sparsity, parsed)
    recipe = Recipe(
        criterion, scope, parsed, curvature, compensation, steps, damping, block, params, likelihood, estimator,
        samples, seed, predict,
    )  # fmt: skip
    if not progress:
        return recipe.prune(model, data, sparsity)
    from dynaxx.compress.progress import Bars

    with Bars() as bars:
        return recipe.prune(model, data, sparsity, progress=lambda done, steps: bars("Prune", done, steps, ""))
