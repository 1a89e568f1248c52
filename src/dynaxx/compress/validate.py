"""Phase 4: fine-tune under the masks, compare with the dense model, and prune less where the score has fallen too
far.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dynaxx.compress.checkpoint import named, put_back, random_states
from dynaxx.compress.compare import compare, surviving
from dynaxx.compress.costs import densities, sparse_bytes
from dynaxx.compress.journal import Trial
from dynaxx.compress.masks import counts
from dynaxx.compress.measure import latency
from dynaxx.compress.result import PruningResult, layer_rows
from dynaxx.compress.schedule import cubic
from dynaxx.compress.scoring import Evaluation, evaluate
from dynaxx.compress.settings import Session
from dynaxx.compress.sweep import examples, one_shot
from dynaxx.compress.training import Epoch, fit
from dynaxx.model.reading import batches, device_of
from dynaxx.monitor.snapshot import evaluating

PHASE = "Fine-tune and validate"
CLOSE = 0.02
"""Bisection stops when the sparsities that passed and failed are this close."""


def validate(session: Session) -> PruningResult:
    """Try the sparsity asked for; where the score is too low, or may be lower for more sparsity, try others by
    bisection; keep the best that passed.

    Every trial starts from the dense weights, and its best epoch on the validation data counts, so the validation score
    of the end is somewhat flattering; a test set held out of all choices is not. The model ends as the best trial that
    passed, or dense if none did, also when the phase is interrupted.
    """
    settings, trials = session.settings, session.journal.trials
    dense = state_of(session.model)
    most = 1 + settings.trials
    search = settings.target_accuracy is not None  # for the sparsest that reaches it, above what was asked for too
    passed, failed, sparsity = 0.0, 1.0 if search else settings.sparsity, settings.sparsity
    try:
        while len(trials) < most:
            trial = load(session, len(trials) + 1) or attempt(session, dense, sparsity, most)
            trials.append(trial)
            passed, failed = (sparsity, failed) if trial.accepted else (passed, sparsity)
            session.publish()
            if failed - passed <= CLOSE or (trial.accepted and len(trials) == 1 and not search):
                break
            sparsity = (passed + failed) / 2
        session.progress(PHASE, most * settings.fine_tune_epochs, most * settings.fine_tune_epochs, "")
    finally:
        best = best_of(trials)
        restore(session.model, dense if best is None else best.state)
    return conclude(session, dense)


@dataclass
class Best:
    """The best epoch of a trial so far: the higher score, the lower loss among equals."""

    number: int
    evaluation: Evaluation
    state: dict[str, Tensor] = field(repr=False)

    def consider(self, number: int, now: Evaluation, model: nn.Module) -> None:
        """Take the model as it stands if it is better."""
        if (now.score, now.loss < self.evaluation.loss) > (self.evaluation.score, False):
            self.number, self.evaluation, self.state = number, now, state_of(model)


def attempt(session: Session, dense: dict[str, Tensor], sparsity: float, most: int) -> Trial:
    """Prune the dense model and fine-tune it under the masks, in as many rounds as asked for; the best epoch of the
    last round counts.
    """
    settings, journal, model = session.settings, session.journal, session.model
    recipe, number = settings.recipe, len(journal.trials)
    start = journal.points[-1].step if journal.points else 0
    restore(model, dense)
    curve: list[tuple[int, float]] = []
    firsts: list[Best] = []  # of each round, before its fine-tuning
    result: PruningResult | None = None

    def after(epoch: Epoch) -> None:
        now = evaluate(model, session.validation, likelihood=settings.likelihood, predict=settings.predict)
        curve.append((epoch.step, now.score))
        firsts[-1].consider(epoch.number, now, model)
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
        done = number * settings.fine_tune_epochs + epoch.number
        session.progress(PHASE, done, most * settings.fine_tune_epochs, note)

    for turn, target in enumerate(cubic(sparsity, settings.rounds)):
        with evaluating(model):
            result = recipe.prune(model, examples(session, recipe), target, result.masks if result else None)
        result.apply(model)
        now = one_shot(session, model)
        firsts.append(Best(0, now, state_of(model)))
        curve.append((curve[-1][0] if curve else start, now.score))
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
            seed=settings.seed + 1 + number + 1000 * turn,
            start=curve[-1][0],
        )
    reference, best = journal.dense, firsts[-1]
    assert reference is not None
    assert result is not None
    accepted = settings.accepts(reference, best.evaluation)
    trial = Trial(
        sparsity, result.kept, curve[0][1], best.evaluation, best.number, accepted, tuple(curve), best.state, result
    )
    save(session, number + 1, trial)
    _judge(session, trial)
    return trial


def _judge(session: Session, trial: Trial) -> None:
    settings, reference = session.settings, session.journal.dense
    assert reference is not None
    if not trial.accepted:
        session.remark(
            f"Sparsity {trial.sparsity:.1%} costs too much",
            f"The best of {settings.fine_tune_epochs} epochs reached a validation {trial.evaluation.measure} of "
            f"{trial.evaluation.score:.4f}; the dense model has "
            f"{reference.score:.4f} and at least {settings.least(reference):.4f} was asked for.",
            step=trial.curve[-1][0],
        )


def save(session: Session, number: int, trial: Trial) -> None:
    """Keep a finished trial, and where the random numbers were."""
    decided, evaluation = trial.decided, trial.evaluation
    tensors = named("state", trial.state) | named("mask", decided.masks) | named("score", decided.scores)
    tensors["log_likelihood"] = evaluation.log_likelihood
    if evaluation.correct is not None:
        tensors["correct"] = evaluation.correct
    facts = {
        "sparsity": trial.sparsity, "kept": trial.kept, "before": trial.before, "epoch": trial.epoch,
        "accepted": trial.accepted, "curve": trial.curve, "report": decided.report, "predicted": decided.predicted,
        "increase": decided.predicted_loss_increase,
    }  # fmt: skip
    session.checkpoint.save(f"trial-{number}", tensors | random_states(session.train), facts)


def load(session: Session, number: int) -> Trial | None:
    """A trial that was finished before."""
    kept = session.checkpoint.load(f"trial-{number}", device_of(session.model))
    if kept is None:
        return None
    put_back(kept, session.train)
    facts, masks = kept.facts, kept.part("mask")
    order = [row["name"] for row in facts["report"]["layers"]]
    decided = PruningResult(
        {name: masks[name] for name in order}, kept.part("score"), facts["report"], None, facts["increase"],
        facts["predicted"],
    )  # fmt: skip
    correct = kept.tensors.get("correct")
    evaluation = Evaluation(kept.tensors["log_likelihood"].cpu(), None if correct is None else correct.cpu())
    trial = Trial(
        facts["sparsity"], facts["kept"], facts["before"], evaluation, facts["epoch"], facts["accepted"],
        tuple((int(step), score) for step, score in facts["curve"]), kept.part("state"), decided,
    )  # fmt: skip
    _judge(session, trial)
    return trial


def best_of(trials: list[Trial]) -> Trial | None:
    """The sparsest trial that passed, the better score among equals; None where none did."""
    passed = [trial for trial in trials if trial.accepted]
    return max(passed, key=lambda trial: (-trial.kept, trial.evaluation.score)) if passed else None


def conclude(session: Session, dense: dict[str, Tensor]) -> PruningResult:
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
    decided = (best or journal.trials[-1]).decided
    masks = decided.masks if best is not None else {name: torch.ones_like(mask) for name, mask in decided.masks.items()}
    reference = journal.dense
    assert reference is not None
    journal.final = best.evaluation if best is not None else reference
    journal.change = reference.change_to(journal.final)
    journal.kept, journal.prunable = counts(masks)
    journal.layers = layer_rows(masks)
    if session.test is not None:
        journal.final_test = evaluate(model, session.test, likelihood=settings.likelihood, predict=settings.predict)
    if best is not None:
        _compare(session, dense, best)
    report = {
        **decided.report,
        "sparsity": best.sparsity if best is not None else 0.0,
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
    return PruningResult(
        masks,
        decided.scores,
        report,
        weights,
        decided.predicted_loss_increase if best is not None else None,
        decided.predicted if best is not None else None,
    )


def _compare(session: Session, dense: dict[str, Tensor], best: Trial) -> None:
    """Spectra of both models on the surviving coordinates, and what each costs to store and to run."""
    model, journal = session.model, session.journal
    batch = next(batches(model, session.probe.batch))
    pruned = surviving(model, session.probe, best.masks)
    other = copy.deepcopy(model)
    restore(other, dense)
    journal.comparison = compare(surviving(other, session.probe, best.masks), pruned)
    density = densities(model, batch, best.masks, session.settings.predict)
    times = latency({"dense": other, "pruned": model}, batch, session.settings.predict)
    journal.costs = {
        "FLOPs of an example, zeros skipped": density,
        "file, MB, zeros left out": (sparse_bytes(other, {}) / 1e6, sparse_bytes(model, best.masks) / 1e6),
        f"latency of {batch.count} examples, ms": (1e3 * times["dense"].median, 1e3 * times["pruned"].median),
    }


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what ``state_of`` copied."""
    model.load_state_dict(state)
