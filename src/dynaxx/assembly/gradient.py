"""The gradient of the mean loss from the forward passes that a sweep makes anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.estimators import Empirical
from dynaxx.model.network import Network
from dynaxx.model.tape import Tape


class LossGradient:
    """g = -1/N sum_n J_n^T s_n, s_n the score of example n's observed label: one reverse pass per tape."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.scores = Empirical(network.likelihood)
        self.sums = {name: torch.zeros_like(parameter) for name, parameter in network.parameters.items()}

    def add(self, tape: Tape, keys: Tensor) -> None:
        """Take in one batch.

        Raises:
            InputError: it has no labels.
        """
        if tape.output.targets is None:
            raise InputError("gradient=True needs labels, and the data has none; give batches (x, y)")
        if not tape.output.z.requires_grad:  # no selected parameter reaches the output
            return
        (scores,) = self.scores.cotangents(tape.output, keys, 0, 1)
        parameters = list(self.network.parameters.values())
        found = torch.autograd.grad(tape.output.z, parameters, -scores, retain_graph=True, allow_unused=True)
        for name, gradient in zip(self.sums, found, strict=True):
            if gradient is not None:
                self.sums[name] += gradient.detach()

    def finish(self, count: int) -> dict[str, Tensor]:
        """The mean over ``count`` examples, by name."""
        return {name: total / count for name, total in self.sums.items()}
