"""The gradient of the mean loss from the forward passes that a sweep makes anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.estimators import Empirical, Estimator
from dynaxx.model.network import Network
from dynaxx.model.tape import Tape


class LossGradient:
    """g = -1/N sum_n J_n^T s_n, s_n the score of example n's observed label.

    One reverse pass per tape; where the sweep itself pulls those scores back (estimator="empirical"), none but what
    parameter gradients add to it.
    """

    streams = True

    def __init__(self, network: Network, estimator: Estimator) -> None:
        self.network, self.shared = network, isinstance(estimator, Empirical)
        self.scores = Empirical(network.likelihood)
        self.sums = {name: torch.zeros_like(parameter) for name, parameter in network.parameters.items()}
        self._seen: Tape | None = None

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Take in one batch, once.

        Raises:
            InputError: it has no labels.
        """
        if tape is self._seen:
            return
        self._seen = tape
        if tape.output.targets is None:
            raise InputError("gradient=True needs labels, and the data has none; give batches (x, y)")
        if not tape.output.z.requires_grad:  # no selected parameter reaches the output
            return
        if self.shared:
            found = tape.sums(cotangents)
        else:
            (scores,) = self.scores.cotangents(tape.output, keys, 0, 1)
            reached = {name: parameter for name, parameter in self.network.parameters.items() if name in tape.reached}
            gradients = torch.autograd.grad(tape.output.z, list(reached.values()), scores, retain_graph=True)
            found = dict(zip(reached, gradients, strict=True))
        for name, gradient in found.items():
            self.sums[name] -= gradient.detach()

    def finish(self, count: int) -> dict[str, Tensor]:
        """The mean over ``count`` examples, by name."""
        return {name: total / count for name, total in self.sums.items()}
