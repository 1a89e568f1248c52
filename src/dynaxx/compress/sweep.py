"""Phase 3: what each criterion keeps, one-shot, at several sparsities."""

from __future__ import annotations

import copy
from typing import Any

from dynaxx.compress.calibrate import calibrate
from dynaxx.compress.criteria import Saliency, saliency
from dynaxx.compress.data import gather
from dynaxx.compress.journal import OneShot
from dynaxx.compress.prune import decide
from dynaxx.compress.scoring import Evaluation, evaluate
from dynaxx.compress.settings import Session
from dynaxx.monitor.snapshot import evaluating

PHASE = "Prune"
EXAMPLES = 512
"""Training examples behind a saliency; their diagonal has long settled, and the cost is a sweep with C - 1 reverse
passes.
"""


def score_weights(session: Session, criterion: str) -> Saliency:
    """Saliencies of the model as it stands, on a fixed part of the training data."""
    settings = session.settings
    data = gather(session.train, EXAMPLES, settings.seed) if criterion not in ("magnitude", "random") else None
    with evaluating(session.model):
        return saliency(
            criterion,
            session.model,
            data,
            likelihood=settings.likelihood,
            params=settings.params,
            estimator=settings.estimator,
            damping=settings.damping,
            seed=settings.seed,
            predict=settings.predict,
        )


def sweep(session: Session) -> None:
    """One-shot scores of all criteria at all sparsities, each on a copy of the model with BatchNorm re-calibrated."""
    settings, journal = session.settings, session.journal
    criteria = list(dict.fromkeys([*settings.criteria, settings.criterion]))
    sparsities = sorted(set(settings.sparsities))
    done, total = 0, len(criteria) * len(sparsities)
    session.progress(PHASE, 0, total, "")
    for criterion in criteria:
        found = score_weights(session, criterion)
        for sparsity in sparsities:
            result = decide(found, sparsity, settings.scope)
            pruned = result.apply(copy.deepcopy(session.model))
            score = one_shot(session, pruned)
            journal.one_shot.append(OneShot(criterion, sparsity, result.kept, score.interval()))
            done += 1
            session.progress(PHASE, done, total, f"{criterion} at {sparsity:.0%}: {score.score:.3f}")
        if session.run is not None:
            rows = [[point.sparsity, *point.score] for point in journal.one_shot if point.criterion == criterion]
            session.run.log_array(
                f"dynaxx/one_shot/{criterion}", rows, step=journal.points[-1].step
            )  # sparsity, score, low, high
    session.publish()


def one_shot(session: Session, model: Any) -> Evaluation:
    """Calibrate BatchNorm, then validate."""
    calibrate(model, session.train, predict=session.settings.predict)
    return evaluate(model, session.validation, likelihood=session.settings.likelihood, predict=session.settings.predict)
