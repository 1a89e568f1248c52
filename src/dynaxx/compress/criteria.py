"""How much a weight matters: saliencies by name.

Removing weights w_Q changes a loss at its minimum by about 1/2 dw^T H dw. With H ~ F, the Fisher matrix, that gives
``obd`` (H diagonal, the others stay) and ``obs`` (H full, the others make up for the loss). ``magnitude`` takes H for a
multiple of the identity. ``fisher`` and ``random`` are controls: the former ignores how large the weight is, and fails
at high sparsity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import counter
from dynaxx.errors import InputError, choose, require_memory
from dynaxx.fisher import fisher
from dynaxx.layout import Layout
from dynaxx.model.selection import Selector, layout_of, select, unwrap

CRITERIA = ("magnitude", "obd", "obs", "fisher", "random")
OBS_DAMPING = 0.1
"""Times the mean eigenvalue: the one delicate setting of obs, so it scales with F.

Measured on the demo's convolutional net (seed 0, 20 epochs at 0.1, 512 examples): one-shot validation accuracy at 90 %
sparsity was 9, 48, 70, 80 and 77 % for factors of 1e-4, 1e-3, 1e-2, 0.1 and 1. One net, chosen on its validation data.
"""


@dataclass(frozen=True)
class Saliency:
    """Scores of the prunable weights, and what compensation needs.

    Args:
        criterion: its name.
        scores: name -> saliency, float64, larger is more worth keeping.
        ties: name -> |w|, the second key.
        layout: all parameters behind ``inverse``, in order; the prunable ones where there is none.
        count: examples behind the curvature, 0 where none was needed.
        damping: what was added to the curvature's diagonal.
        inverse: (F + damping I)^{-1}, float64 (p, p), for "obs" alone.
        values: (p,) the parameters of ``layout``, float64, for "obs" alone.
    """

    criterion: str
    scores: dict[str, Tensor]
    ties: dict[str, Tensor]
    layout: Layout
    count: int = 0
    damping: float = 0.0
    inverse: Tensor | None = None
    values: Tensor | None = None

    def predicted(self, masks: dict[str, Tensor]) -> float | None:
        """The criterion's own second-order prediction of the loss increase, nats per example; None for those that make
        none.
        """
        if self.criterion == "obd":
            return sum(float(self.scores[name][~mask].sum()) for name, mask in masks.items())
        if self.criterion == "obs":
            dropped, lagrange = self._lagrange(masks)
            return 0.5 * float(self._values()[dropped] @ lagrange)
        return None

    def compensate(self, masks: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """All parameters after the weights outside the masks are removed jointly and the rest has moved to the
        constrained optimum.

            dw = -H^{-1}[:, Q] (H^{-1}[Q, Q])^{-1} w_Q,    H = F + damping I

        None for criteria that leave the others where they are.
        """
        if self.criterion != "obs":
            return None
        dropped, lagrange = self._lagrange(masks)
        assert self.inverse is not None
        moved = self._values() - self.inverse[:, dropped] @ lagrange
        moved[dropped] = 0.0  # exactly, where rounding left some 1e-17
        return {name: value.to(self.layout.dtype) for name, value in self.layout.unravel(moved).items()}

    def _values(self) -> Tensor:
        assert self.values is not None
        return self.values

    def _lagrange(self, masks: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(indices Q, (H^{-1}[Q, Q])^{-1} w_Q)."""
        assert self.inverse is not None
        gone = {
            name: ~masks[name] if name in masks else torch.zeros(shape, dtype=torch.bool, device=self.layout.device)
            for name, shape in self.layout.shapes.items()
        }
        dropped = self.layout.ravel(gone).nonzero()[:, 0]
        block = self.inverse[dropped[:, None], dropped]
        right = self._values()[dropped][:, None]
        return dropped, torch.cholesky_solve(right, torch.linalg.cholesky(block))[:, 0] if len(dropped) else right[:, 0]


