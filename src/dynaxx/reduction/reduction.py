"""A model on subspaces of its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from dynaxx.assembly.sweep import bar
from dynaxx.eigenspace import Eigenspace
from dynaxx.errors import InputError, choose
from dynaxx.model.calibrate import calibrate
from dynaxx.model.network import Predict
from dynaxx.reduction.bisection import Smallest, bisect
from dynaxx.reduction.centre import centre_vector, displaced
from dynaxx.reduction.curve import Curve, Point
from dynaxx.reduction.inputs import input_components
from dynaxx.reduction.subspaces import CONTROLS, Eigenvectors, Subspace, control
from dynaxx.spectrum import Spectrum

Evaluate = Callable[[nn.Module], float]
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the rank: where a curve is taken unless told otherwise


class Reduction:
    """A model on subspaces of its weights: w_k = c + P_k (w - c). Made by ``reduce``; making it changed nothing.

    The model is read at every ``apply``, so its weights must stay as they are while this is used.
    """

    def __init__(
        self,
        model: nn.Module,
        space: Eigenspace,
        centre: Tensor,
        displacement: Tensor,
        subspace: Subspace,
        k: int | None,
        calibration: Any,
        predict: Predict | None,
    ) -> None:
        self.model, self.space, self.centre, self.displacement = model, space, centre, displacement
        self.subspace, self.k, self._calibration, self._predict = subspace, k, calibration, predict

    # what it is

    @property
    def rank(self) -> int:
        """r, the eigenvalues of F above the rounding floor: the most eigenvectors there are."""
        return self.space.rank

    @property
    def dimension(self) -> int:
        """p."""
        return self.space.layout.size

    @property
    def spectrum(self) -> Spectrum:
        """All eigenvalues of F on the data."""
        return self.space.spectrum

    @property
    def exact(self) -> bool:
        """False where F was sampled, because neither p nor N K was small enough."""
        return self.space.exact

    def energy(self, k: int | None = None) -> float:
        """|P_k d|^2 / |d|^2, d = w - c: the share of the displacement that is kept."""
        return self.subspace.energy(self._chosen(k))

    def share_of_parameters(self, k: int | None = None) -> float:
        """k / p."""
        return self._chosen(k) / self.dimension

    def share_of_rank(self, k: int | None = None) -> float:
        """k / r; where p is far beyond r, the share that says something."""
        return self._chosen(k) / self.rank

    def about(self, centre: Any, *, init: Any = None) -> Reduction:
        """The same eigenvectors about another centre, without another decomposition; one product.

        Args, Raises: centre and init as for ``reduce``.
        """
        weights = self.centre + self.displacement
        point = centre_vector(centre, init, self.space.layout)
        displacement = displaced(weights, point)
        eigenvectors = Eigenvectors(self.space, displacement)
        return Reduction(
            self.model, self.space, point, displacement, eigenvectors, self.k, self._calibration, self._predict
        )

    def control(self, name: str, *, seed: int = 0) -> Reduction:
        """The same reduction on other subspaces of dimension k, which eigenvectors have to beat.

        Args:
            name: "random" (uniform over all subspaces), "magnitude" (the k largest |w - c|), "diagonal" (the k largest
                entries of diag F), "data" (the first linear layer on the principal components of its inputs, all other
                parameters kept: k is at least their number, ``control.subspace.least``); k may go up to p.
            seed: of the random ones.

        Raises:
            InputError: another name; "data" of a model whose first layer is neither linear nor a plain convolution.
        """
        if choose("control", name, CONTROLS) == "data":
            other: Subspace = input_components(
                self._duplicate(), self.space.layout, self.displacement, self._calibration, self._predict
            )
        else:
            other = control(name, self.space, self.displacement, seed)
        return Reduction(
            self.model, self.space, self.centre, self.displacement, other, self.k, self._calibration, self._predict
        )

    # models

    @overload
    def apply(self, k: int | None = None) -> nn.Module: ...

    @overload
    def apply(self, k: Sequence[int]) -> list[nn.Module]: ...

    def apply(self, k: int | Sequence[int] | None = None) -> nn.Module | list[nn.Module]:
        """The reduced model: a copy of the user's, of the same class, with weights c + P_k (w - c).

        Weights that are not among the selected parameters stay. BatchNorm's running statistics are estimated anew from
        the calibration data, as its inputs have moved.

        Args:
            k: one dimension, or several for a list of models; default the one ``reduce`` was given.

        Raises:
            InputError: k is out of range; the model's weights have changed since; it cannot be copied.

        Cost: one reverse pass over the data for each k, and one forward pass where there is BatchNorm.
        """
        if isinstance(k, Sequence):
            return list(self._models([self._chosen(each) for each in k]))
        return next(self._models([self._chosen(k)]))

    def _models(self, ks: Sequence[int]) -> Iterator[nn.Module]:
        with torch.inference_mode(False):
            for projected in self.subspace.projections(ks):
                yield self._copy(projected)

    def _duplicate(self) -> nn.Module:
        try:
            return copy.deepcopy(self.model)
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"this {type(self.model).__name__} cannot be copied ({error}); remove what holds tensors with a graph "
                f"or open handles from it"
            ) from error

    def _copy(self, projected: Tensor) -> nn.Module:
        model = self._duplicate()
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.space.layout.unravel(self.centre + projected).items():
                parameters[name].copy_(value)
        calibrate(model, self._calibration, predict=self._predict)
        return model

    # how good they are

    def smallest(self, evaluate: Evaluate, *, tolerance: float, progress: bool = False) -> Smallest:
        """The smallest k whose score is within ``tolerance`` of the full model's, by bisection.

        Bisection takes the score to grow with k, which accuracy need not do. So the answer is checked at a few larger
        k; ``dips`` lists those that fail, and where there are some, look at ``curve``.

        Args:
            evaluate: model -> score, higher is better; on data that choose k, not the data that judge the result.
            tolerance: >= 0, in units of the score.

        Raises:
            InputError: the tolerance is negative or the full model's score not finite.

        Cost: about log2(r) + 4 applications and evaluations.
        """
        reference = self._reference(evaluate)
        return bisect(
            lambda k: float(evaluate(next(self._models([k])))),
            self.subspace.largest,
            reference=reference,
            tolerance=tolerance,
            progress=progress,
        )

    def curve(
        self,
        evaluate: Evaluate,
        ks: Sequence[int] | None = None,
        *,
        controls: Sequence[str] = (),
        seeds: Sequence[int] = (0,),
        progress: bool = False,
    ) -> Curve:
        """Score and energy against k, beside the controls'.

        Args:
            evaluate: model -> score.
            ks: dimensions; default some shares of the rank from 1 % to all of it.
            controls: any of "random", "magnitude", "diagonal", "data".
            seeds: one random subspace for each.

        Returns:
            A Curve: ``points``, ``rows()``, ``figure()``, ``block()``.

        Cost: one application and evaluation for each point.
        """
        points = list(self.points(evaluate, ks, controls=controls, seeds=seeds, progress=progress))
        return Curve(tuple(points), self._reference(evaluate), self.rank, self.dimension, self.exact)

    def points(
        self,
        evaluate: Evaluate,
        ks: Sequence[int] | None = None,
        *,
        controls: Sequence[str] = (),
        seeds: Sequence[int] = (0,),
        progress: bool = False,
    ) -> Iterator[Point]:
        """The points of ``curve`` one by one, for those who want to keep each as it comes."""
        chosen = sorted({math.ceil(share * self.rank) for share in SHARES}) if ks is None else list(ks)
        runs: list[tuple[Reduction, int]] = [(self, 0)]
        for name in controls:
            runs += [(self.control(name, seed=seed), seed) for seed in (seeds if name == "random" else (0,))]
        for reduction, _ in runs:
            for k in chosen:
                reduction._chosen(k)
        with bar(range(len(runs) * len(chosen)), progress, "projections") as ticks:
            for _, (reduction, seed, k, model) in zip(ticks, _jobs(runs, chosen), strict=False):
                shares = self.share_of_parameters(k), self.share_of_rank(k)
                score = float(evaluate(model))
                yield Point(reduction.subspace.name, seed, k, *shares, reduction.energy(k), score)

    def _reference(self, evaluate: Evaluate) -> float:
        score = float(evaluate(copy.deepcopy(self.model)))
        if not math.isfinite(score):
            raise InputError(f"evaluate gave {score} for the full model; it must return a finite number")
        return score

    def _chosen(self, k: int | None) -> int:
        given = self.k if k is None else k
        least, largest = self.subspace.least, self.subspace.largest
        if given is None:
            raise InputError(f"say how many dimensions: k=, from {least} to {largest}")
        if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= largest:
            raise InputError(
                f"k={given!r}; expected a whole number from {least} to {largest}"
                + (
                    f": F on these data has rank {self.rank}, so more eigenvectors there are not. A share s of it is "
                    f"k = round(s * reduction.rank)"
                    if largest < self.dimension
                    else ": the parameters outside the first layer are kept"
                    if least
                    else ""
                )
            )
        return given

    def __repr__(self) -> str:
        text = f"Reduction({self.subspace.name}, p = {self.dimension}, rank {self.rank}"
        text += "" if self.exact else " of a sampled F"
        if self.k is not None:
            text += f", k = {self.k}: {self.share_of_parameters():.1%} of p, {self.share_of_rank():.1%} of the rank, "
            text += f"energy {self.energy():.1%}"
        return text + ")"


def _jobs(runs: Sequence[tuple[Reduction, int]], ks: Sequence[int]) -> Iterator[tuple[Reduction, int, int, nn.Module]]:
    for reduction, seed in runs:
        for k, model in zip(ks, reduction._models(ks), strict=True):
            yield reduction, seed, k, model
