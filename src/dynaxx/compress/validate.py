"""Phase 4: fine-tune under the masks, compare with the dense model, and prune less where the score has fallen too
far.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynaxx.compress.compare import compare, surviving
from dynaxx.compress.criteria import Saliency
from dynaxx.compress.journal import Trial
from dynaxx.compress.masks import counts
from dynaxx.compress.prune import decide
from dynaxx.compress.result import PruningResult, layer_rows
from dynaxx.compress.scoring import evaluate
from dynaxx.compress.settings import Session
from dynaxx.compress.sweep import one_shot, score_weights
from dynaxx.compress.training import Epoch, fit

PHASE = "Fine-tune and validate"
CLOSE = 0.02
"""Bisection stops when the sparsities that passed and failed are this close."""


def validate(session: Session) -> PruningResult:
    """Try the sparsity asked for; while the score falls by more than the tolerance, try others by bisection; keep the
    best that passed.

    Every trial starts from the dense weights, and its best epoch on the validation data counts, so the validation score
    of the end is somewhat flattering; a test set held out of all choices is not. The model ends as the best trial that
    passed, or dense if none did, also when the phase is interrupted.
    """
    settings, trials = session.settings, session.journal.trials
    dense = state_of(session.model)
    most = 1 + settings.trials
    try:
        saliency = score_weights(session, settings.criterion)
        passed, failed = 0.0, settings.sparsity
        trials.append(attempt(session, saliency, dense, failed, most))
        while not trials[0].accepted and len(trials) < most and failed - passed > CLOSE:
            middle = (passed + failed) / 2
            trials.append(attempt(session, saliency, dense, middle, most))
            passed, failed = (middle, failed) if trials[-1].accepted else (passed, middle)
            session.publish()
        session.progress(PHASE, most * settings.fine_tune_epochs, most * settings.fine_tune_epochs, "")
    finally:
        restore(session.model, dense if best_of(trials) is None else best_of(trials).state)  # type: ignore[union-attr]
    return conclude(session, saliency, dense)


def attempt(session: Session, saliency: Saliency, dense: dict[str, Tensor], sparsity: float, most: int) -> Trial:
    """Prune the dense model, fine-tune under the masks, and remember its best epoch."""
    settings, journal, model = session.settings, session.journal, session.model
    number = len(journal.trials)
    start = journal.points[-1].step if journal.points else 0
    restore(model, dense)
    result = decide(saliency, sparsity, settings.scope)
    result.apply(model)
    before = one_shot(session, model)
    best, best_epoch, best_state = before, 0, state_of(model)
    curve = [(start, before.score)]

    def after(epoch: Epoch) -> None:
        nonlocal best, best_epoch, best_state
        now = evaluate(model, session.validation, likelihood=settings.likelihood, predict=settings.predict)
        curve.append((epoch.step, now.score))
        if (now.score, now.loss < best.loss) > (best.score, False):
            best, best_epoch, best_state = now, epoch.number, state_of(model)
        trial = f"dynaxx/trial_{number + 1}"
        session.log(
            {
                f"{trial}/train_loss": epoch.loss,
                f"{trial}/validation_loss": now.loss,
                f"{trial}/validation_score": now.score,
            },
            epoch.step,
        )
        note = f"trial {number + 1}: sparsity {sparsity:.1%}, validation {now.score:.3f}"
        session.progress(
            PHASE, number * settings.fine_tune_epochs + epoch.number, most * settings.fine_tune_epochs, note
        )

    fit(
        model,
        session.train,
        likelihood=settings.likelihood,
        epochs=settings.fine_tune_epochs,
        lr=session.fine_tune_lr,
        weight_decay=settings.weight_decay,
        optimizer=session.make_optimizer,
        masks=result.masks,
        callback=after,
        predict=settings.predict,
        seed=settings.seed + 1 + number,
        start=start,
    )
    reference = journal.dense
    assert reference is not None
    accepted = reference.accepts(best, settings.tolerance)
    if not accepted:
        session.remark(
            f"Sparsity {sparsity:.1%} costs too much",
            f"The best of {settings.fine_tune_epochs} epochs reached a validation {best.measure} of "
            f"{best.score:.4f}; the dense model has "
            f"{reference.score:.4f} and the tolerance allows {reference.least(settings.tolerance):.4f}.",
            step=curve[-1][0],
        )
    return Trial(
        sparsity, result.kept, before.score, best, best_epoch, accepted, tuple(curve), result.masks, best_state
    )


def best_of(trials: list[Trial]) -> Trial | None:
    """The sparsest trial that passed, the better score among equals; None where none did."""
    passed = [trial for trial in trials if trial.accepted]
    return max(passed, key=lambda trial: (-trial.kept, trial.evaluation.score)) if passed else None


def conclude(session: Session, saliency: Saliency, dense: dict[str, Tensor]) -> PruningResult:
    """Scores before and after, spectra on the surviving coordinates, and the result that makes the model again."""
    settings, journal, model = session.settings, session.journal, session.model
    best = best_of(journal.trials)
    if best is None:
        session.remark(
            "Nothing was pruned", "No sparsity that was tried stayed within the tolerance, so the dense model was kept."
        )
    elif best.sparsity < settings.sparsity:
        session.remark(
            "Sparsity relaxed",
            f"{settings.sparsity:.1%} was asked for; {best.sparsity:.1%} is the highest of {len(journal.trials)} "
            f"trials that stayed within the tolerance.",
            level="info",
        )
    masks = (
        best.masks
        if best is not None
        else {name: torch.ones_like(score, dtype=torch.bool) for name, score in saliency.scores.items()}
    )
    reference = journal.dense
    assert reference is not None
    journal.final = best.evaluation if best is not None else reference
    journal.change = reference.change_to(journal.final)
    journal.kept, journal.prunable = counts(masks)
    journal.layers = layer_rows(masks)
    if session.test is not None:
        journal.final_test = evaluate(model, session.test, likelihood=settings.likelihood, predict=settings.predict)
    if best is not None:
        pruned = surviving(model, session.probe, masks)
        restore(model, dense)
        try:
            journal.comparison = compare(surviving(model, session.probe, masks), pruned)
        finally:
            restore(model, best.state)
    report = {
        "criterion": settings.criterion,
        "scope": settings.scope,
        "sparsity": best.sparsity if best is not None else 0.0,
        "examples": saliency.count,
        "damping": saliency.damping,
        "seed": settings.seed,
        "layers": journal.layers,
        "remarks": [text for _, _, text in journal.remarks],
        "score_before": reference.score,
        "score_after": journal.final.score,
        "measure": reference.measure,
    }
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    session.log(
        {
            "dynaxx/kept": journal.kept,
            "dynaxx/sparsity": 1 - journal.kept / journal.prunable,
            "dynaxx/score_before": reference.score,
            "dynaxx/score_after": journal.final.score,
        },
        journal.trials[-1].curve[-1][0],
    )
    return PruningResult(masks, saliency.scores, report, weights)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what ``state_of`` copied."""
    model.load_state_dict(state)
