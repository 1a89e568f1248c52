"""Advice between plain probes and deflation: effective rank and remainders against exact ones, errors against draws."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

import dynaxx
from architectures import load
from dynaxx.assembly.concentration import Concentration
from dynaxx.facts import _Pieces
from dynaxx.model.data import read_batch


def few(classes=120, count=4):
    """Inputs and features that hardly differ, and outputs dominated by a few classes: participation ratio near 11."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, classes)).double()
    with torch.no_grad():
        model[2].bias.copy_(torch.linspace(4, -6, classes))
    return model, (torch.randn(1, 12) + 0.05 * torch.randn(count, 12)).double()


def many(classes=120, count=4):
    """Random inputs and outputs: participation ratio near 210 with 4 examples, 650 with 200."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, classes)).double()
    return model, torch.randn(count, 40).double()


def exact_ratio(model, x):
    F = dynaxx.fisher(model, x)
    return float(F.trace()) ** 2 / float(dynaxx.fisher(model, x, form="gram").frobenius()) ** 2


# ---------------------------------------------------------------------------------------------------------------------
# What it measures


@pytest.mark.parametrize("make", [few, many])
@pytest.mark.parametrize(("classes", "count"), [(120, 4), (10, 150)])
def test_participation_ratio_is_within_its_error(make, classes, count):
    """All examples are looked at, or 48 of 150."""
    model, x = make(classes, count)
    found = dynaxx.advise(model, list(x.split(40)), goal="trace").facts.participation_ratio
    assert abs(found - exact_ratio(model, x)) < 3 * found.stderr
    assert found.stderr < 0.25 * found


@pytest.mark.parametrize("name", ["tied_language_model", "residual_batch_norm"])
def test_participation_ratio_of_other_architectures(name):
    model, batch = load(name)
    found = dynaxx.advise(model, batch, goal="trace").facts.participation_ratio
    assert abs(found - exact_ratio(model, batch)) < 4 * max(found.stderr, 0.02 * found)


def draws(roots, samples, generator):
    """Rows roots_n xi of every example, and whose they are."""
    signs = torch.randn(len(roots), samples, roots.shape[2], generator=generator, dtype=torch.float64).sign()
    G = torch.einsum("npk,nsk->nsp", roots, signs).flatten(0, 1)
    return G @ G.T, torch.arange(len(roots)).repeat_interleave(samples)


def test_moments_are_unbiased():
    """Six examples with columns of their own, 3 draws each: within-example parts and both moments, over 800 seeds; the
    ratio itself, over its parts' means."""
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(6, 30, 4, generator=generator, dtype=torch.float64) * torch.arange(1.0, 7.0)[:, None, None]
    parts = torch.einsum("npk,nqk->npq", roots, roots)
    F = parts.mean(0)
    trace, square = float(F.trace()), float(F.square().sum())
    own = float(parts.square().sum((1, 2)).mean())
    traces = float(parts.diagonal(dim1=1, dim2=2).sum(1).square().mean())
    found = []
    for _ in range(800):
        one = Concentration(*draws(roots, 3, generator), 6)
        whole = one.products.diagonal()
        weights = (one.examples[:, None] != one.examples).double() * (5 / 6) / (6 * 5 * 9)
        weights += ((one.examples[:, None] == one.examples) & ~torch.eye(18, dtype=torch.bool)).double() / 6 / (6 * 6)
        top, bottom = float(whole @ weights @ whole), float((weights * one.products.square()).sum())
        assert float(one.participation_ratio()) == pytest.approx(top / bottom, rel=1e-10)
        found.append((one.trace(), top, bottom, one.within() * top, one.unevenness() * top))
    values = torch.tensor(found, dtype=torch.float64)
    error = values.std(0) / math.sqrt(len(values))
    wanted = torch.tensor([trace, trace**2, square, own, traces], dtype=torch.float64)
    assert ((values.mean(0) - wanted).abs() < 3.5 * error).all()
    assert (error < 0.05 * wanted).all()