def saliency(
    criterion: str,
    model: nn.Module,
    data: Any,
    *,
    likelihood: Any = "categorical",
    params: Selector = None,
    estimator: str = "exact",
    damping: float | None = None,
    seed: int = 0,
    predict: Any = None,
) -> Saliency:
    """Scores of a model's prunable weights.

        magnitude |w|      obd 1/2 (F_ii + damping) w_i^2      obs w_i^2 / (2 [(F + damping I)^{-1}]_ii)      fisher
        F_ii      random uniform

    Args:
        criterion: one of these.
        model, data, likelihood, estimator, seed, predict: as for ``dynaxx.fisher``; data may be None for magnitude and
            random.
        params: the prunable parameters; default those with two axes or more that require grad, so that biases and norms
            are kept.
        damping: added to the curvature's diagonal; default 0 for obd and 0.1 times the mean eigenvalue for obs.

    Raises:
        InputError: an unknown criterion, no prunable parameter, damping that is negative (or zero for obs), or data is
            needed and missing.
        SizeError: obs would not fit into memory; obd would.

    Cost: magnitude and random none; obd and fisher one sweep with all columns of the metric; obs that and 3 p x p
    matrices, p^3 operations.
    """
    choose("criterion", criterion, CRITERIA)
    prunable = prunable_parameters(model, params)
    if damping is not None and (
        isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 <= damping < math.inf
    ):
        raise InputError(f"damping={damping!r} is not a finite number >= 0; leave it out for the default")
    if data is None and criterion not in ("magnitude", "random"):
        raise InputError(
            f"criterion={criterion!r} needs data to measure curvature on; give some, or use criterion='magnitude'"
        )
    layout = layout_of(prunable)
    weights = {name: parameter.detach().double() for name, parameter in prunable.items()}
    ties = {name: weight.abs() for name, weight in weights.items()}
    options: dict[str, Any] = {"likelihood": likelihood, "estimator": estimator, "seed": seed, "predict": predict}
    if criterion == "magnitude":
        return Saliency(criterion, {name: tie.clone() for name, tie in ties.items()}, ties, layout)
    if criterion == "random":
        keys = torch.arange(layout.size, device=layout.device)
        draws = layout.unravel(counter.uniform(seed, keys))
        return Saliency(criterion, draws, ties, layout)
    if criterion == "obs":
        return _obs(model, data, prunable, weights, ties, damping, options)
    operator = fisher(model, data, form="diagonal", params=list(prunable), **options)
    diagonal = {name: value.double() for name, value in operator.unravel(operator.diagonal()).items()}
    if criterion == "fisher":
        return Saliency(criterion, diagonal, ties, layout, operator.count)
    added = damping or 0.0
    scores = {name: 0.5 * (diagonal[name] + added) * weight.square() for name, weight in weights.items()}
    return Saliency(criterion, scores, ties, layout, operator.count, added)


def _obs(
    model: nn.Module,
    data: Any,
    prunable: dict[str, Any],
    weights: dict[str, Tensor],
    ties: dict[str, Tensor],
    damping: float | None,
    options: dict[str, Any],
) -> Saliency:
    # the weights that stay and everything that is never pruned may all move to make up for those that go
    trainable = {name for name, parameter in unwrap(model).named_parameters() if parameter.requires_grad} | set(
        prunable
    )
    movable = select(unwrap(model), trainable)
    layout = layout_of(movable)
    p = layout.size
    remedy = "use criterion='obd', which needs p numbers, or prune fewer parameters at a time with params="
    require_memory(f"the three {p} x {p} matrices of criterion='obs' (p = {p} parameters)", 3 * 8.0 * p * p, remedy)
    operator = fisher(model, data, form="dense", params=list(movable), **options)
    matrix = operator.matrix
    added = OBS_DAMPING * float(matrix.diagonal().mean()) if damping is None else float(damping)
    if added <= 0:
        raise InputError(
            f"damping={damping!r} leaves a singular Fisher matrix without an inverse; give a positive one"
            if damping is not None
            else "the Fisher matrix is zero on this data (the model is certain of every example); use "
            "criterion='magnitude'"
        )
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(matrix + added * torch.eye(p, dtype=matrix.dtype, device=matrix.device))
    )
    diagonal = layout.unravel(inverse.diagonal())
    scores = {name: weight.square() / (2 * diagonal[name]) for name, weight in weights.items()}
    values = layout.ravel({name: parameter.detach().double() for name, parameter in movable.items()})
    return Saliency("obs", scores, ties, layout, operator.count, added, inverse, values)


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
