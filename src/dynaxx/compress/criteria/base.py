"""What every criterion answers: scores of the prunable weights, and what dropping some of them costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynaxx.compress.curvature.base import Curvature
from dynaxx.errors import InputError
from dynaxx.layout import Layout
from dynaxx.model.selection import Selector, select, unwrap


@dataclass(frozen=True, eq=False)
class Consequence:
    """What a choice of masks leads to.

    Args:
        weights: name -> values of all parameters after the rest has made up for what went; None where it stays put.
        predicted: name -> share of the predicted loss increase, nats per example; None without a curvature.
    """

    weights: dict[str, Tensor] | None
    predicted: dict[str, float] | None

    @property
    def total(self) -> float | None:
        """The predicted loss increase, nats per example."""
        return None if self.predicted is None else sum(self.predicted.values())


@dataclass(frozen=True, eq=False)
class Saliency:
    """Scores of the prunable weights, and the curvature that says what dropping them costs.

    Args:
        criterion: its name.
        scores: name -> saliency, float64, larger is more worth keeping.
        ties: name -> |w|, the second key.
        count: examples behind the curvature or the gradients, 0 where none was needed.
        curvature: H = F + damping I of the coordinates ``chosen``, or None.
        layout: of all parameters the curvature speaks of.
        chosen: (s,) indices of its coordinates, or a slice.
        values: (s,) their values.
        compensates: whether the weights that stay move to the constrained optimum.
    """

    criterion: str
    scores: dict[str, Tensor]
    ties: dict[str, Tensor]
    count: int = 0
    curvature: Curvature | None = None
    layout: Layout | None = None
    chosen: Tensor | slice | None = None
    values: Tensor | None = None
    compensates: bool = False

    @property
    def damping(self) -> float:
        """What was added to the curvature's diagonal."""
        return 0.0 if self.curvature is None else self.curvature.damping

    def consequence(self, masks: dict[str, Tensor]) -> Consequence:
        """Weights and prediction if the masks' weights go, all at once.

            dw = argmin 1/2 dw^T H dw  with dw_Q = -w_Q  (or dw = -w on Q, 0 elsewhere);   increase 1/2 dw^T H dw

        Its share for a parameter is 1/2 sum_i dw_i (H dw)_i over the parameter's weights. Shares add up to the whole.
        At the constrained optimum (H dw)_i = 0 for every weight that stays, so that they speak of what went.
        """
        if self.curvature is None or self.layout is None or self.chosen is None or self.values is None:
            return Consequence(None, None)
        gone = {
            name: ~masks[name] if name in masks else torch.zeros(shape, dtype=torch.bool, device=self.layout.device)
            for name, shape in self.layout.shapes.items()
        }
        dropped = self.layout.ravel(gone)[self.chosen]
        change, shares = self.curvature.outcome(self.values, dropped, self.compensates)
        predicted = {name: float(share.sum()) for name, share in self.by_name(shares).items()}
        if not self.compensates:
            return Consequence(None, {name: predicted[name] for name in masks})
        moved = change.add_(self.values).masked_fill_(dropped, 0.0).to(self.layout.dtype)
        return Consequence(self.by_name(moved), predicted)

    def by_name(self, entries: Tensor) -> dict[str, Tensor]:
        """Numbers of the curvature's coordinates as tensors of the parameters' shapes; what has gone before has 0."""
        assert self.layout is not None
        if isinstance(self.chosen, slice):
            return self.layout.unravel(entries)
        spread = entries.new_zeros(self.layout.size)
        spread[self.chosen] = entries
        return self.layout.unravel(spread)


def prunable_parameters(model: nn.Module, params: Selector = None) -> dict[str, nn.Parameter]:
    """Canonical name -> parameter: those that ``params`` selects, by default all with two axes or more that require
    grad.

    Raises:
        InputError: there are none.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    bare = unwrap(model)
    if params is not None:
        return select(bare, params)
    chosen = {
        name: parameter
        for name, parameter in bare.named_parameters()
        if parameter.requires_grad and parameter.dim() >= 2
    }
    if not chosen:
        raise InputError(
            "this model has no weight with two axes or more that requires grad; name what to prune with params=[...]"
        )
    return chosen


def movable_names(model: nn.Module, prunable: dict[str, nn.Parameter]) -> list[str]:
    """The prunable weights and everything that is never pruned but trained: all of it may move to make up."""
    return [name for name, parameter in unwrap(model).named_parameters() if parameter.requires_grad or name in prunable]


def inverse_scores(curvature: Curvature, values: Tensor) -> Tensor:
    """w_i^2 / (2 [H^{-1}]_ii), what the loss rises by when weight i alone goes and the rest makes up."""
    twice = curvature.inverse_diagonal().mul_(2)
    return values.double().square().div_(twice)


def scores_by_name(found: Saliency, prunable: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Scores of a saliency's own curvature, spread over the parameters; what has gone before scores 0."""
    assert found.curvature is not None and found.values is not None  # noqa: PT018
    scores = found.by_name(inverse_scores(found.curvature, found.values))
    return {name: value for name, value in scores.items() if name in prunable}
