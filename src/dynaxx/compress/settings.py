"""What the workflow was asked for, checked before it starts, and what every phase needs at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from dynaxx import likelihoods
from dynaxx.compress.checkpoint import Checkpoint
from dynaxx.compress.criteria import CRITERIA, prunable_parameters
from dynaxx.compress.masks import require_sparsity
from dynaxx.compress.recipe import Recipe
from dynaxx.compress.scoring import Evaluation
from dynaxx.compress.training import MakeOptimizer, require_positive, sgd
from dynaxx.errors import InputError, choose
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Predict
from dynaxx.model.reading import batches, require_rereadable, unmoved
from dynaxx.monitor.snapshot import Probe

if TYPE_CHECKING:
    from dynaxx.compress.journal import Journal
    from dynaxx.track import Run

Progress = Callable[[str, int, int, str], None]
"""progress(phase, done, total, note): called as work goes on."""


@dataclass(frozen=True)
class Settings:
    """Options of ``dynaxx.compress``, as documented there.

    Raises:
        InputError: one of them is out of range.
    """

    recipe: Recipe
    sparsity: float
    tolerance: float
    target_accuracy: float | None
    rounds: int
    epochs: int
    fine_tune_epochs: int
    lr: float | None
    fine_tune_lr: float | None
    weight_decay: float
    optimizer: MakeOptimizer | None
    prior_precision: float | None
    sparsities: Sequence[float]
    criteria: Sequence[str]
    trials: int
    probe_size: int

    def __post_init__(self) -> None:
        for sparsity in (self.sparsity, *self.sparsities):
            require_sparsity(sparsity)
        for criterion in self.criteria:
            choose("criterion", criterion, CRITERIA)
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise InputError(f"rounds={self.rounds!r} is not a whole number >= 1")
        for name in ("epochs", "fine_tune_epochs", "trials"):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int) or given < 0:
                raise InputError(f"{name}={given!r} is not a whole number >= 0")
        for name in ("lr", "fine_tune_lr", "prior_precision"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        require_positive("tolerance", self.tolerance, zero=True)
        require_positive("weight_decay", self.weight_decay, zero=True)
        classes = isinstance(self.likelihood, likelihoods.Categorical | likelihoods.Bernoulli)
        if classes and self.tolerance >= 1:
            raise InputError(f"tolerance={self.tolerance!r} allows any accuracy; for one point of accuracy give 0.01")
        target = self.target_accuracy
        if target is not None and not classes:
            raise InputError("target_accuracy belongs to models of classes; give tolerance, a share of the likelihood")
        if target is not None and (
            isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target <= 1
        ):
            raise InputError(f"target_accuracy={target!r} is not in (0, 1]; for 97 percent give 0.97")
        if self.probe_size < 1:
            raise InputError(f"probe_size={self.probe_size!r}; geometry needs at least one example")

    @property
    def likelihood(self) -> Likelihood:
        """Of the outputs."""
        return likelihoods.resolve(self.recipe.likelihood)

    @property
    def predict(self) -> Predict | None:
        """How the model is called, where it cannot simply be."""
        return self.recipe.predict

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.recipe.seed

    def recipe_of(self, criterion: str) -> Recipe:
        """The recipe; for another criterion than its own, its plain one-shot form under the same scope and pattern."""
        if criterion == self.recipe.criterion:
            return self.recipe
        damping = None if isinstance(self.recipe.damping, str) else self.recipe.damping
        curvature = self.recipe.curvature if criterion == "obs" else None
        return replace(
            self.recipe, criterion=criterion, compensation=None, steps=None, damping=damping, curvature=curvature
        )

    def accepts(self, dense: Evaluation, pruned: Evaluation) -> bool:
        """Whether a score is good enough."""
        if self.target_accuracy is None:
            return dense.accepts(pruned, self.tolerance)
        return pruned.score >= self.target_accuracy - 1e-12

    def least(self, dense: Evaluation) -> float:
        """The lowest score that is."""
        return dense.least(self.tolerance) if self.target_accuracy is None else self.target_accuracy


@dataclass
class Session:
    """The parts that phases work on. Phases read it and write to its journal, never to each other."""

    model: nn.Module
    train: Any
    validation: Any
    test: Any
    settings: Settings
    probe: Probe
    journal: Journal
    run: Run | None
    progress: Progress
    publish: Callable[[], object]
    examples: int = field(init=False)
    checkpoint: Checkpoint = field(default_factory=lambda: Checkpoint(None, {}))

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise InputError(f"model is a {type(self.model).__name__}; expected a torch.nn.Module")
        prunable_parameters(self.model, self.settings.recipe.params)
        for what, data in (("train", self.train), ("validation", self.validation)):
            require_rereadable(what, data)
        dataset = getattr(self.train, "dataset", None)
        whole = dataset is not None and hasattr(dataset, "__len__") and not getattr(self.train, "drop_last", False)
        if whole:
            self.examples = len(cast(Sized, dataset))
        else:
            with unmoved(self.train):
                self.examples = sum(batch.count for batch in batches(self.model, self.train))

    @property
    def prior_precision(self) -> float:
        """d: as given; else weight decay times N, the prior that weight decay stands for; else 1."""
        given = self.settings.prior_precision
        return given if given is not None else self.settings.weight_decay * self.examples or 1.0

    @property
    def make_optimizer(self) -> MakeOptimizer:
        """As given, else SGD with momentum."""
        return self.settings.optimizer or sgd

    @property
    def lr(self) -> float:
        """As given; else 0.1 or half the ceiling found at initialisation, whichever is less."""
        if self.settings.lr is not None:
            return self.settings.lr
        start = self.journal.initialisation
        ceiling = start.learning_rate_ceiling if start is not None else math.inf
        return min(0.1, ceiling / 2)

    @property
    def fine_tune_lr(self) -> float:
        """As given, else a fifth of the training's."""
        return self.settings.fine_tune_lr if self.settings.fine_tune_lr is not None else self.lr / 5

    def log(self, values: dict[str, Any], step: int) -> None:
        """Record numbers where there is a run."""
        if self.run is not None:
            self.run.log(values, step=step)

    def remark(self, title: str, text: str, level: str = "warning", step: int | None = None) -> None:
        """Something a person should know: into the journal and the run."""
        self.journal.remarks.append((level, title, text))
        if self.run is not None:
            self.run.alert(title, text, level=level, step=step)
