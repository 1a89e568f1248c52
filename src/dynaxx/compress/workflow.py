"""``dynaxx.compress``: look, train, prune, validate."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dynaxx import likelihoods
from dynaxx.compress import pages
from dynaxx.compress.checkpoint import Checkpoint, named, put_back, random_states
from dynaxx.compress.initialise import PHASE as INITIALISE
from dynaxx.compress.initialise import initialise
from dynaxx.compress.journal import Journal
from dynaxx.compress.masks import require_sparsity
from dynaxx.compress.patterns import agreed, parse
from dynaxx.compress.progress import Bars
from dynaxx.compress.recipe import Recipe
from dynaxx.compress.result import PruningResult
from dynaxx.compress.scoring import evaluate
from dynaxx.compress.settings import Progress, Session, Settings
from dynaxx.compress.sweep import PHASE as PRUNE
from dynaxx.compress.sweep import sweep
from dynaxx.compress.train import PHASE as TRAIN
from dynaxx.compress.train import train
from dynaxx.compress.training import MakeOptimizer
from dynaxx.compress.validate import PHASE as VALIDATE
from dynaxx.compress.validate import validate
from dynaxx.errors import InputError
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Predict
from dynaxx.model.reading import device_of, gather
from dynaxx.model.selection import Selector
from dynaxx.monitor.snapshot import Probe
from dynaxx.report import Document, write
from dynaxx.track import Run, Store, StoreError
from dynaxx.track.run import ending

Publish = Callable[[Journal], None]


class ReportWarning(UserWarning):
    """A report could not be written; the work went on, and the result is whole."""


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """What ``dynaxx.compress`` returns. The model it was given now is the pruned one.

    Args:
        model: the same object, pruned and fine-tuned.
        pruning: masks and weights: ``save`` it, and ``apply`` it to a fresh model.
        journal: everything the phases found, trials included.
        run_id: in the store; None without one.
        report: where the page is; None where none was asked for or it could not be written.
    """

    model: nn.Module
    pruning: PruningResult
    journal: Journal
    run_id: int | None
    report: Path | None

    @property
    def kept(self) -> int:
        """Prunable weights that stay."""
        return self.pruning.kept

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is dropped."""
        return self.pruning.sparsity

    def document(self) -> Document:
        """The report."""
        return pages.document([self.journal], f"Compression of {self.journal.name}")

    def __repr__(self) -> str:
        dense, final = self.journal.dense, self.journal.final
        assert dense is not None
        assert final is not None
        before, after = (pages.score(each.interval(), each.measure) for each in (dense, final))
        return (
            f"CompressionResult({self.journal.name}: {self.pruning.kept} of {self.pruning.prunable} weights kept, "
            f"validation {dense.measure} {before} -> {after})"
        )


