"""``dynaxx.fisher_trace_penalty``: tr F as a differentiable regulariser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import likelihoods
from dynaxx.errors import InputError, choose
from dynaxx.estimators import FACTORS
from dynaxx.likelihoods import Likelihood
from dynaxx.model.data import read_batch
from dynaxx.model.network import Network, Predict
from dynaxx.model.selection import Selector


def fisher_trace_penalty(
    model: nn.Module,
    batch: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    params: Selector = None,
    samples: int = 1,
    factor: str = "symmetric",
    generator: torch.Generator | None = None,
    predict: Predict | None = None,
) -> Tensor:
    """An unbiased estimate of tr F on one batch, to be added to a loss with a weight of your choice.

        h = sum_n u_n . z_n,  u_n = L(z_n) xi_n,      E |dh/dw|^2 / N = (1/N) sum_n tr(J_n^T I(z_n) J_n) = tr F

    The cotangents u depend on the weights through z, and the gradient must flow through them: with u detached it
        misses the change
    of the metric itself, and for a linear softmax model, where that change is all there is, it would vanish.

    Args:
        model: in whatever mode it trains; random layers are drawn once, as in the loss.
        batch: one batch, as for ``fisher``.
        likelihood, params, predict: as for ``fisher``.
        samples: sign vectors; each costs one reverse pass with graph.
        factor: square root of the metric.
        generator: of the signs; torch's global one if None.

    Returns:
        A scalar with a graph; ``loss + weight * penalty`` trains as usual. Off unless you call it.

    Cost: a forward pass, ``samples`` reverse passes with graph, and their double in the backward pass of the penalty.

    Source: Sun 2025 (the estimator); Jastrzebski et al. 2021 (the regulariser).

    >>> import torch, dynaxx
    >>> model = torch.nn.Linear(3, 4)
    >>> penalty = dynaxx.fisher_trace_penalty(model, torch.randn(8, 3))
    >>> penalty.backward()
    >>> model.weight.grad.shape
    torch.Size([4, 3])
    """
    choose("factor", factor, FACTORS)
    if samples < 1:
        raise InputError(f"samples={samples!r}; expected a whole number of at least 1")
    network = Network(model, likelihoods.resolve(likelihood), params, predict, evaluating=False)
    parameters = list(network.parameters.values())
    with network.sound_second_derivatives():
        output = network(read_batch(batch, network.device))
        z, meaning = output.z, network.likelihood
        size = meaning.noise_size(z, factor)
        total = z.new_zeros(())
        for _ in range(samples):
            xi = torch.randint(0, 2, (*z.shape[:-1], size), generator=generator, device=z.device).to(z) * 2 - 1
            u = meaning.factor(z, xi, factor)
            if output.mask is not None:
                u = u * output.mask.sqrt()[..., None]
            gradients = torch.autograd.grad(z, parameters, u, create_graph=True, allow_unused=True)
            total = total + sum(g.square().sum() for g in gradients if g is not None)
    return total / (samples * len(z))
