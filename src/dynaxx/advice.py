"""``dynaxx.advise``: which estimator and form, why, and what they will cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dynaxx import estimators, likelihoods
from dynaxx.assembly.sweep import Sweeper
from dynaxx.errors import InputError, bytes_as_text, choose
from dynaxx.likelihoods import Likelihood
from dynaxx.model.data import Data
from dynaxx.model.network import Network, Predict
from dynaxx.model.selection import Selector

GOALS = ("diagonal", "trace", "spectrum", "solve")
GRAM_ROWS = 20_000  # rows of a Gram matrix that decomposes in minutes on a laptop


@dataclass(frozen=True)
class Facts:
    """What the advice rests on, measured on the data.

    Args:
        examples: N. outputs: C. positions: P, places of an example that have an output of their own. parameters: p.
        columns: K, cotangents an example has under the exact estimator.
        surprise: expected share of sampled labels that differ from the likeliest one, 1 - mean max p; 1/2 where labels
            are not classes.
        entries: layer-output entries of an example, which is what one cotangent occupies.
        itemsize: bytes of a parameter.
    """

    examples: int
    outputs: int
    positions: int
    parameters: int
    columns: int
    surprise: float
    entries: int
    itemsize: int


@dataclass(frozen=True)
class Plan:
    """One way to reach the goal.

    Args:
        options: what to give to ``fisher``.
        passes: cost in multiples of a plain forward and backward pass over the data.
        memory: bytes beyond the model and one batch.
        error: predicted relative standard error of a typical entry (diagonal) or of the number; 0 where exact, NaN
            where it approximates.
        why: one sentence.
    """

    options: dict[str, Any]
    passes: float
    memory: float
    error: float
    why: str

    def __str__(self) -> str:
        said = (
            "exact"
            if self.error == 0
            else "approximation"
            if math.isnan(self.error)
            else f"error about {self.error:.1%}"
        )
        return f"{self.options}: about {self.passes:.3g} passes, {bytes_as_text(self.memory)}, {said}. {self.why}"


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
        per-example squares always,
    whose error falls as 1/sqrt(N); sampled labels as good as signs while the model is unsure, and much worse once it
    is not, because what is rarely drawn is rarely seen; the Gram matrix for spectra while examples times columns stay
    below 20,000.

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

    Cost: a forward pass over the data without gradients.

    Source: the variances of Sun 2025 and Soen & Sun 2021, in the form of ``predicted_error``.

    >>> import torch, dynaxx
    >>> advice = dynaxx.advise(torch.nn.Linear(5, 2), torch.randn(64, 5))
    >>> advice.options
    {'estimator': 'exact', 'form': 'diagonal'}
    """
    choose("goal", goal, GOALS)
    facts = _measure(model, data, likelihood, params, predict)
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


def _measure(
    model: nn.Module, data: Any, likelihood: str | Likelihood, params: Selector, predict: Predict | None
) -> Facts:
    meaning = likelihoods.resolve(likelihood)
    network = Network(model, meaning, params, predict)
    exact = estimators.resolve("exact", meaning)
    sweeper = Sweeper(network, Data(data, network.device), exact)
    examples = positions = columns = entries = outputs = 0
    certainty = 0.0
    with network.guarded():
        for batch in sweeper.data:
            if examples == 0:
                tape = sweeper.tape(batch)
                output, entries = tape.output, tape.entries // batch.count
                positions, columns, outputs = output.z.shape[1], exact.number(output), output.z.shape[2]
            else:
                with torch.no_grad():
                    output = network(batch)
            examples += batch.count
            if isinstance(meaning, likelihoods.Categorical):
                certainty += float(torch.softmax(output.z.detach().float(), -1).amax(-1).mean(1).sum())
    surprise = 1 - certainty / examples if isinstance(meaning, likelihoods.Categorical) else 0.5
    size = network.layout.size
    return Facts(examples, outputs, positions, size, columns, surprise, entries, network.layout.dtype.itemsize)


def _sampled_error(facts: Facts, estimator: str, samples: int) -> float:
    """Typical relative standard error of an entry from per-example squares, sqrt(2 / (N S)); for labels at least
    1/sqrt(surprises drawn)."""
    plain = math.sqrt(2 / (facts.examples * samples))
    if estimator == "hutchinson":
        return plain
    return max(plain, 1 / math.sqrt(max(facts.surprise * facts.examples * facts.positions * samples, 1e-12)))


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
            plans.append(Plan(options, passes, held, _sampled_error(facts, estimator, samples), why))
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