@pytest.mark.parametrize("make", [few, many])
@pytest.mark.parametrize("sketch", [4, 8, 16])
def test_remainder_is_what_deflation_leaves(make, sketch):
    """Brute force on the exact Gram matrix, averaged over 20 sketches. The pilot knows 64 columns of 476."""
    model, x = make()
    K = dynaxx.fisher(model, x, form="gram").matrix
    left = []
    for seed in range(20):
        omega = torch.randn(len(K), sketch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sign()
        Q = torch.linalg.qr(K @ omega).Q
        rest = K - Q @ (Q.T @ K)
        rest = rest - (rest @ Q) @ Q.T
        left.append([float(rest.trace() / K.trace()), float(rest.norm() / K.trace())])
    trace, norm = torch.tensor(left).mean(0).tolist()
    found = dynaxx.advise(model, x, goal="trace").facts.remainders[sketch]
    assert found[0] == pytest.approx(trace, rel=0.15)
    assert found[1] == pytest.approx(norm, rel=0.5)


# ---------------------------------------------------------------------------------------------------------------------
# What it predicts and advises


def drawn(model, x, F, plan, goal, seed):
    if plan.then is None:
        diagonal = dynaxx.fisher(model, x, seed=seed, **(plan.options | {"form": "diagonal"})).diagonal()
        return diagonal if goal == "diagonal" else diagonal.sum()
    function, options = plan.then
    if function == "dynaxx.deflated":
        found = dynaxx.deflated(F, seed=seed, **options)
        return found.diagonal if goal == "diagonal" else torch.tensor(float(found.trace), dtype=torch.float64)
    assert function == "dynaxx.linalg.hutch_plus_plus"
    return torch.tensor(float(dynaxx.linalg.hutch_plus_plus(F, seed=seed, **options)), dtype=torch.float64)


@pytest.mark.parametrize("make", [few, many])
def test_predicted_errors_of_traces_are_those_of_draws(make):
    """Each plan is drawn 40 times, which gives its error an interval (chi-squared, 99 %). Predictions come from 128
    sampled gradients and are allowed a factor of 1.35 beyond it; of labels only an upper bound is predicted."""
    model, x = make()
    F, truth = dynaxx.fisher(model, x), dynaxx.fisher(model, x).trace()
    advice = dynaxx.advise(model, x, goal="trace")
    looked = set()
    for plan in (advice.best, *advice.others):
        if plan.error == 0 or plan.passes > 23 or plan.options["estimator"] == "monte_carlo":
            continue
        errors = torch.stack([drawn(model, x, F, plan, "trace", seed) for seed in range(40)]) / float(truth) - 1
        total = float(errors.square().sum())
        low, high = (math.sqrt(total / float(stats.chi2.ppf(q, 40))) for q in (0.995, 0.005))
        assert low / 1.35 < plan.error < high * 1.35, plan
        looked.add(plan.then[0] if plan.then else plan.options.get("group", "example"))
    assert looked == {"example", "batch", "dynaxx.deflated", "dynaxx.linalg.hutch_plus_plus"}


@pytest.mark.parametrize("make", [few, many])
def test_predicted_errors_of_diagonals_are_those_of_draws(make):
    """sum_i stderr_i / sum_i F_ii over 30 draws, which is good to some 5 %. Signs have the head in closed form besides,
    which the prediction leaves out: it may be up to twice too large, and not too small."""
    model, x = make()
    F = dynaxx.fisher(model, x)
    truth = F.diagonal()
    advice = dynaxx.advise(model, x)
    kinds = set()
    for plan in (advice.best, *advice.others):
        if plan.error == 0 or plan.passes > 23 or plan.options["estimator"] == "monte_carlo":
            continue
        errors = torch.stack([drawn(model, x, F, plan, "diagonal", seed) for seed in range(30)]) - truth
        measured = float(errors.square().mean(0).sqrt().sum() / truth.sum())
        assert 0.8 < plan.error / measured < (1.35 if plan.then else 2), plan
        kinds.add(plan.then is None)
    assert kinds == {True, False}


def test_the_effective_rank_decides_between_deflation_and_plain_probes():
    concentrated = dynaxx.advise(*few(), goal="trace", tolerance=0.03)
    flat = dynaxx.advise(*many(), goal="trace", tolerance=0.03)
    assert concentrated.best.then is not None
    assert concentrated.best.then[0] == "dynaxx.deflated"
    assert flat.best.then is None
    assert flat.options["estimator"] == "hutchinson"
    # the same model with many examples: squares per example average out, whatever the rank
    assert dynaxx.advise(*few(30, 200), goal="trace", tolerance=0.03).best.then is None


def test_deflation_of_the_diagonal_is_advised_where_columns_are_many():
    """400 classes: the exact diagonal takes 267 passes, a sketch of 32 columns a third of that."""
    best = dynaxx.advise(*few(400), tolerance=0.07).best
    assert best.then == ("dynaxx.deflated", {"sketch": 32, "samples": 32})
    assert "dynaxx.deflated(F, sketch=32, samples=32)" in str(best)
    assert dynaxx.advise(*many(400), tolerance=0.07).best.error == 0


def test_one_example_two_classes_and_no_gradient():
    lone = dynaxx.advise(*many(5, 1), goal="trace").facts.participation_ratio
    assert lone > 0
    assert math.isnan(lone.stderr)
    two = dynaxx.advise(*many(2, 6), goal="trace").facts.participation_ratio
    assert float(two) == pytest.approx(exact_ratio(*many(2, 6)), rel=1e-6)  # one column: signs do not matter
    model, x = many(3, 6)
    for parameter in model.parameters():
        parameter.data.zero_()
    model[2].bias.data[0] = 1e4  # saturated: the metric is zero
    none = dynaxx.advise(model, x, goal="trace")
    assert math.isnan(none.facts.participation_ratio)
    assert none.facts.remainders == {}
    assert dynaxx.advise(*many(), goal="spectrum").facts.participation_ratio is None


@pytest.mark.parametrize("sizes", [[1], [3], [1000], [7] * 40, [2, 300, 2, 5]])
def test_pieces_are_spread_over_the_data(sizes):
    pieces, start = _Pieces(), 0
    for number, size in enumerate(sizes):
        pieces.offer(read_batch(torch.arange(float(start), start + size)[:, None], torch.device("cpu"), number, start))
        start += size
    found = torch.cat([piece.args[0][:, 0] for piece in pieces])
    assert len(found.unique()) == len(found) <= 64
    assert len(found) >= min(sum(sizes), 14)
    if sum(sizes) > 64:
        gaps = torch.cat([found, torch.tensor([float(start)])]).diff()
        assert gaps.max() < 0.3 * start
