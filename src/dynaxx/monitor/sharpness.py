"""How much the loss rises in the neighbourhood of the weights, to first order in the step and exactly in the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dynaxx.model.data import Batch
from dynaxx.model.network import Network

RADIUS, ADAPTIVE_RADIUS = 0.05, 0.5
SCALE = 0.01  # added to |w|, so that a weight of zero may move


def sharpness(network: Network, batches: Sequence[Batch], loss: Callable[..., Tensor]) -> dict[str, float]:
    """L(w + e) - L(w) for e = r g / |g|, and for e = r T^2 g / |T g| with T = |w| + 0.01, g the gradient of L.

    The second does not change when a ReLU unit's input weights are scaled up and its output weights down.

    Args:
        network: model and parameters.
        batches: with labels.
        loss: loss(output, targets), a mean or one value per example.

    Returns:
        ``dynaxx/sharpness`` and ``dynaxx/adaptive_sharpness``, in the units of the loss.

    Cost: a gradient and two forward passes; two copies of the parameters.

    Source: Foret et al. 2021, eq. 2; Kwon et al. 2021, eq. 3.
    """
    count = sum(batch.count for batch in batches)

    module = _Elsewhere(network)

    def total(values: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for batch in batches:
            output = functional_call(module, {f"model.{name}": value for name, value in values.items()}, (batch,))
            value = loss(output, _targets(batch))
            parts.append(value.sum() if value.dim() else value * batch.count)
        return torch.stack(parts).sum() / count

    with network.guarded():
        parameters = dict(network.parameters)
        here = total(parameters)
        g = dict(
            zip(
                parameters,
                torch.autograd.grad(here, list(parameters.values()), allow_unused=True, materialize_grads=True),
                strict=True,
            )
        )
        out = {}
        with torch.no_grad():
            for name, radius, adaptive in (("sharpness", RADIUS, False), ("adaptive_sharpness", ADAPTIVE_RADIUS, True)):
                scale = {n: p.abs() + SCALE if adaptive else torch.ones_like(p) for n, p in parameters.items()}
                norm = torch.stack([(scale[n] * g[n]).double().square().sum() for n in g]).sum().sqrt()
                moved = {
                    n: p + (radius / norm.clamp(min=1e-30)).to(p.dtype) * scale[n].square() * g[n]
                    for n, p in parameters.items()
                }
                out[f"dynaxx/{name}"] = float(total(moved)) - float(here)
    return out


def _targets(batch: Batch) -> Tensor:
    assert batch.targets is not None
    return batch.targets


class _Elsewhere(nn.Module):
    """The network as a module, so that ``functional_call`` can put other values in the place of its parameters."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model, self._network = network.model, network

    def forward(self, batch: Batch) -> Tensor:
        """The raw output."""
        return self._network.raw(batch)
