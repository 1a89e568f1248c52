"""``dynaxx.bracket``: the metric between two bounds that hold for every input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynaxx import likelihoods
from dynaxx.assembly.sweep import Sweeper, example_norms
from dynaxx.errors import InputError
from dynaxx.estimators import Columns
from dynaxx.fisher import fisher
from dynaxx.likelihoods import Likelihood
from dynaxx.model.data import Data
from dynaxx.model.network import Network, Predict
from dynaxx.model.selection import Selector
from dynaxx.operators.base import Operator


class ErrorBounds(NamedTuple):
    """Guaranteed bounds in Frobenius norm.

        |F_lower - F| <= mean_n |J_n|^2 (sum of p^2 but for the largest and the smallest)^1/2
        |F_upper - F| <= mean_n |J_n|^2 |p_n|^2

    for the lower envelope of one eigenpair and the upper envelope diag p. The paper has the spectral norm of J_n; its
    Frobenius norm, taken here, is no smaller, so these are bounds too, and need no eigenvalue.

    Source: Sun 2025, Lemma 2 and Proposition 6.
    """

    lower: float
    upper: float


@dataclass(frozen=True)
class Bracket:
    """lower <= F <= upper in the Loewner order, with an estimate of F between them in expectation.

    The order is one of matrices, so it passes to diagonals, traces, quadratic forms, every principal block and every
    ordered eigenvalue. A random estimate obeys it on average only, not draw by draw.

    Args:
        lower, estimate, upper: operators of one form.
    """

    lower: Operator
    estimate: Operator
    upper: Operator
    _jacobian: Callable[[], ErrorBounds] = field(repr=False)

    def error_bounds(self) -> ErrorBounds:
        """Bounds of the errors of the published envelopes (one eigenpair, diag p) from the outputs and the Jacobians'
        size.

        Cost: C reverse passes for C classes, when it is called. ``gap`` costs nothing and holds for every envelope.

        Raises:
            InputError: the likelihood is not categorical.
        """
        return self._jacobian()

    def diagonal(self) -> tuple[Tensor, Tensor, Tensor]:
        """Diagonals of the three, each (p,)."""
        return self.lower.diagonal(), self.estimate.diagonal(), self.upper.diagonal()

    def trace(self) -> tuple[float, float, float]:
        """Traces of the three."""
        return self.lower.trace(), self.estimate.trace(), self.upper.trace()

    def quadratic(self, vector: Any) -> tuple[Tensor, Tensor, Tensor]:
        """v^T A v of the three."""
        return self.lower.quadratic(vector), self.estimate.quadratic(vector), self.upper.quadratic(vector)

    @property
    def gap(self) -> float:
        """tr upper - tr lower: a guaranteed bound on |upper - F| and |F - lower| in the nuclear, Frobenius and
        spectral norms.

        Both differences are positive semi-definite, so their nuclear norm is their trace, which neither can exceed;
        the other norms are smaller. No Jacobian norm is needed.
        """
        lower, _, upper = self.trace()
        return float(upper) - float(lower)

    def __repr__(self) -> str:
        lower, estimate, upper = self.trace()
        return f"Bracket(trace: {lower:.6g} <= {estimate:.6g} <= {upper:.6g})"


def bracket(
    model: nn.Module,
    data: Any,
    *,
    form: str = "diagonal",
    estimator: str = "exact",
    lower: str = "eigen",
    upper: str = "diagonal",
    rank: int = 1,
    upper_rank: int = 8,
    **options: Any,
) -> Bracket:
    """Lower bound, estimate and upper bound of the Fisher information matrix.

        B_- B_-^T <= I(z) <= B_+ B_+^T   for every z,   so   sum J^T B_- B_-^T J <= F <= sum J^T B_+ B_+^T J

    Args:
        form: of all three, one of the forms of ``fisher`` that represent the whole operator or its diagonal
            ("implicit", "dense", "diagonal", "block", "gram"). K-FAC approximates, and approximations keep no order.
        estimator: of the middle one.
        lower: "eigen", "cholesky" or "nystrom", with ``rank`` columns an example and position.
        upper: "diagonal" (diag p, C columns), "laplacian" (2 diag p(1 - p), whose trace is at most twice that of F),
            or "tail" (``upper_rank`` exact columns and the rest's diagonal: the tightest).
        options: everything else that ``fisher`` takes.

    Raises:
        InputError: form is "kfac" or "ekfac", or as for ``fisher``.

    Cost: three sweeps; ``rank`` reverse passes for the lower and C or C + upper_rank for the upper bound.

    Source: Sun 2025, Lemma 2 and Proposition 6; the Laplacian and tail envelopes and ``gap`` are ours.

    >>> import torch, dynaxx
    >>> model = torch.nn.Linear(4, 3).double()
    >>> b = dynaxx.bracket(model, torch.randn(10, 4).double())
    >>> low, middle, high = b.diagonal()
    >>> bool((low <= middle + 1e-12).all() and (middle <= high + 1e-12).all())
    True
    """
    if form in ("kfac", "ekfac"):
        raise InputError(
            f"form={form!r} approximates, and bounds do not survive that; use 'diagonal', 'dense', "
            f"'block', 'gram' or 'implicit'"
        )
    shared = {
        name: options.pop(name) for name in ("likelihood", "params", "predict", "seed", "progress") if name in options
    }
    return Bracket(
        fisher(model, data, form=form, estimator="lower", method=lower, rank=rank, **shared),
        fisher(model, data, form=form, estimator=estimator, **options, **shared),
        fisher(model, data, form=form, estimator="upper", method=upper, rank=upper_rank, **shared),
        partial(
            _error_bounds, model, data, **{k: v for k, v in shared.items() if k in ("likelihood", "params", "predict")}
        ),
    )


class _Outputs(Columns):
    """One cotangent per output: the rows of the Jacobian."""

    def size(self, z: Tensor) -> int:
        return z.shape[-1]

    def factor(self, z: Tensor, xi: Tensor) -> Tensor:
        return xi.expand(*xi.shape[:-2], len(z), xi.shape[-1])


def _error_bounds(
    model: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "categorical",
    params: Selector = None,
    predict: Predict | None = None,
) -> ErrorBounds:
    meaning = likelihoods.resolve(likelihood)
    if not isinstance(meaning, likelihoods.Categorical):
        raise InputError(
            f"these bounds are for the categorical likelihood, not {meaning!r}; Bracket.gap holds for every one"
        )
    network = Network(model, meaning, params, predict)
    sweeper = Sweeper(network, Data(data, network.device), _Outputs(meaning))
    lower = upper = 0.0
    count = 0
    with network.guarded():
        for tape, keys in sweeper.tapes():
            norms = torch.cat([example_norms(tape, u) for u in sweeper.chunks(tape, keys)])  # (P C, N)
            sizes = (
                norms.unflatten(0, tape.output.z.shape[1:]).sum(1).T.double()
            )  # |J|^2 by example and position, masked
            squares = torch.softmax(tape.output.z.detach().double(), -1).square().sort(-1).values
            lower += float((sizes * squares[..., 1:-1].sum(-1).sqrt()).sum())
            upper += float((sizes * squares.sum(-1)).sum())
            count += len(keys)
    return ErrorBounds(lower / count, upper / count)
