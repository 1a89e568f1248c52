"""Variance formulas against the spread over seeds; grouping, orthogonal probes, deflation, closed head, advice."""

import math

import pytest
import torch

import dynaxx
from architectures import load

SEEDS = range(300)


def spread(model, batch, **options):
    draws = [dynaxx.fisher(model, batch, form="dense", seed=seed, **options).diagonal() for seed in SEEDS]
    return torch.stack(draws)


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "hutchinson"},
        {"estimator": "hutchinson", "factor": "cholesky", "samples": 3},
        {"estimator": "hutchinson", "samples": 2, "probes": "hadamard"},
        {"estimator": "hutchinson", "group": 2},
        {"estimator": "monte_carlo"},
        {"estimator": "monte_carlo", "group": "batch"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["mlp", "dict_batch"])
def test_predicted_error_is_the_spread(name, options):
    """300 seeds tell a standard deviation to about 4 % for normal draws; the median over dependent entries has 12 %."""
    model, batch = load(name)
    predicted = dynaxx.predicted_error(model, batch, **options)
    draws = spread(model, batch, **options)
    live = predicted.diagonal_stderr > 1e-6 * predicted.diagonal_stderr.max()
    assert float((draws.std(0) / predicted.diagonal_stderr)[live].median()) == pytest.approx(1, abs=0.12)
    exact = dynaxx.fisher(model, batch, form="diagonal")
    assert float((predicted.diagonal - exact.diagonal()).norm()) < 1e-10 * float(exact.diagonal().norm())
    if predicted.trace_stderr is not None:
        assert float(draws.sum(1).std()) == pytest.approx(predicted.trace_stderr, rel=0.2)


def test_orthogonal_probes_are_exact_when_complete():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4)).double()
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = dynaxx.fisher(model, x, form="dense").matrix
    drawn = dynaxx.fisher(model, x, form="dense", estimator="hutchinson", samples=4, probes="hadamard", seed=3).matrix
    assert float((drawn - exact).norm()) < 1e-12 * float(exact.norm())
    with pytest.raises(dynaxx.InputError, match="at most 4"):
        dynaxx.fisher(model, x, form="dense", estimator="hutchinson", samples=5, probes="hadamard")


def test_batch_form_is_near_root_two_and_per_example_falls():
    """Section 4.5:

    one vector for the batch has a relative error near sqrt 2 at any size; per-example squares fall as 1/sqrt N.
    """
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5)).double()
    found = {}
    for count in (16, 64, 256):
        x = torch.randn(count, 4, dtype=torch.float64, generator=generator)
        for group in ("batch", "example"):
            cv = dynaxx.predicted_error(model, x, group=group).coefficient_of_variation()
            found[group, count] = float(cv.median())
    assert all(1.2 < found["batch", count] < math.sqrt(2) for count in (16, 64, 256))
    assert found["example", 16] / found["example", 256] == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("name", ["mlp", "tied_language_model", "dict_batch"])
@pytest.mark.parametrize("estimator", ["hutchinson", "monte_carlo"])
def test_head_in_closed_form(name, estimator):
    """The head's entries are exact, everything is unbiased, and the reported error is that of what is still sampled."""
    model, batch = load(name)
    exact = dynaxx.fisher(model, batch, form="diagonal").diagonal()
    operators = [
        dynaxx.fisher(model, batch, form="diagonal", estimator=estimator, head="exact", seed=seed)
        for seed in range(200)
    ]
    draws = torch.stack([operator.diagonal() for operator in operators])
    fixed = draws.std(0) < 1e-12
    assert fixed.sum() > 0
    torch.testing.assert_close(draws[0][fixed], exact[fixed], rtol=1e-9, atol=1e-12)
    sampled = torch.stack(
        [dynaxx.fisher(model, batch, form="diagonal", estimator=estimator, seed=seed).diagonal() for seed in range(200)]
    )
    assert float(draws.var(0).sum()) < float(sampled.var(0).sum())
    traces = draws.sum(1)
    assert abs(float(traces.mean() - exact.sum())) < 4 * float(traces.std()) / 200**0.5
    assert float(operators[0].trace().stderr) == pytest.approx(float(traces.std()), rel=0.35)


