"""``dynaxx.advise``: which estimator and form, why, and what they will cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dynaxx.errors import InputError, bytes_as_text, choose
from dynaxx.facts import Facts, gather
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Predict
from dynaxx.model.selection import Selector

GOALS = ("diagonal", "trace", "spectrum", "solve")
GRAM_ROWS = 20_000  # rows of a Gram matrix that decomposes in minutes on a laptop


@dataclass(frozen=True)
class Plan:
    """One way to reach the goal.

    Args:
        options: what to give to ``fisher``.
        passes: cost in multiples of a plain forward and backward pass over the data.
        memory: bytes beyond the model and one batch.
        error: predicted relative standard error of an entry of the diagonal, entries weighed by their size, or of the
            number; 0 where exact, NaN where it approximates.
        why: one sentence.
        then: what to do with the operator, a function's name and its options; None where ``fisher`` is all.
    """

    options: dict[str, Any]
    passes: float
    memory: float
    error: float
    why: str
    then: tuple[str, dict[str, Any]] | None = None

    def __str__(self) -> str:
        said = (
            "exact"
            if self.error == 0
            else "approximation"
            if math.isnan(self.error)
            else f"error about {self.error:.1%}"
        )
        how = (
            ""
            if self.then is None
            else f", then {self.then[0]}(F, {', '.join(f'{k}={v}' for k, v in self.then[1].items())})"
        )
        return f"{self.options}{how}: about {self.passes:.3g} passes, {bytes_as_text(self.memory)}, {said}. {self.why}"


@dataclass(frozen=True)
class Advice:
    """The best plan, the others in order, and the facts they rest on."""

    best: Plan
    others: list[Plan] = field(default_factory=list)
    facts: Facts | None = None

    @property
    def options(self) -> dict[str, Any]:
        """``dynaxx.fisher(model, data, **advice.options)``."""
        return self.best.options

    def __str__(self) -> str:
        return "\n".join([f"do      {self.best}", *(f"else    {plan}" for plan in self.others)])


def advise(
    model: nn.Module,
    data: Any,
    *,
    goal: str = "diagonal",
    budget: float = math.inf,
    memory: float = 8e9,
    tolerance: float = 0.05,
    likelihood: str | Likelihood = "categorical",
    params: Selector = None,
    predict: Predict | None = None,
) -> Advice:
    """Say which estimator and form to use for a goal, and why.

    The rules: an exact answer wherever it costs little more than a sampled one (two classes need one column);
        per-example squares wherever there are many examples, for their error falls as 1/sqrt(N); deflation where there
        are few, columns are many and the effective rank is small; sampled labels as good as signs while the model is
        unsure, and much worse once it is not, because what is rarely drawn is rarely seen; the Gram matrix for spectra
        while examples times columns stay below 20,000.

    With r = (tr F)^2 / |F|_F^2, the participation ratio, S draws, V_n the variance of one draw's |g_n|^2, and R what
    deflation leaves of F, relative errors are

        diagonal    per example sqrt(2 mean_n (tr F_n)^2 / (N S)) / tr F        deflated sqrt(2 / S) tr R / tr F
        trace       per example sqrt(mean_n V_n / (N S)) / tr F                 deflated sqrt(2 / S) |R|_F / tr F
                    one sum a batch sqrt(2 / (S r)), less what |g_n|^2 lacks of a normal draw's variance

    An entry's is sum_i stderr_i / sum_i F_ii: entries count by their size, and are taken to vary over examples as
    traces do. r and R come from a Gram matrix of sampled gradients, V_n from drawing a few examples again.

    Args:
        goal: "diagonal", "trace", "spectrum" or "solve" (products with the damped inverse).
        budget: passes (forward and backward over the data) that may be spent.
        memory: bytes that may be used.
        tolerance: relative standard error that is good enough.
        likelihood, params, predict: as for ``fisher``.

    Returns:
        The cheapest plan that meets tolerance, budget and memory; where none does, the one that meets budget and
        memory with the least error.

    Raises:
        InputError: an unknown goal, or nothing fits the budget and memory.

    Cost: a forward pass over the data without gradients; for "diagonal" and "trace" reverse passes of some 400 examples
        besides, few of them drawn often or many seldom, inner products of 128 sampled gradients (of fewer beyond a
        million parameters), and at most 1 GiB for what these are made of.

    Source: the variances of Sun 2025 and Soen & Sun 2021, in the form of ``predicted_error``; deflation as in Meyer et
        al. 2021 (Hutch++), in Gram form.

    >>> import torch, dynaxx
    >>> advice = dynaxx.advise(torch.nn.Linear(5, 2), torch.randn(64, 5))
    >>> advice.options
    {'estimator': 'exact', 'form': 'diagonal'}
    """
    choose("goal", goal, GOALS)
    facts = gather(model, data, likelihood, params, predict, concentrated=goal in ("diagonal", "trace"))
    plans = {"diagonal": _diagonal, "trace": _diagonal, "spectrum": _spectrum, "solve": _solve}[goal](facts, goal)
    allowed = [plan for plan in plans if plan.passes <= budget and plan.memory <= memory]
    if not allowed:
        least = min(plans, key=lambda plan: (plan.memory > memory, plan.passes))
        raise InputError(
            f"nothing reaches goal={goal!r} within budget={budget:g} passes and memory={bytes_as_text(memory)}; the "
            f"nearest is {least}"
        )
    good = [plan for plan in allowed if plan.error <= tolerance]
    ranked = sorted(good, key=lambda plan: plan.passes)
    ranked = ranked or sorted(allowed, key=lambda plan: (math.isnan(plan.error), plan.error, plan.passes))
    return Advice(ranked[0], [plan for plan in plans if plan is not ranked[0]], facts)


def _sampled_error(facts: Facts, goal: str, estimator: str, samples: int) -> float:
    """Relative standard error from per-example squares; for labels at least 1/sqrt(surprises drawn)."""
    plain = math.sqrt(2 * facts.unevenness / facts.examples)
    if goal == "trace":
        plain = facts.noise.get(estimator, 0.0)
    if estimator == "monte_carlo":
        plain = max(plain, 1 / math.sqrt(max(facts.surprise * facts.examples * facts.positions, 1e-12)))
    return plain / math.sqrt(samples)


def _diagonal(facts: Facts, goal: str) -> list[Plan]:
    held = float(facts.parameters * facts.itemsize)
    form = "implicit" if goal == "trace" else "diagonal"
    columns = f"{facts.columns} columns an example ({facts.outputs} outputs, {facts.positions} positions) and no noise."
    pulled = min(2**28, facts.columns * facts.entries * facts.itemsize)
    plans = [Plan({"estimator": "exact", "form": form}, (1 + 2 * facts.columns) / 3, held + pulled, 0.0, columns)]
    reasons = {
        "hutchinson": "Per-example squares average over examples, so few draws suffice.",
        "monte_carlo": f"The likeliest label misses {facts.surprise:.2g} of the mass; rarely drawn is rarely seen.",
    }
    for samples in (1, 4, 16, 64):
        for estimator, why in reasons.items():
            options = {"estimator": estimator, "form": form, "samples": samples}
            if goal == "diagonal":
                options["head"] = "exact"
            passes = (1 + 2 * samples) / 3 * 1.2
            plans.append(Plan(options, passes, held, _sampled_error(facts, goal, estimator, samples), why))
    return plans + (_plain(facts, held) if goal == "trace" else []) + _deflated(facts, goal)


def _plain(facts: Facts, held: float) -> list[Plan]:
    """Traces from one sum over the batch: an ordinary backward pass a draw."""
    ratio = facts.participation_ratio
    if ratio is None or math.isnan(ratio):
        return []
    # cross terms between examples have no more than a normal draw's variance; within an example signs have less
    variance = max(0.0, 2 / ratio - 2 * facts.within / facts.examples) + facts.noise["hutchinson"] ** 2
    why = f"One backward pass a draw; the participation ratio is {ratio}."
    options = {"estimator": "hutchinson", "form": "diagonal", "group": "batch"}
    return [Plan(options | {"samples": S}, (1 + 2 * S) / 3, held, math.sqrt(variance / S), why) for S in (1, 4, 16, 64)]


def _deflated(facts: Facts, goal: str) -> list[Plan]:
    plans, rows = [], facts.examples * facts.columns
    for sketch, (trace, norm) in facts.remainders.items():
        if sketch >= rows:
            continue
        why = (
            f"{sketch} columns leave {trace:.2g} of the trace; the participation ratio is {facts.participation_ratio}."
        )
        error = math.sqrt(2 / sketch) * (norm if goal == "trace" else trace)
        options = {"estimator": "exact", "form": "implicit"}
        held = 16.0 * sketch * rows + 88.0 * facts.parameters
        given: dict[str, Any] = {"sketch": sketch, "samples": sketch}
        plans.append(Plan(options, (1 + 8 * sketch) / 3, held, error, why, ("dynaxx.deflated", given)))
        if goal == "trace":
            held, given = 3.0 * sketch * facts.parameters * facts.itemsize, {"samples": 3 * sketch}
            product = ("dynaxx.linalg.hutch_plus_plus", given)
            plans.append(Plan(options, (1 + 12 * sketch) / 3, held, error, why, product))
    return plans


def _spectrum(facts: Facts, goal: str) -> list[Plan]:
    plans = []
    for estimator, columns, why in (
        ("exact", facts.columns, "Every non-zero eigenvalue, with a rounding floor near float64's."),
        ("monte_carlo", 1, "One label an example: leading eigenvalues to about 1/sqrt(N), the tail in shape only."),
    ):
        rows = facts.examples * columns
        if rows <= GRAM_ROWS:
            error = 0.0 if estimator == "exact" else 1 / math.sqrt(facts.examples)
            passes = (1 + 2 * columns) / 3 * (1 + rows * columns / 1000)
            held = 16.0 * rows * rows + rows * facts.entries * facts.itemsize
            plans.append(Plan({"estimator": estimator, "form": "gram"}, passes, held, error, why))
    basis = 60.0 * facts.parameters * facts.itemsize
    why = "F.eigenvalues(k) by Lanczos, F.spectrum() by quadrature with error bars; about 60 products."
    return [*plans, Plan({"estimator": "exact", "form": "implicit"}, 60.0, basis, 0.02, why)]


def _solve(facts: Facts, goal: str) -> list[Plan]:
    held = float(facts.parameters * facts.itemsize)
    why = "F.solve(v, damping=d) by conjugate gradients; more products for smaller damping."
    plans = [Plan({"estimator": "exact", "form": "implicit"}, 50.0, 6 * held, 1e-4, why)]
    why = "Cheapest by far, and an approximation: compare with F @ x on a few vectors."
    plans.append(Plan({"estimator": "monte_carlo", "form": "kfac"}, 2.0, 4 * held, math.nan, why))
    rows = facts.examples * facts.columns
    if rows <= GRAM_ROWS:
        why = "Exact by Woodbury, whatever the damping; worth it for many right-hand sides."
        passes = (1 + 2 * facts.columns) / 3 * (1 + rows / 1000)
        plans.append(Plan({"estimator": "exact", "form": "gram"}, passes, 16.0 * rows**2, 0.0, why))
    return plans
