"""How far a pruned model's answers are from the dense one's: what the Fisher matrix predicts, measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import likelihoods
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Network, Output, Predict
from dynaxx.model.reading import batches, unmoved
from dynaxx.monitor.snapshot import evaluating


def outputs(
    model: nn.Module, data: Any, *, likelihood: str | Likelihood = "categorical", predict: Predict | None = None
) -> list[Output]:
    """What the model says of each batch, in evaluation mode and without gradients. It is left as it was."""
    with evaluating(model), torch.no_grad(), unmoved(data):
        network = Network(model, likelihoods.resolve(likelihood), None, predict)
        return [network(batch) for batch in batches(model, data)]


def divergence(before: list[Output], after: list[Output], likelihood: str | Likelihood = "categorical") -> Tensor:
    """KL(p(.|before) || p(.|after)) of each example, summed over its positions: (N,) float64, nats.

        KL(w || w + dw) = 1/2 dw^T F dw + O(|dw|^3)

    so that a predicted increase 1/2 dw^T F dw is a prediction of its mean, whether or not the model has converged, and
    no labels are needed.
    """
    meaning, found = likelihoods.resolve(likelihood), []
    for one, two in zip(before, after, strict=True):
        values = meaning.divergence(one.z.double(), two.z.double())
        found.append((values if one.mask is None else values * one.mask).flatten(1).sum(1))
    return torch.cat(found)
