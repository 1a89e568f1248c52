"""The measured standard error of a sampled diagonal: right on average, covering, zero where nothing is sampled."""

import math

import pytest
import torch
from torch import nn

import dynaxx
from architectures import load
from dynaxx.assembly.spread import _blocks
from dynaxx.model.data import read_batch


def network(classes=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, classes)).double()
    return model, torch.randn(48, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


OPTIONS = [
    {"estimator": "hutchinson", "samples": 2},
    {"estimator": "hutchinson", "samples": 5, "factor": "cholesky"},
    {"estimator": "hutchinson", "samples": 4, "probes": "hadamard"},
    {"estimator": "hutchinson", "samples": 3, "group": 5},
    {"estimator": "hutchinson", "samples": 8, "group": "batch"},
    {"estimator": "monte_carlo", "samples": 2},
    {"estimator": "monte_carlo", "samples": 8, "group": "batch"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mean_square_is_the_variance_of_the_formula(options):
    """The square is an unbiased estimate of the variance. 20 seeds of 18 degrees of freedom or more, and 40 of 7 for a
    batch, tell the root of its mean to about 5 %; the median over dependent entries is held to 10 %."""
    model, x = network()
    predicted = dynaxx.predicted_error(model, x, **options)
    squares, seeds = 0.0, 40 if options.get("group") == "batch" else 20
    for seed in range(seeds):
        F = dynaxx.fisher(model, x, form="diagonal", seed=seed, **options)
        squares = squares + F.diagonal_stderr().square() / seeds
    assert float((squares.sqrt() / predicted.diagonal_stderr).median()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("estimator", ["hutchinson", "monte_carlo"])
def test_intervals_cover(estimator):
    """Two standard errors hold the exact entry in 95 % of normal draws. What is drawn is a mean of 4 x 192 squares, not
    quite symmetric: between 90 and 98 % over 30 seeds and 102 entries that go together."""
    model, _ = network()
    x = torch.randn(192, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = dynaxx.fisher(model, x, form="diagonal").diagonal()
    inside = []
    for seed in range(30):
        F = dynaxx.fisher(model, list(x.split(96)), form="diagonal", estimator=estimator, samples=4, seed=seed)
        inside.append((F.diagonal() - exact).abs() <= 2 * F.diagonal_stderr())
    assert 0.90 < float(torch.stack(inside).double().mean()) < 0.98


@pytest.mark.parametrize("name", ["mlp", "tied_language_model", "dict_batch"])
def test_closed_head_has_no_error_and_the_rest_has_its_own(name):
    """Against the spread over 120 seeds, 6.5 % each; tied rows, of which part is exact, included."""
    model, batch = load(name)
    options = {"form": "diagonal", "estimator": "hutchinson", "samples": 4, "head": "exact"}
    operators = [dynaxx.fisher(model, batch, seed=seed, **options) for seed in range(120)]
    spread = torch.stack([operator.diagonal() for operator in operators]).std(0)
    measured = torch.stack([operator.diagonal_stderr() for operator in operators[:30]]).square().mean(0).sqrt()
    fixed = spread < 1e-12
    assert fixed.any()
    assert measured[fixed].max() < 1e-12
    live = spread > 1e-3 * spread.max()
    assert float((measured / spread)[live].median()) == pytest.approx(1, abs=0.12)


def test_batches_and_asking_twice_change_nothing():
    """The error is of the draws, which are keyed by example; how blocks are cut moves it by its own error only."""
    model, x = network()
    options = {"form": "diagonal", "estimator": "hutchinson", "samples": 16}
    whole = dynaxx.fisher(model, x, **options)
    parts = dynaxx.fisher(model, list(x.split(11)), **options)
    assert torch.equal(whole.diagonal_stderr(), whole.diagonal_stderr())
    ratio = parts.diagonal_stderr() / whole.diagonal_stderr()
    assert float(ratio.median()) == pytest.approx(1, abs=0.15)
    whole.diagonal_stderr().zero_()  # a copy
    assert whole.diagonal_stderr().min() > 0


def test_nothing_sampled_nothing_wrong():
    model, x = network()
    y = torch.zeros(48, dtype=torch.int64)
    for estimator in ("exact", "empirical", "lower", "upper"):
        F = dynaxx.fisher(model, (x, y), form="diagonal", estimator=estimator)
        assert F.diagonal_stderr().abs().max() == 0
    one_column = dynaxx.fisher(*network(2), form="diagonal", estimator="hutchinson", factor="cholesky", samples=3)
    assert one_column.diagonal_stderr().max() < 1e-12


def test_what_cannot_be_measured_says_why(tmp_path):
    model, x = network()
    options = {"form": "diagonal", "estimator": "hutchinson"}
    with pytest.raises(dynaxx.InputError, match=r"samples=2\) or more"):
        dynaxx.fisher(model, x, **options).diagonal_stderr()
    once = dynaxx.fisher(model, iter(x.split(16)), samples=2, **options)
    with pytest.raises(dynaxx.InputError, match="read once"):
        once.diagonal_stderr()
    F = dynaxx.fisher(model, x, samples=2, **options)
    with pytest.raises(dynaxx.InputError, match=r"before F\.save"):
        dynaxx.load(F.save(tmp_path / "F.safetensors")).diagonal_stderr()
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(dynaxx.InputError, match="have changed since"):
        F.diagonal_stderr()


@pytest.mark.parametrize(("count", "group", "number"), [(48, 1, 5), (7, 1, 32), (1, 1, 4), (23, 5, 3), (6, 0, 8)])
def test_blocks_hold_every_example_once_and_no_group_in_two(count, group, number):
    batch = read_batch(torch.arange(float(count))[:, None], torch.device("cpu"), start=100)
    blocks = list(_blocks(batch, group, number))
    assert torch.equal(torch.cat([block.args[0] for block in blocks]), batch.args[0])
    assert [block.start for block in blocks] == [100 + int(block.args[0][0]) for block in blocks]
    assert len(blocks) <= number
    size = group or count
    assert all((block.start - 100) % size == 0 for block in blocks)
    assert all(block.count >= min(2, count) for block in blocks)
    if group == 1 and count >= 2 * number:
        assert len(blocks) == number
    assert math.isclose(sum(block.count for block in blocks), count)


def test_a_measured_error_is_saved_with_the_diagonal(tmp_path):
    model, x = nn.Linear(3, 4), torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    F = dynaxx.fisher(model, x, form="diagonal", estimator="hutchinson", samples=3)
    measured = F.diagonal_stderr()
    assert torch.equal(dynaxx.load(F.save(tmp_path / "asked.safetensors")).diagonal_stderr(), measured)
