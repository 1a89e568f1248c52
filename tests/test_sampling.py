"""Sampled Fishers: unbiased, with the variance of the formula, an honest error bar, and the same whatever the batching.

Statistical checks compare the mean over seeds 0..49 with the exact value, entry by entry, within 4 standard errors of
that mean. Seeds are fixed, so each check either holds or does not; nothing here can flicker.
"""

import math
from functools import cache, partial

import pytest
import torch
from torch import nn

import dynaxx
import oracles
from architectures import CASES, load

SAMPLED = ("hutchinson", "monte_carlo")
SEEDS = range(50)


@cache
def exact(name):
    case, (model, batch) = CASES[name], load(name)
    return oracles.exact_fisher(oracles.examples(model, batch, case.kind), case.kind, case.variance)


def sample(name, estimator, form, seed, **options):
    case, (model, batch) = CASES[name], load(name)
    return dynaxx.fisher(model, batch, likelihood=case.likelihood, estimator=estimator, form=form, seed=seed, **options)


@cache
def draws(name, estimator, form, samples=1):
    """One matrix (or diagonal) per seed, stacked."""
    operators = [sample(name, estimator, form, seed, samples=samples) for seed in SEEDS]
    return torch.stack([operator.diagonal() if form == "diagonal" else operator.to_dense() for operator in operators])


def deviations(values, wanted):
    """|mean - wanted| in standard errors of the mean, entry by entry; what has no spread must be right to rounding."""
    error = values.std(0) / math.sqrt(len(values))
    fixed = error < 1e-12
    torch.testing.assert_close(values.mean(0)[fixed], wanted[fixed], rtol=0, atol=1e-10)
    return ((values.mean(0) - wanted).abs() / error)[~fixed]


# ---------------------------------------------------------------------------------------------------------------------
# The mean


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("name", ["mlp", "bernoulli", "gaussian_variance", "heteroscedastic", "poisson"])
def test_diagonal_is_unbiased(name, estimator):
    assert deviations(draws(name, estimator, "diagonal"), exact(name).diagonal()).max() < 4


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("name", ["mlp", "dict_batch"])
def test_dense_is_unbiased(name, estimator):
    """Off the diagonal too: bilinear forms in random directions, each of which mixes all entries of the matrix."""
    u, v = torch.randn(2, len(exact(name)), 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forms = torch.einsum("pk,spq,qk->sk", u, draws(name, estimator, "dense"), v)
    assert deviations(forms, torch.einsum("pk,pq,qk->k", u, exact(name), v)).max() < 4


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("form", ["dense", "diagonal", "gram", "implicit"])
def test_trace_is_unbiased(form, estimator):
    traces = torch.tensor([float(sample("mlp", estimator, form, seed).trace()) for seed in SEEDS], dtype=torch.float64)
    assert deviations(traces[:, None], exact("mlp").trace()[None]).max() < 4


@pytest.mark.parametrize("factor", ["symmetric", "householder", "cholesky", "eigen"])
def test_every_factor_is_unbiased(factor):
    values = torch.stack([sample("mlp", "hutchinson", "diagonal", seed, factor=factor).diagonal() for seed in SEEDS])
    assert deviations(values, exact("mlp").diagonal()).max() < 4


@pytest.mark.parametrize("group", ["example", "batch", 2])
def test_every_grouping_is_unbiased(group):
    values = torch.stack([sample("mlp", "hutchinson", "diagonal", seed, group=group).diagonal() for seed in SEEDS])
    assert deviations(values, exact("mlp").diagonal()).max() < 4


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("name", ["segmentation", "gaussian_sequence"])
def test_sequences_are_unbiased(name, estimator):
    """Every position draws for itself: were one draw shared, the cross terms would not cancel."""
    assert deviations(draws(name, estimator, "diagonal"), exact(name).diagonal()).max() < 4


# ---------------------------------------------------------------------------------------------------------------------
# The spread


def test_spread_of_hutchinson_is_that_of_all_signs():
    """Enumerated over all signs of three examples; 200 seeds tell a standard deviation to about 5 %."""
    model, (x, _) = load("mlp")
    rows = oracles.examples(model, x[:3], "categorical")
    variance = torch.zeros(exact("mlp").shape[0], dtype=torch.float64)
    for row in rows:
        _, one = oracles.enumerate_signs(row.jacobian[0].T @ oracles.symmetric_factor(row.outputs[0]))
        variance += one.diagonal() / 9
    build = partial(dynaxx.fisher, model, x[:3], estimator="hutchinson", factor="symmetric", form="diagonal")
    values = torch.stack([build(seed=seed).diagonal() for seed in range(200)])
    ratio = values.std(0) / variance.sqrt()
    assert ratio.min() > 0.75
    assert ratio.max() < 1.25


@pytest.mark.parametrize("estimator", SAMPLED)
def test_four_samples_have_a_quarter_of_the_variance(estimator):
    one, four = (draws("mlp", estimator, "diagonal", samples).var(0).sum() for samples in (1, 4))
    # two sums of 43 correlated variances, 49 degrees of freedom each: the ratio is good to about 35 %
    assert 1 / 6.5 < four / one < 1 / 2.5


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("form", ["diagonal", "dense"])
def test_standard_error_of_the_trace_is_the_spread_over_seeds(form, estimator):
    """Different examples, four draws of each: the spread within examples tells the error. 200 seeds are good to 5 %."""
    torch.manual_seed(3)
    model, x = nn.Linear(3, 3).double(), torch.randn(24, 3, dtype=torch.float64)
    traces = [
        dynaxx.fisher(model, x, estimator=estimator, form=form, samples=4, seed=seed).trace() for seed in range(200)
    ]
    values = torch.tensor([trace.value for trace in traces], dtype=torch.float64)
    errors = torch.tensor([trace.stderr for trace in traces], dtype=torch.float64)
    assert not any(trace.exact for trace in traces)
    assert all(trace.samples > 0 for trace in traces)
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.25)


