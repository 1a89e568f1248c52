"""How to prune: a ranking, a curvature, a schedule. One object, made once and used at any sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dynaxx.compress.criteria import CRITERIA, Saliency, saliency
from dynaxx.compress.criteria.ranking import COMPENSATIONS, require_damping
from dynaxx.compress.curvature.build import KINDS
from dynaxx.compress.decision import decide
from dynaxx.compress.gradual import Told, gradual
from dynaxx.compress.masks import SCOPES
from dynaxx.compress.patterns import Pattern, parse
from dynaxx.compress.result import PruningResult
from dynaxx.errors import InputError, choose
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Predict
from dynaxx.model.selection import Selector
from dynaxx.monitor.snapshot import evaluating


@dataclass(frozen=True)
class Recipe:
    """Options of ``dynaxx.prune`` but for the sparsity, as documented there.

    Raises:
        InputError: one of them is out of range, or two do not go together.
    """

    criterion: str = "obd"
    scope: str = "global"
    pattern: str | tuple[int, int] | Pattern | None = None
    curvature: str | None = None
    compensation: str | None = None
    steps: int | None = None
    damping: float | str | None = None
    block: int = 32
    params: Selector = None
    likelihood: str | Likelihood = "categorical"
    estimator: str | None = None
    samples: int = 1
    seed: int = 0
    predict: Predict | None = None

    def __post_init__(self) -> None:
        choose("criterion", self.criterion, CRITERIA)
        choose("scope", self.scope, SCOPES)
        if self.compensation is not None:
            choose("compensation", self.compensation, COMPENSATIONS)
        if self.curvature is not None:
            choose("curvature", self.curvature, KINDS)
            if not self.coupled:
                raise InputError(
                    f"curvature={self.curvature!r} says how weights make up for each other; it belongs to "
                    f"criterion='obs' or compensation='obs', not to criterion={self.criterion!r} alone"
                )
        object.__setattr__(self, "pattern", parse(self.pattern))
        for name in ("steps", "block", "samples"):
            given = getattr(self, name)
            if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
                raise InputError(f"{name}={given!r} is not a whole number >= 1")
        if self.damping == "auto":
            if not self.coupled:
                raise InputError(
                    "damping='auto' chooses the damping of a coupled curvature; use criterion='obs' or "
                    "compensation='obs'"
                )
        else:
            if isinstance(self.damping, str):
                raise InputError(f"damping={self.damping!r} is no number >= 0 and not 'auto'")
            require_damping(self.damping)

    @property
    def coupled(self) -> bool:
        """Whether weights that stay can make up for those that go."""
        return self.criterion == "obs" or self.compensation == "obs"

    @property
    def rounds(self) -> int:
        """How often scores are taken anew."""
        return self.steps or (100 if self.criterion == "synflow" else 1)

    @property
    def repeats(self) -> bool:
        """Whether one look at the dense model does not serve every sparsity."""
        return self.rounds > 1 or self.damping == "auto"

    def saliency(self, model: nn.Module, data: Any, live: dict[str, Tensor] | None = None, step: int = 0) -> Saliency:
        """Scores of the model as it stands, in evaluation mode; draws differ from step to step."""
        given = None if isinstance(self.damping, str) else self.damping
        with evaluating(model):
            return saliency(
                self.criterion, model, data, likelihood=self.likelihood, params=self.params, estimator=self.estimator,
                damping=given, seed=self.seed + step, predict=self.predict, curvature=self.curvature,
                compensation=self.compensation, block=self.block, samples=self.samples, live=live,
            )  # fmt: skip

    def prune(
        self,
        model: nn.Module,
        data: Any,
        sparsity: float,
        live: dict[str, Tensor] | None = None,
        progress: Told | None = None,
    ) -> PruningResult:
        """Masks (and weights) of one sparsity; ``model`` is not changed.

        Args:
            live: weights that went before and stay away.
            progress: called with (steps done, steps).
        """
        if not self.repeats:
            return self.decide(self.saliency(model, data, live), sparsity, live)
        return gradual(self, model, data, sparsity, live, progress)

    def decide(self, found: Saliency, sparsity: float, live: dict[str, Tensor] | None = None) -> PruningResult:
        """Masks of one sparsity from saliencies that may serve several."""
        assert self.pattern is None or isinstance(self.pattern, Pattern)
        details = {"estimator": self.estimator, "seed": self.seed, "steps": self.rounds, "curvature": self.curvature}
        return decide(found, sparsity, self.scope, details, pattern=self.pattern, live=live)

    def several(self, model: nn.Module, data: Any, sparsities: Sequence[float]) -> list[PruningResult]:
        """One result per sparsity; one look at the model serves all where the recipe allows it."""
        if self.repeats:
            return [self.prune(model, data, sparsity) for sparsity in sparsities]
        found = self.saliency(model, data)
        return [self.decide(found, sparsity) for sparsity in sparsities]
