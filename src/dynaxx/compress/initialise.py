"""Phase 1: the geometry of the model before it is trained, and how fast it may learn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import linalg
from dynaxx.compress.criteria import prunable_parameters
from dynaxx.compress.journal import Initialisation
from dynaxx.compress.settings import Session
from dynaxx.hessian import hessian
from dynaxx.likelihoods import Categorical, Likelihood
from dynaxx.monitor.snapshot import evaluating, snapshot
from dynaxx.spectrum import Spectrum

PHASE = "Initialise"


def initialise(session: Session) -> None:
    """Count, look, judge, and bound the learning rate.

    The rank is reported with its bound but not judged by: on any subset it is as large as the subset allows. The
    verdict rests on the effective dimension (how many directions the data determine better than the prior) and on p /
    (N (C - 1)). The learning-rate ceiling 2 / l_max(H) is where plain gradient descent on the mean loss stops being
    stable.
    """
    settings, model, probe = session.settings, session.model, session.probe
    session.progress(PHASE, 0, 2, "Fisher spectrum")
    look = snapshot(model, probe, prior_precision=session.prior_precision, count=session.examples)
    session.progress(PHASE, 1, 2, "Hessian's largest eigenvalue")
    with evaluating(model):
        curved = hessian(model, probe.batch, loss_of(settings.likelihood), predict=settings.predict)
        # three digits are plenty for a ceiling, and float32 cannot give many more
        curvature = float(linalg.lanczos(curved, 1, tolerance=1e-4).values[0])
    p = look.spectrum.dimension
    columns = look.rows / probe.count
    determined = look.values["dynaxx/effective_dimension"]
    constraints = round(session.examples * columns)
    verdict, over = judge(p, constraints, determined, session.prior_precision)
    found = Initialisation(
        parameters=p,
        prunable=sum(parameter.numel() for parameter in prunable_parameters(model, settings.recipe.params).values()),
        examples=session.examples,
        probe_examples=probe.count,
        columns=columns,
        rank=look.spectrum.rank if isinstance(look.spectrum, Spectrum) else None,
        rank_bound=look.rank_bound,
        train_rank_bound=min(p, constraints),
        snapshot=look,
        top_curvature=curvature,
        learning_rate_ceiling=2 / curvature if curvature > 0 else math.inf,
        prior_precision=session.prior_precision,
        verdict=verdict,
        overparameterised=over,
    )
    session.journal.initialisation = found
    session.journal.spectra["initialisation"] = look.spectrum
    session.log({**look.values, "dynaxx/hessian_top_eigenvalue": curvature, "dynaxx/parameters": p}, 0)
    log_spectrum(session, look.spectrum, 0)
    if settings.lr is not None and settings.lr > found.learning_rate_ceiling:
        session.remark(
            "Learning rate above the ceiling",
            f"lr = {settings.lr:g} exceeds 2 / l_max(H) = {found.learning_rate_ceiling:.3g} at initialisation; the "
            f"first steps may diverge.",
            step=0,
        )
    session.progress(PHASE, 2, 2, "")


def judge(parameters: int, constraints: int, determined: float, prior_precision: float) -> tuple[str, bool]:
    """(verdict in words, whether over-parameterised).

    Over-parameterised means: more parameters than the N (C - 1) numbers the data can constrain, or fewer than half of
    all directions determined by the data at the given prior.

    >>> judge(100, 900, 80.0, 1.0)[1], judge(100, 900, 20.0, 1.0)[1], judge(1000, 900, 800.0, 1.0)[1]
    (False, True, True)
    """
    ratio, share = parameters / constraints, determined / parameters
    over = ratio > 1 or share < 0.5
    verdict = (
        f"{determined:,.0f} of {parameters:,} directions ({share:.1%}) are determined by the data better than by a "
        f"prior of precision {prior_precision:g}. "
    )
    counted = f"p / (N (C−1)) = {parameters:,} / {constraints:,} = {ratio:.3g}"
    if not over:
        return (
            f"Not over-parameterised: {verdict}By count too, {counted}, the data can constrain every parameter.",
            over,
        )
    if ratio > 1:
        return f"Over-parameterised: {verdict}By count too, {counted}: more parameters than constraints.", over
    return f"Over-parameterised: {verdict}Counting alone, {counted}, would have missed it.", over


def loss_of(likelihood: Likelihood) -> Any:
    """The negative log likelihood of raw outputs as a loss with one value per example, for ``dynaxx.hessian``."""

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        if isinstance(likelihood, Categorical):
            values = nn.functional.cross_entropy(output.movedim(-1, 1), targets, reduction="none")
        else:
            z = output[:, None] if output.dim() == 1 else output
            y = targets[:, None] if targets.dim() == 1 else targets
            values = -likelihood.log_prob(z, y)
        return values.flatten(1).sum(1) if values.dim() > 1 else values

    return loss


def log_spectrum(session: Session, spectrum: Any, step: int) -> None:
    """The eigenvalues as an array of the run, where they are exact."""
    if session.run is not None and isinstance(spectrum, Spectrum):
        said = {"floor": spectrum.floor, "dimension": spectrum.dimension, "count": spectrum.count}
        session.run.log_array("dynaxx/eigenvalues", spectrum.eigenvalues.to(torch.float64), step, said)