def compress(
    model: nn.Module,
    train: Any,
    validation: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    sparsity: float | None = None,
    criterion: str = "obd",
    scope: str = "global",
    pattern: str | tuple[int, int] | None = None,
    curvature: str | None = None,
    compensation: str | None = None,
    steps: int | None = None,
    tolerance: float = 0.01,
    target_accuracy: float | None = None,
    rounds: int = 1,
    epochs: int = 20,
    fine_tune_epochs: int = 10,
    lr: float | None = None,
    fine_tune_lr: float | None = None,
    weight_decay: float = 0.0,
    optimizer: MakeOptimizer | None = None,
    probe: Probe | None = None,
    probe_size: int = 200,
    test: Any = None,
    store: Store | str | Path | None = None,
    report: str | Path | Publish | None = None,
    name: str | None = None,
    project: str = "compress",
    prior_precision: float | None = None,
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    criteria: Sequence[str] = ("magnitude", "obd", "random"),
    params: Selector = None,
    estimator: str | None = None,
    damping: float | str | None = None,
    trials: int = 4,
    predict: Predict | None = None,
    progress: Progress | bool = False,
    resume: str | Path | None = None,
    seed: int = 0,
) -> CompressionResult:
    """Train a model, prune it by curvature, fine-tune it, and prune less where that costs more than ``tolerance``.

    1. Initialise: spectrum, effective rank and dimension, a verdict on over-parameterisation, a learning-rate ceiling 2
    / l_max(H). 2. Train with the geometry of a fixed probe beside the losses. ``epochs=0`` takes the model as trained.
    3. Prune one-shot by every criterion at every sparsity, on copies.
    4. Fine-tune under the masks at a lower rate; if the validation score has fallen too far, relax the sparsity by
    bisection, ``trials`` more
       times at most. The sparsest trial that passed is what the model ends as; if none did, the dense model.

    Args:
        model: trained and pruned in place, also when the work is interrupted (then as far as it had come).
        train, validation, test: labelled data that can be read every epoch. test is scored at the end and used for no
            choice.
        likelihood: with classes ("categorical", "bernoulli") the score is accuracy and ``tolerance`` is absolute, 0.01
            being one point; with the others the score is the mean log likelihood and ``tolerance`` is relative to its
            size.
        sparsity: default 0.8, or what pattern "n:m" implies; there is nothing to relax then.
        criterion, scope, pattern, curvature, compensation, steps, params, estimator, damping: as for ``dynaxx.prune``;
            saliencies come from 512 training examples. The other ``criteria`` are tried in one step.
        target_accuracy: the validation accuracy to reach, in place of ``tolerance``; bisection then also goes above
            ``sparsity``, for the sparsest model that reaches it.
        rounds: prune and fine-tune so many times over on the way to a sparsity, along a cubic schedule, each with
            ``fine_tune_epochs``.
        epochs, fine_tune_epochs: passes over ``train``.
        lr: default 0.1 or half the ceiling, whichever is less. fine_tune_lr: default a fifth of it. Both fall as a half
            cosine.
        weight_decay: c of the penalty c/2 |w|^2.
        optimizer: optimizer(parameters, lr); default SGD with momentum 0.9.
        probe: the examples on which geometry is measured; default the first ``probe_size`` of the training data.
        prior_precision: d of the Gaussian prior behind effective dimension and posterior entropy; default weight_decay
            N, or 1.
        store: a Store, or where one is or shall be; the run is recorded there under ``name`` and ``project``.
        report: path of an HTML page, rewritten after each look and phase so that a killed run leaves one; or a function
            of the journal.
        progress: True for a bar per phase on a terminal, or a function progress(phase, done, total, note).
        resume: a folder in which every finished training epoch, sweep and trial is kept. Called again with the same
            arguments after any kind of end, kill -9 included, the work goes on there, and the result is that of a run
            that was never cut off; at most one trial is done again.
        seed: of shuffling by torch's global generator, dropout, and sampled saliencies.

    Returns:
        CompressionResult.

    Raises:
        InputError: an option or the data cannot be used, or store or report cannot be written; before any work starts.
            Once work has started, a report or store that can no longer be written is a warning, and the result is
            returned.
        KeyboardInterrupt: passed on after store and report have been written, with status "interrupted".

    Cost: besides the training, one snapshot for each of about eight epochs, one sweep per curvature criterion, and two
    spectra at the end.
    """
    parsed = parse(pattern)
    if sparsity is not None:
        require_sparsity(sparsity)
    sparsity = agreed(sparsity, parsed, 0.8)
    if parsed is not None and parsed.sparsity is not None:  # there is one sparsity only, and nothing to relax
        sparsities, trials = (sparsity,) if sparsities else (), 0
    recipe = Recipe(
        criterion, scope, parsed, curvature, compensation, steps, damping, params=params,
        likelihood=likelihoods.resolve(likelihood), estimator=estimator, seed=seed, predict=predict,
    )  # fmt: skip
    settings = Settings(
        recipe,
        sparsity,
        tolerance,
        target_accuracy,
        rounds,
        epochs,
        fine_tune_epochs,
        lr,
        fine_tune_lr,
        weight_decay,
        optimizer,
        prior_precision,
        tuple(sparsities),
        tuple(criteria),
        trials,
        probe_size,
    )
    if probe is None:
        probe = Probe(
            f"{probe_size} training examples", gather(train, probe_size, seed), settings.likelihood, seed, predict
        )
    named = name or type(model).__name__
    config = _config(settings, probe)
    journal = Journal(named, config, started=time.time())
    session = Session(model, train, validation, test, settings, probe, journal, None, _silent, lambda: None)
    for labelled in (validation, probe.batch):  # labels missing or wrong: better found now than after training
        evaluate(model, labelled, likelihood=settings.likelihood, predict=predict)
    session.checkpoint = Checkpoint(None if resume is None else Path(resume), config)
    _begin(session)
    publish = _publisher(report, named)
    publish(journal, True)
    session.publish = lambda: publish(journal, False)
    with ExitStack() as stack:
        if progress:
            session.progress = stack.enter_context(Bars()) if progress is True else progress
        session.run = _open(stack, session.checkpoint, store, named, project, config)
        journal.run_id = None if session.run is None else session.run.id
        result = _phases(session)
        written = publish(journal, False)
        if session.run is not None and written is not None:
            session.run.artifact("report.html", written, "text/html")
    return CompressionResult(model, result, journal, journal.run_id, written)


