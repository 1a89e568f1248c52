"""``dynaxx.predicted_error``: how noisy an estimator will be, from the exact formula of its variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import estimators, likelihoods
from dynaxx.assembly.sweep import Sweeper
from dynaxx.errors import InputError, choose
from dynaxx.estimators import Estimator, Factor, Hutchinson, MonteCarlo
from dynaxx.likelihoods import Categorical, Likelihood
from dynaxx.model.data import Batch, Data
from dynaxx.model.network import Network, Output, Predict
from dynaxx.model.rules.base import CHUNK_BYTES, gradients, rows
from dynaxx.model.selection import Selector


@dataclass(frozen=True)
class PredictedError:
    """Exact mean and standard error of an estimator's diagonal (p,) and trace.

    Args:
        diagonal, diagonal_stderr: mean and standard error of each entry.
        trace, trace_stderr: of the trace; the standard error is None for groups of several examples, whose cross terms
            it would need.
    """

    diagonal: Tensor
    diagonal_stderr: Tensor
    trace: float
    trace_stderr: float | None

    def coefficient_of_variation(self) -> Tensor:
        """Standard error over mean, entry by entry; 0 where the mean is 0."""
        return torch.where(self.diagonal > 0, self.diagonal_stderr / self.diagonal.clamp_min(1e-300), 0.0)


def predicted_error(
    model: nn.Module,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    estimator: str = "hutchinson",
    factor: str = "symmetric",
    probes: str = "rademacher",
    group: str | int = "example",
    samples: int = 1,
    params: Selector = None,
    predict: Predict | None = None,
) -> PredictedError:
    """The variance of a random estimate before any is drawn.

    For one parameter, with g_k its entries in the rows of G and groups of examples that are squared together:

        Hutchinson   Var F_ii = (1/N^2 S) [ 2 sum_groups F_g^2 - 2 sum_k g_k^4 ] v,        F_g = sum_{k in g} g_k^2
        Monte Carlo  Var F_ii = (1/N^2 S) [ 2 sum_groups (F_g^2 - sum_{x in g} F_x^2) + sum_x (sum_y p_y a_xy^4 -
        F_x^2) ]

    x runs over examples and positions, a_xy = dl(y|x)/dw_i, and v = (n - S)/(n - 1) for Hadamard probes, else 1. A
    trace has the Gram matrix K_x of an example in place of the squares: 2 |K_x|_F^2 - 2 sum_k |G_k|^4.

    These are variances with every part sampled. ``fisher(..., form="diagonal")`` takes the head in closed form, so its
    error there is zero.

    Args:
        as for ``fisher``; estimator is "hutchinson" or "monte_carlo" (the latter for the categorical likelihood).

    Raises:
        InputError: another estimator or likelihood.

    Cost: one sweep with all columns of the factor (C for Monte Carlo) and per-example gradients formed a chunk at a
        time: what the exact
    diagonal would cost, several times over. For studies and small models; in use, look at the measured error.

    Source: Sun 2025 (Hutchinson); Soen & Sun 2021 (Monte Carlo); grouping and traces are derived here.
    """
    choose("estimator", estimator, ("hutchinson", "monte_carlo"))
    meaning = likelihoods.resolve(likelihood)
    if estimator == "monte_carlo" and not isinstance(meaning, Categorical):
        raise InputError(
            f"the variance of sampled labels is enumerated over classes, and {meaning!r} has none; use "
            f"estimator='hutchinson'"
        )
    chosen = estimators.resolve(estimator, meaning, samples=samples, factor=factor, probes=probes, group=group)
    network = Network(model, meaning, params, predict)
    columns = _Labels(meaning) if isinstance(chosen, MonteCarlo) else _matrix(chosen)
    sweeper = Sweeper(network, Data(data, network.device), columns)
    terms = _Terms(chosen, network.layout.size)
    count = 0
    with network.guarded():
        for tape, keys in sweeper.tapes():
            size = chosen.group or len(keys)
            per_example = columns.number(tape.output) * network.layout.size * 8
            step = max(1, CHUNK_BYTES // max(1, per_example * size)) * size
            for start in range(0, len(keys), step):
                part = _part(sweeper, tape.batch, start, min(start + step, len(keys)))
                u = columns.cotangents(part.output, keys[start : start + step], 0, columns.number(part.output))
                uses = part.pulled(u)
                G = torch.zeros(*u.shape[:2], network.layout.size, dtype=torch.float64, device=network.device)
                for name, where in network.layout.slices.items():
                    if name in uses:
                        G[:, :, where] = rows(gradients(uses[name])).double()
                terms.add(
                    G,
                    columns.weights(part.output) if isinstance(columns, _Labels) else None,
                    part.output.z.shape[1],
                    size,
                )
            shrink = chosen.variance_factor(tape.output.z)
            count += len(keys)
    scale = shrink / (samples * count**2)
    stderr = (terms.diagonal_variance.clamp_min(0) * scale).sqrt()
    trace_stderr = (max(0.0, terms.trace_variance) * scale) ** 0.5 if chosen.group == 1 else None
    return PredictedError(terms.mean / count, stderr, float(terms.mean.sum()) / count, trace_stderr)


def _matrix(chosen: Estimator) -> Factor:
    assert isinstance(chosen, Hutchinson)
    assert isinstance(chosen.matrix, Factor)
    return chosen.matrix


def _part(sweeper: Sweeper, batch: Batch, start: int, stop: int) -> Any:
    return sweeper.tape(batch if (start, stop) == (0, batch.count) else batch.part(start, stop))


class _Labels(Factor):
    """Scores of every label at every position, unweighted: K = P C, position by position."""

    def size(self, z: Tensor) -> int:
        return z.shape[-1]

    def factor(self, z: Tensor, xi: Tensor) -> Tensor:
        return xi - torch.softmax(z, -1) * xi.sum(-1, keepdim=True)

    def weights(self, output: Output) -> Tensor:
        """p_y for each of the K = P C scores, (K, N)."""
        return torch.softmax(output.z.detach(), -1).flatten(1).T.double()


class _Terms:
    """Running sums of the two formulas."""

    def __init__(self, chosen: Estimator, size: int) -> None:
        self.labels = isinstance(chosen, MonteCarlo)
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.diagonal_variance = torch.zeros(size, dtype=torch.float64)
        self.trace_variance = 0.0

    def add(self, G: Tensor, weights: Tensor | None, positions: int, group: int) -> None:
        """Take in rows (K, n, p) of n examples."""
        G = G.cpu()
        if weights is None:
            squares = G.square()
            by_place = squares.sum(0)  # (n, p): positions need not be told apart, their signs are independent
            self.diagonal_variance += 2 * _grouped(by_place, group).square().sum(0) - 2 * squares.square().sum((0, 1))
            K = torch.einsum("knp,lnp->nkl", G, G)
            self.trace_variance += float(2 * K.square().sum() - 2 * K.diagonal(dim1=1, dim2=2).square().sum())
            self.mean += by_place.sum(0)
            return
        w = weights.cpu()[:, :, None]
        shape = (positions, -1, *G.shape[1:])
        places = (w * G.square()).unflatten(0, shape[:2]).sum(1)  # (P, n, p): each position draws one label
        fourth = (w * G.square().square()).sum(0)  # (n, p)
        together = _grouped(places.sum(0), group)
        self.diagonal_variance += (2 * together.square().sum(0) - 2 * places.square().sum((0, 1))) + (
            fourth.sum(0) - places.square().sum((0, 1))
        )
        self.mean += places.sum((0, 1))
        self.trace_variance += float(
            _label_trace_variance(G.unflatten(0, shape[:2]), weights.cpu().unflatten(0, shape[:2]))
        )


def _label_trace_variance(G: Tensor, w: Tensor) -> Tensor:
    """Variance of |sum_t G_t|^2 over independent labels, for scores G (P, C, n, p) of probability w (P, C, n), summed
    over examples.

    |sum_t s_t|^2 = sum_t |s_t|^2 + sum_{t != u} s_t . s_u; with zero-mean scores the two sums are uncorrelated up to
    third moments that vanish between different positions, so the variance is sum_t Var |s_t|^2 + 2 sum_{t != u} tr(F_t
    F_u).
    """
    norms = G.square().sum(3)  # (P, C, n)
    own = (w * norms.square()).sum(1) - (w * norms).sum(1).square()
    root = G * w.sqrt()[..., None]
    K = torch.einsum("tcnp,udnp->ntucd", root, root).square().sum((3, 4))  # tr(F_t F_u)
    cross = 2 * (K.sum((1, 2)) - K.diagonal(dim1=1, dim2=2).sum(1))
    return own.sum() + cross.sum()


def _grouped(values: Tensor, size: int) -> Tensor:
    """Sums over consecutive groups of rows."""
    where = torch.arange(len(values)) // size
    return values.new_zeros(int(where[-1]) + 1, *values.shape[1:]).index_add_(0, where, values)
