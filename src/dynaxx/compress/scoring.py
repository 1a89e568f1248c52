"""How good a model is on data, example by example, so that two models can be compared in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import likelihoods
from dynaxx.compress.intervals import Change, Interval, mean_change, mean_interval, paired_change, wilson
from dynaxx.compress.reader import Reader
from dynaxx.likelihoods import Bernoulli, Categorical, Likelihood
from dynaxx.model.network import Output, Predict
from dynaxx.model.reading import batches, unmoved
from dynaxx.monitor.snapshot import evaluating


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model says of every example.

    Args:
        log_likelihood: (N,) log p(y|x), nats, float64.
        correct: (labels,) whether each label was the likeliest; None for densities and counts.
    """

    log_likelihood: Tensor
    correct: Tensor | None

    @property
    def loss(self) -> float:
        """Mean negative log likelihood, nats per example."""
        return -float(self.log_likelihood.mean())

    @property
    def measure(self) -> str:
        """What ``score`` is."""
        return "mean log likelihood" if self.correct is None else "accuracy"

    @property
    def score(self) -> float:
        """Accuracy where there are classes, else the mean log likelihood; larger is better."""
        return -self.loss if self.correct is None else float(self.correct.double().mean())

    def interval(self, level: float = 0.95) -> Interval:
        """The score with its interval: Wilson's for an accuracy, the normal one for a mean."""
        if self.correct is None:
            return mean_interval(self.log_likelihood, level)
        return wilson(int(self.correct.sum()), len(self.correct), level)

    def change_to(self, other: Evaluation, level: float = 0.95) -> Change:
        """The paired change of the score from this to ``other``, on the same examples."""
        if self.correct is None or other.correct is None:
            return mean_change(self.log_likelihood, other.log_likelihood, level)
        return paired_change(self.correct, other.correct, level)

    def least(self, tolerance: float) -> float:
        """The lowest score that is not a fall by more than ``tolerance``: absolute for an accuracy, a share of its size
        for a likelihood.
        """
        return self.score - (tolerance if self.correct is not None else tolerance * abs(self.score))

    def accepts(self, other: Evaluation, tolerance: float) -> bool:
        """Whether ``other`` scores no worse than ``least(tolerance)``."""
        return other.score >= self.least(tolerance) - 1e-12  # 0.97 - 0.01 is not 0.96 in binary


def evaluate(
    model: nn.Module, data: Any, *, likelihood: str | Likelihood = "categorical", predict: Predict | None = None
) -> Evaluation:
    """One pass over ``data`` in evaluation mode, without gradients; the model is left as it was.

    Args:
        model: any module.
        data: labelled batches, as for ``dynaxx.fisher``.

    Raises:
        InputError: data is empty or without labels, or outputs do not fit the likelihood.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> round(evaluate(model, (torch.ones(4, 1), torch.zeros(4, dtype=torch.long))).loss, 4)
    0.6931
    """
    reader = Reader(model, likelihoods.resolve(likelihood), predict)
    values, rights = [], []
    with evaluating(model), torch.no_grad(), unmoved(data):
        for batch in batches(model, data):
            output = reader(batch)
            values.append(reader.log_likelihood(output).double().cpu())
            right = _right(reader.likelihood, output)
            if right is not None:
                rights.append(right.cpu())
    return Evaluation(torch.cat(values), torch.cat(rights) if rights else None)


def _right(likelihood: Likelihood, output: Output) -> Tensor | None:
    """Whether each unmasked label is the likeliest one, flat."""
    assert output.targets is not None
    if isinstance(likelihood, Categorical):
        right = output.z.argmax(-1) == output.targets
    elif isinstance(likelihood, Bernoulli):
        # an example is right when all its labels are: labels of one example are not independent trials
        right = ((output.z > 0) == (output.targets > 0.5)).all(-1)
    else:
        return None
    return right.flatten() if output.mask is None else right[output.mask.bool()]
