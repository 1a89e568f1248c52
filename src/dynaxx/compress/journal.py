"""What a workflow has found so far: the one thing that phases fill, that the report shows and that survives an
interruption.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dynaxx.compress.compare import Comparison
from dynaxx.compress.foresight import Foreseen
from dynaxx.compress.intervals import Change, Interval
from dynaxx.compress.result import PruningResult
from dynaxx.compress.scoring import Evaluation
from dynaxx.monitor.snapshot import Snapshot


@dataclass(frozen=True)
class Initialisation:
    """The untrained model on the probe.

    Args:
        parameters: p, those that require grad. prunable: weights that may be dropped.
        examples: N of the training data. probe_examples: n of the probe.
        columns: columns of the metric's root per example, C - 1 for a softmax.
        rank, rank_bound: numerical rank on the probe (None where the spectrum was sampled) and min(p, n (C - 1)).
        train_rank_bound: min(p, N (C - 1)).
        snapshot: all the numbers.
        top_curvature: largest eigenvalue of the loss's Hessian. learning_rate_ceiling: 2 over it.
        prior_precision: d behind the effective dimension.
        verdict: in words. overparameterised: in one.
    """

    parameters: int
    prunable: int
    examples: int
    probe_examples: int
    columns: float
    rank: int | None
    rank_bound: int
    train_rank_bound: int
    snapshot: Snapshot
    top_curvature: float
    learning_rate_ceiling: float
    prior_precision: float
    verdict: str
    overparameterised: bool


@dataclass(frozen=True)
class Point:
    """One look during training: optimizer steps done, losses in nats per example, validation score, geometry."""

    step: int
    epoch: int
    train_loss: float
    validation_loss: float
    validation_score: float
    values: dict[str, float]


@dataclass(frozen=True)
class OneShot:
    """A criterion at a sparsity, without fine-tuning."""

    criterion: str
    sparsity: float
    kept: int
    score: Interval


@dataclass(frozen=True, eq=False)
class Trial:
    """A sparsity tried with fine-tuning: its best epoch on the validation data, and whether the score stayed within the
    tolerance.

    Args:
        before: score after pruning and calibration, before any fine-tuning. curve: (step, score) after each epoch,
            epoch 0 first.
        state: the best epoch's parameters and buffers.
        decided: masks, scores and predictions, as they were before fine-tuning.
    """

    sparsity: float
    kept: int
    before: float
    evaluation: Evaluation
    epoch: int
    accepted: bool
    curve: tuple[tuple[int, float], ...]
    state: dict[str, Tensor]
    decided: PruningResult

    @property
    def masks(self) -> dict[str, Tensor]:
        """name -> boolean tensor."""
        return self.decided.masks


@dataclass(eq=False)
class Journal:
    """Results of each phase; None where it has not come to that. ``costs``: what -> (dense, pruned)."""

    name: str
    config: dict[str, Any]
    status: str = "running"
    started: float = 0.0
    initialisation: Initialisation | None = None
    points: list[Point] = field(default_factory=list)
    spectra: dict[str, Any] = field(default_factory=dict)
    dense: Evaluation | None = None
    dense_test: Evaluation | None = None
    one_shot: list[OneShot] = field(default_factory=list)
    foreseen: list[Foreseen] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    final: Evaluation | None = None
    final_test: Evaluation | None = None
    change: Change | None = None
    comparison: Comparison | None = None
    costs: dict[str, tuple[float, float]] = field(default_factory=dict)
    kept: int = 0
    prunable: int = 0
    layers: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    run_id: int | None = None