@pytest.mark.parametrize("estimator", SAMPLED)
def test_standard_error_with_one_draw_each_does_not_flatter(estimator):
    """One draw per example cannot tell sampling from differences between examples: the bar may be wide, or NaN."""
    torch.manual_seed(3)
    model, x = nn.Linear(3, 3).double(), torch.randn(24, 3, dtype=torch.float64)
    traces = [dynaxx.fisher(model, x, estimator=estimator, form="diagonal", seed=seed).trace() for seed in range(100)]
    values = torch.tensor([trace.value for trace in traces], dtype=torch.float64)
    errors = torch.tensor([trace.stderr for trace in traces], dtype=torch.float64)
    assert errors.isnan().all() or float(errors.square().mean().sqrt()) > 0.8 * float(values.std())
    assert not any(trace.exact for trace in traces)


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_what_is_not_sampled_is_exact(estimator):
    trace = sample("mlp", estimator, "diagonal", seed=0).trace()
    assert trace.exact
    assert trace.stderr == 0


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("form", ["diagonal", "dense", "block", "implicit", "gram"])
def test_batch_size_does_not_matter(form, estimator, samples):
    model, (x, _) = load("mlp")
    options = {"estimator": estimator, "form": form, "samples": samples, "seed": 11}
    whole = dynaxx.fisher(model, x, **options).to_dense()
    for sizes in ((4, 2), (1, 5), (1,) * 6):
        parts = dynaxx.fisher(model, list(x.split(list(sizes))), **options).to_dense()
        assert oracles.distance(parts, whole) < 1e-12


@pytest.mark.parametrize("estimator", SAMPLED)
def test_forms_see_the_same_draws(estimator):
    dense = sample("mlp", estimator, "dense", seed=2).to_dense()
    assert oracles.distance(sample("mlp", estimator, "diagonal", seed=2).diagonal(), dense.diagonal()) < 1e-10
    assert oracles.distance(sample("mlp", estimator, "implicit", seed=2).to_dense(), dense) < 1e-10
    assert oracles.distance(sample("mlp", estimator, "gram", seed=2).to_dense(), dense) < 1e-10


@pytest.mark.parametrize("estimator", SAMPLED)
def test_seeds_repeat_and_differ(estimator):
    first = sample("mlp", estimator, "diagonal", seed=5).diagonal()
    other = sample("mlp", estimator, "diagonal", seed=6).diagonal()
    torch.manual_seed(99)  # the user's random state has no say
    again = sample("mlp", estimator, "diagonal", seed=5).diagonal()
    assert torch.equal(first, again)
    assert oracles.distance(other, first) > 1e-3


@pytest.mark.parametrize("estimator", SAMPLED)
def test_implicit_products_use_one_draw(estimator):
    """F @ v runs the model anew each time, with the same draws: it is one matrix, not a fresh one per product."""
    operator = sample("mlp", estimator, "implicit", seed=4)
    v = torch.randn(operator.shape[0], 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(operator @ v, operator @ v)
    assert float(v[:, 0] @ (operator @ v[:, 1])) == pytest.approx(float(v[:, 1] @ (operator @ v[:, 0])), rel=1e-10)


@pytest.mark.parametrize("estimator", SAMPLED)
def test_draws_stay_with_their_examples(estimator):
    """The first four examples are drawn alike whether or not others follow: 6 F_6 - 4 F_4 is what the last two add."""
    model, (x, _) = load("mlp")
    options = {"estimator": estimator, "form": "dense", "seed": 8}
    six, four = (dynaxx.fisher(model, x[:n], **options).to_dense() for n in (6, 4))
    rest = torch.linalg.eigvalsh(6 * six - 4 * four)
    assert rest.min() > -1e-12
    assert (rest > 1e-9 * rest.max()).sum() <= 2


@pytest.mark.parametrize("estimator", SAMPLED)
def test_global_random_state_is_left_alone(estimator):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    sample("mlp", estimator, "diagonal", seed=5)
    assert torch.equal(torch.get_rng_state(), before)