def test_head_is_refused_where_it_has_no_meaning():
    model, batch = load("mlp")
    for options in (
        {"form": "dense", "estimator": "hutchinson"},
        {"form": "diagonal"},
        {"form": "diagonal", "estimator": "empirical"},
    ):
        with pytest.raises(dynaxx.InputError, match="head='exact' belongs"):
            dynaxx.fisher(model, batch, head="exact", **options)


class TestDeflation:
    def test_exact_with_a_full_sketch(self):
        F = dynaxx.fisher(*load("mlp"))
        found = dynaxx.deflated(F, sketch=10_000, samples=2)
        torch.testing.assert_close(found.diagonal, F.diagonal(), rtol=1e-9, atol=1e-12)
        assert found.trace.exact
        assert float(found.trace) == pytest.approx(F.trace(), rel=1e-10)

    @pytest.mark.parametrize("form", ["implicit", "gram"])
    def test_unbiased_never_negative_and_honest(self, form):
        F = dynaxx.fisher(*load("mlp"), form=form)
        found = [dynaxx.deflated(F, sketch=4, samples=6, seed=seed) for seed in range(100)]
        diagonals = torch.stack([one.diagonal for one in found])
        assert (diagonals >= 0).all()
        error = diagonals.std(0) / 10
        assert ((diagonals.mean(0) - F.diagonal()).abs() <= 5 * error + 1e-12).all()
        traces = torch.tensor([float(one.trace) for one in found])
        reported = sum(one.trace.stderr**2 for one in found) ** 0.5 / 10
        assert reported == pytest.approx(float(traces.std()), rel=0.3)

    def test_refuses_what_it_cannot_read(self):
        model, batch = load("mlp")
        with pytest.raises(dynaxx.InputError, match="implicit or a Gram"):
            dynaxx.deflated(dynaxx.fisher(model, batch, form="diagonal"))
        with pytest.raises(dynaxx.InputError, match="samples=1"):
            dynaxx.deflated(dynaxx.fisher(model, batch), samples=1)


class TestAdvice:
    def test_options_are_options_of_fisher(self):
        model, batch = load("mlp")
        for goal in ("diagonal", "trace", "spectrum", "solve"):
            advice = dynaxx.advise(model, batch, goal=goal)
            for plan in (advice.best, *advice.others):
                if plan.options.get("samples", 1) <= 4:
                    dynaxx.fisher(model, batch, **plan.options)
            assert "passes" in str(advice)

    def test_two_classes_are_exact(self):
        model = torch.nn.Linear(5, 2)
        assert dynaxx.advise(model, torch.randn(2000, 5)).options["estimator"] == "exact"

    def test_many_classes_are_sampled(self):
        model = torch.nn.Linear(5, 1000)
        advice = dynaxx.advise(model, torch.randn(2000, 5))
        assert advice.options["estimator"] != "exact"
        assert advice.best.error <= 0.05

    def test_confident_models_are_not_given_labels(self):
        model = torch.nn.Linear(5, 50)
        with torch.no_grad():
            model.bias[0] = 12.0
        advice = dynaxx.advise(model, torch.randn(500, 5), tolerance=0.1)
        labels = [plan for plan in advice.others if plan.options["estimator"] == "monte_carlo"]
        assert advice.options["estimator"] == "hutchinson"
        assert min(plan.error for plan in labels) > advice.best.error

    def test_budget_and_memory(self):
        model, batch = load("mlp")
        assert dynaxx.advise(model, batch, budget=1.3).best.passes <= 1.3
        with pytest.raises(dynaxx.InputError, match="nothing reaches"):
            dynaxx.advise(model, batch, budget=0.1)
        with pytest.raises(dynaxx.InputError, match="'diagonal', 'trace', 'spectrum', 'solve'"):
            dynaxx.advise(model, batch, goal="everything")
