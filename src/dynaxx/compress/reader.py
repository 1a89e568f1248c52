"""The workflow's view of a model: what it says of a batch, in whatever mode it is."""

from __future__ import annotations

from torch import Tensor, nn

from dynaxx.errors import InputError
from dynaxx.likelihoods import Likelihood
from dynaxx.model.data import Batch
from dynaxx.model.network import Network, Output, Predict
from dynaxx.model.selection import unwrap


class Reader:
    """A model and a likelihood as (outputs, labels) of batches, in whatever mode the model is.

    Raises:
        InputError: the model has no parameter that requires grad.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood, predict: Predict | None = None) -> None:
        self.model, self.likelihood = unwrap(model), likelihood
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()  # a Network is made for evaluation; reading in training mode is this class's own affair
        try:
            self._network = Network(self.model, likelihood, None, predict)
        finally:
            for module, mode in modes:
                module.training = mode

    def __call__(self, batch: Batch) -> Output:
        """Outputs (N, P, C) and labels of a batch.

        Raises:
            InputError: the batch has no labels, or outputs or labels do not fit the likelihood; NaN outputs, which a
                diverged training gives.
        """
        output = self._network(batch)
        if output.targets is None:
            raise InputError(f"batch {batch.index} has no labels; training and validation need (x, y)")
        return output

    def log_likelihood(self, output: Output) -> Tensor:
        """log p(y|x) per example, summed over unmasked positions, (N,)."""
        values = self.likelihood.log_prob(output.z, output.targets)  # type: ignore[arg-type]
        return (values if output.mask is None else values * output.mask).flatten(1).sum(1)
