"""Phase 2: training, with the geometry of a fixed probe beside the losses."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from dynaxx.compress.initialise import log_spectrum
from dynaxx.compress.journal import Point
from dynaxx.compress.scoring import evaluate
from dynaxx.compress.settings import Session
from dynaxx.compress.training import Epoch, fit
from dynaxx.estimate import Estimate
from dynaxx.model.reading import device_of
from dynaxx.monitor.snapshot import snapshot

PHASE = "Train"
LOOKS = 8


def looks_at(epochs: int, looks: int = LOOKS) -> set[int]:
    """Epochs after which to look: the first ones, where geometry moves most, then ever rarer, and the last.

    >>> sorted(looks_at(20, 6))
    [1, 2, 3, 6, 11, 20]
    """
    if epochs <= looks:
        return set(range(1, epochs + 1))
    ratio = epochs ** (1 / (looks - 1))
    return {max(i + 1, round(ratio**i)) for i in range(looks - 1)} | {epochs}


def train(session: Session) -> None:
    """Fit the model, look at it after some epochs, and record the dense model it ends as."""
    settings, journal = session.settings, session.journal
    whens = looks_at(settings.epochs)
    kept = session.checkpoint.load("train", device_of(session.model))
    if kept is None:
        begin = evaluate(session.model, session.train, likelihood=settings.likelihood, predict=settings.predict)
        look(session, 0, 0, begin.loss, take=False)
    else:
        for point in kept.facts["points"]:
            record(session, _point(point))

    def keep(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        points = [{**asdict(p), "values": _numbers(p.values)} for p in journal.points]
        session.checkpoint.save("train", tensors, facts | {"points": points})

    def after(epoch: Epoch) -> None:
        look(session, epoch.step, epoch.number, epoch.loss, take=epoch.number in whens)
        session.progress(PHASE, epoch.number, settings.epochs, f"loss {epoch.loss:.3f}, {score_text(session)}")

    session.progress(PHASE, 0, settings.epochs, f"learning rate {session.lr:.3g}")
    fit(
        session.model,
        session.train,
        likelihood=settings.likelihood,
        epochs=settings.epochs,
        lr=session.lr,
        weight_decay=settings.weight_decay,
        optimizer=session.make_optimizer,
        callback=after,
        predict=settings.predict,
        seed=settings.seed,
        keep=keep,
        go_on=kept,
    )
    if settings.epochs and "trained" not in journal.spectra:  # the last look was in the run that was cut off
        journal.spectra["trained"] = snapshot(
            session.model, session.probe, prior_precision=session.prior_precision, count=session.examples
        ).spectrum
    journal.dense = evaluate(
        session.model, session.validation, likelihood=settings.likelihood, predict=settings.predict
    )
    if session.test is not None:
        journal.dense_test = evaluate(
            session.model, session.test, likelihood=settings.likelihood, predict=settings.predict
        )


def look(session: Session, step: int, epoch: int, train_loss: float, take: bool) -> None:
    """Validate, and take a snapshot if asked; the first point has the one of phase 1."""
    settings, journal = session.settings, session.journal
    validated = evaluate(session.model, session.validation, likelihood=settings.likelihood, predict=settings.predict)
    values: dict[str, float] = {}
    if take:
        taken = snapshot(session.model, session.probe, prior_precision=session.prior_precision, count=session.examples)
        values = taken.values
        if epoch == settings.epochs:
            journal.spectra["trained"] = taken.spectrum
        log_spectrum(session, taken.spectrum, step)
    elif epoch == 0 and journal.initialisation is not None:
        values = journal.initialisation.snapshot.values
    record(session, Point(step, epoch, train_loss, validated.loss, validated.score, values))
    if take:
        session.publish()


def record(session: Session, point: Point) -> None:
    """Into the journal and the run."""
    session.journal.points.append(point)
    session.log(
        {
            "dynaxx/train_loss": point.train_loss,
            "dynaxx/validation_loss": point.validation_loss,
            "dynaxx/validation_score": point.validation_score,
            **point.values,
        },
        point.step,
    )


def _numbers(values: dict[str, float]) -> dict[str, list[Any]]:
    """Numbers with their errors, as JSON carries them."""
    return {
        name: [float(v), v.stderr, v.samples, v.exact] if isinstance(v, Estimate) else [float(v)]
        for name, v in values.items()
    }


def _point(kept: dict[str, Any]) -> Point:
    values = {name: Estimate(*v) if len(v) > 1 else v[0] for name, v in kept["values"].items()}
    return Point(**{**kept, "values": values})


def score_text(session: Session) -> str:
    """The last validation score, for a progress line."""
    return f"validation {session.journal.points[-1].validation_score:.3f}"
