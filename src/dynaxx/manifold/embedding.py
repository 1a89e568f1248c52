"""A model's predictions as a point, in coordinates in which the Fisher metric is Euclidean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from dynaxx import likelihoods
from dynaxx.assembly.sweep import bar
from dynaxx.errors import InputError, choose, require_memory
from dynaxx.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Poisson
from dynaxx.likelihoods.simplex import SimplexPoint
from dynaxx.model.data import Batch, Data
from dynaxx.model.network import Network, Predict

EMBEDDINGS = ("sqrt", "two_sqrt")


def embed(
    model: nn.Module,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    embedding: str = "sqrt",
    predict: Predict | None = None,
    progress: bool = False,
) -> Tensor:
    """A model's predictions on data as one point of the model manifold, one row per prediction.

        classes          sqrt p(c|x), a point of the unit sphere per row     F = (4/n) J^T J
        yes-or-no labels a row (sqrt p, sqrt(1 - p)) for each label          F = (4/n) J^T J
        counts           sqrt rate                                           F = (4/n) J^T J
        regression       mean / sigma                                        F = (1/n) J^T J

    J is the Jacobian of all coordinates with respect to the parameters, F the Fisher matrix of ``dynaxx.fisher`` and n
    its count. Only the square roots of *all* classes have this property. embedding="two_sqrt" doubles every coordinate
    but regression's, and then F = (1/n) J^T J throughout.

    Args:
        model: any module in evaluation mode. It is left as it was found.
        data: a batch or an iterable of batches, as for ``dynaxx.fisher``; no labels needed, and -100 in them (or 0 in
            an attention mask) leaves a position out.
        likelihood: "categorical", "bernoulli", "gaussian", "poisson", or an object such as Gaussian(variance=0.1).
        embedding: "sqrt" or "two_sqrt".
        predict: predict(model, batch) -> outputs, where the model cannot simply be called with the batch.
        progress: show a progress bar.

    Returns:
        (N, C) float64: a row per example; of a sequence a row per position that counts, in order; of C yes-or-no labels
        a row of two per label. ``embed(...) ** 2`` (with "sqrt") are the probabilities that ``distances`` takes.

    Raises:
        InputError: about model, data or likelihood, or positions with weights other than 0 and 1.
        SizeError: the rows would not fit into memory.

    Cost: one forward pass; 16 bytes per row and class while it is put together, 8 afterwards.

    Source: Quinn et al. 2019; Amari 2016, section 2 (the square-root chart).

    >>> import dynaxx.manifold
    >>> z = dynaxx.manifold.embed(nn.Linear(2, 3), torch.ones(5, 2))
    >>> z.shape, z.dtype, bool(((z**2).sum(1) - 1).abs().max() < 1e-12)
    (torch.Size([5, 3]), torch.float64, True)
    """
    choose("embedding", embedding, EMBEDDINGS)
    meaning = likelihoods.resolve(likelihood)
    _require_chart(meaning)
    # every parameter, frozen ones too: a point is looked at and not differentiated
    network = Network(model, meaning, lambda name, parameter: True, predict)
    rows: list[Tensor] = []
    size = 0
    with network.guarded(), torch.no_grad(), bar(Data(data, network.device), progress, "batches") as batches:
        for batch in batches:
            z = _counted(network, batch)
            made = coordinates(z, likelihood=meaning, embedding=embedding)
            size += made.numel()
            require_memory(
                f"the predictions on the first {batch.start + batch.count} examples",
                16 * size,
                "embed fewer examples; maps of models are made from some hundreds to some thousands",
            )
            rows.append(made)
    return torch.cat(rows)


def coordinates(z: Tensor, *, likelihood: str | Likelihood = "categorical", embedding: str = "sqrt") -> Tensor:
    """The chart behind ``embed``, as a differentiable function of a model's outputs.

    Args:
        z: (N, C) outputs, one row per prediction.
        likelihood, embedding: as for ``embed``.

    Returns:
        (N, C) float64; (N C, 2) for yes-or-no labels.

    Raises:
        InputError: the likelihood has no flat chart of this kind.

    >>> coordinates(torch.zeros(1, 4), embedding="two_sqrt").round(decimals=9).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    choose("embedding", embedding, EMBEDDINGS)
    meaning = likelihoods.resolve(likelihood)
    _require_chart(meaning)
    meaning.check_shape(z)
    z = z.double()
    if isinstance(meaning, Gaussian):
        return z / meaning.variance.to(z.device).sqrt()
    if isinstance(meaning, Categorical):
        roots = SimplexPoint(z).root
    elif isinstance(meaning, Bernoulli):
        roots = (0.5 * torch.stack([logsigmoid(z), logsigmoid(-z)], -1)).exp().flatten(0, -2)
    else:
        roots = (0.5 * z).exp()
    return 2 * roots if embedding == "two_sqrt" else roots


def _counted(network: Network, batch: Batch) -> Tensor:
    """Outputs (R, C) of the positions of a batch that count."""
    output = network(batch)
    if output.mask is None:
        return output.z.flatten(0, 1)
    if not bool(((output.mask == 0) | (output.mask == 1)).all()):
        raise InputError(
            f"batch {batch.index} weighs its predictions with numbers other than 0 and 1, and a point has no weights; "
            f"leave them out here and pass weights= to distances()"
        )
    return output.z[output.mask == 1]


def _require_chart(likelihood: Likelihood) -> None:
    if not isinstance(likelihood, (Categorical, Bernoulli, Gaussian, Poisson)):
        raise InputError(
            f"likelihood={likelihood!r} has no embedding by its outputs alone (a normal distribution with a variance "
            f"of its own is a point of a hyperbolic plane); use categorical, bernoulli, gaussian or poisson"
        )
