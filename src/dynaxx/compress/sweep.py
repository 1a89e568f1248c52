"""Phase 3: what each criterion keeps, one-shot, at several sparsities, and how well it foresaw that."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

from dynaxx.compress.criteria import DATA_FREE, prunable_parameters
from dynaxx.compress.foresight import Foreseen, foresee
from dynaxx.compress.intervals import Interval
from dynaxx.compress.journal import OneShot
from dynaxx.compress.recipe import Recipe
from dynaxx.compress.scoring import Evaluation, evaluate
from dynaxx.compress.settings import Session
from dynaxx.model.calibrate import calibrate
from dynaxx.model.reading import gather
from dynaxx.monitor.snapshot import evaluating

PHASE = "Prune"
EXAMPLES = 512
"""Training examples behind a saliency; their diagonal has long settled, and the cost is a sweep with C - 1 reverse
passes.
"""
LAYERS = 64
"""Prunable parameters up to which predictions are held against measurements: each takes a few passes over the probe."""


def examples(session: Session, recipe: Recipe) -> Any:
    """The fixed part of the training data that the recipe looks at."""
    if recipe.criterion in DATA_FREE and not recipe.coupled:
        return None
    return gather(session.train, EXAMPLES, session.settings.seed)


def sweep(session: Session) -> None:
    """Scores of all criteria at all sparsities, each on a copy of the model with BatchNorm re-calibrated."""
    settings, journal = session.settings, session.journal
    kept = session.checkpoint.load("one_shot")
    if kept is not None:
        for criterion, sparsity, number, score in kept.facts["one_shot"]:
            journal.one_shot.append(OneShot(criterion, sparsity, number, Interval(*score)))
        journal.foreseen += [Foreseen(**row) for row in kept.facts["foreseen"]]
        return
    criteria = list(dict.fromkeys([*settings.criteria, settings.recipe.criterion]))
    sparsities = sorted(set(settings.sparsities))
    done, total = 0, len(criteria) * len(sparsities)
    session.progress(PHASE, 0, total, "")
    for criterion in criteria:
        recipe = settings.recipe_of(criterion)
        with evaluating(session.model):
            results = recipe.several(session.model, examples(session, recipe), sparsities)
        for sparsity, result in zip(sparsities, results, strict=True):
            pruned = result.apply(copy.deepcopy(session.model))
            found = one_shot(session, pruned)
            journal.one_shot.append(OneShot(criterion, sparsity, result.kept, found.interval()))
            done += 1
            session.progress(PHASE, done, total, f"{criterion} at {sparsity:.0%}: {found.score:.3f}")
        if session.run is not None:
            rows = [[point.sparsity, *point.score] for point in journal.one_shot if point.criterion == criterion]
            session.run.log_array(
                f"dynaxx/one_shot/{criterion}", rows, step=journal.points[-1].step
            )  # sparsity, score, low, high
    _foresee(session, tuple(sparsities))
    facts = {
        "one_shot": [[p.criterion, p.sparsity, p.kept, list(p.score)] for p in journal.one_shot],
        "foreseen": [asdict(row) for row in journal.foreseen],
    }
    session.checkpoint.save("one_shot", {}, facts)
    session.publish()


def _foresee(session: Session, sparsities: tuple[float, ...]) -> None:
    """Predictions of the recipe's one-shot form against measured divergences, where it makes any."""
    recipe = session.settings.recipe
    criterion = recipe.criterion if recipe.criterion in ("obd", "obs") else "obd"
    plain = Recipe(
        criterion, curvature=recipe.curvature if criterion == "obs" else None,
        block=recipe.block, params=recipe.params, likelihood=recipe.likelihood, estimator=recipe.estimator,
        damping=None if isinstance(recipe.damping, str) else recipe.damping, seed=recipe.seed, predict=recipe.predict,
    )  # fmt: skip
    if sparsities and len(prunable_parameters(session.model, recipe.params)) <= LAYERS:
        with evaluating(session.model):
            data = examples(session, plain)
            session.journal.foreseen += foresee(plain, session.model, data, sparsities, held=session.probe.batch)


def one_shot(session: Session, model: Any) -> Evaluation:
    """Calibrate BatchNorm, then validate."""
    calibrate(model, session.train, predict=session.settings.predict)
    return evaluate(model, session.validation, likelihood=session.settings.likelihood, predict=session.settings.predict)