def _begin(session: Session) -> None:
    """Keep the model as it came, or go back to it: a model that was half trained is not what the run began with."""
    begun = session.checkpoint.load("begin", device_of(session.model))
    if begun is not None:
        session.model.load_state_dict(begun.part("model"))
        put_back(begun, session.train)
    elif session.checkpoint.folder is not None:
        tensors = named("model", session.model.state_dict()) | random_states(session.train)
        session.checkpoint.save("begin", tensors, {})


def _phases(session: Session) -> PruningResult:
    """The four phases; whatever ends them, the page says how far they came."""
    journal = session.journal
    try:
        for name, phase in ((INITIALISE, initialise), (TRAIN, train), (PRUNE, sweep)):
            _timed(session, name, phase)
        result = _timed(session, VALIDATE, validate)
        journal.status = "finished"
    except BaseException as error:
        journal.status = ending(error)
        session.publish()
        raise
    return result


def _timed(session: Session, name: str, phase: Callable[[Session], Any]) -> Any:
    start = time.perf_counter()
    try:
        return phase(session)
    finally:
        session.journal.seconds[name] = time.perf_counter() - start
        session.publish()


def _open(
    stack: ExitStack,
    checkpoint: Checkpoint,
    store: Store | str | Path | None,
    name: str,
    project: str,
    config: dict[str, Any],
) -> Run | None:
    """A run in the store; that of the work that goes on, where it is in this store."""
    if store is None:
        return None
    opened: AbstractContextManager[Store] = nullcontext(store) if isinstance(store, Store) else Store(store)
    holder, run = stack.enter_context(opened), None
    begun = checkpoint.load("run")
    if begun is not None and begun.facts["store"] == holder.location:
        with suppress(StoreError):  # it was removed, or another process is at it
            run = holder.resume(begun.facts["run"])
    if run is None:
        run = holder.run(name=name, project=project, config=config)
        checkpoint.save("run", {}, {"store": holder.location, "run": run.id})
    return stack.enter_context(run)


def _publisher(report: str | Path | Publish | None, name: str) -> Callable[[Journal, bool], Path | None]:
    """A function that writes the page; the first time it raises, later it warns, for then there is a result to lose."""

    def publish(journal: Journal, strict: bool) -> Path | None:
        if report is None:
            return None
        try:
            if callable(report):
                report(journal)
                return None
            return write(pages.document([journal], f"Compression of {name}"), report)
        except InputError as error:
            if strict:
                raise
            warnings.warn(
                f"{error}. The work goes on; result.document() makes the page again", ReportWarning, stacklevel=2
            )
            return None

    return publish


def _silent(phase: str, done: int, total: int, note: str) -> None:
    """No progress."""


def _config(settings: Settings, probe: Probe) -> dict[str, Any]:
    """What the run was given, as JSON can carry it."""
    plain = {
        key: value
        for key, value in {**vars(settings.recipe), **vars(settings)}.items()
        if isinstance(value, (str, int, float, tuple)) or value is None
    }
    return plain | {
        "likelihood": repr(settings.likelihood),
        "probe": probe.name,
        "probe_examples": probe.count,
        "probe_digest": probe.digest,
    }
