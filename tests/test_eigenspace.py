"""Projections, coordinates and overlaps against eigenvectors of brute-force matrices."""

import copy
import functools
from importlib import import_module

import pytest
import torch

import dynaxx
import oracles
from architectures import CASES, NAMES, load
from dynaxx.eigenspace import Eigenspace, eigenspace
from dynaxx.errors import InputError, SizeError
from test_untouched import Watch, prepared


@functools.cache
def brute(name):
    """Eigenvalues and eigenvectors of F, descending, from Jacobians by one backward pass each."""
    case, (model, batch) = CASES[name], load(name)
    F = oracles.exact_fisher(oracles.examples(model, batch, case.kind), case.kind, case.variance)
    values, vectors = torch.linalg.eigh(F)
    return values.flip(0), vectors.flip(1)


def clear(values, rank):
    """The k at which the eigenspace is well defined: l_k is clearly above l_(k+1)."""
    floor = 1e-9 * values[0]
    found = [k for k in range(1, rank + 1) if values[k - 1] > floor and (k == len(values) or
             values[k - 1] > 1.05 * values[k])]  # fmt: skip
    return found[:: max(1, len(found) // 4)] or found


def draw(size, *columns, seed=0):
    return torch.randn(size, *columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sides(name):
    """The same Fisher matrix through its rows and through its parameters."""
    case, (model, batch) = CASES[name], load(name)
    operators = dynaxx.fisher(model, batch, likelihood=case.likelihood, form=("gram", "dense"))
    return [Eigenspace(operator) for operator in operators]


@pytest.mark.parametrize("name", NAMES)
def test_projection_is_that_of_the_dense_eigenvectors(name):
    values, vectors = brute(name)
    d = draw(len(values))
    for space in sides(name):
        ks = clear(values, space.rank)
        assert ks
        for k in ks:
            found, wanted = space.project(d, k), vectors[:, :k] @ (vectors[:, :k].T @ d)
            assert float((found - wanted).abs().max()) < 1e-8, (space, k)
        shares = (vectors.T @ d).square() / (d @ d)
        assert float(space.shares(d).cumsum(0)[ks[-1] - 1]) == pytest.approx(float(shares[: ks[-1]].sum()), abs=1e-9)


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer_encoder", "tied_language_model", "gaussian"])
def test_it_projects(name):
    for space in sides(name):
        k = clear(space.spectrum.eigenvalues, space.rank)[-1]
        d = draw(space.layout.size, 2)
        once = space.project(d[:, 0], k)
        assert torch.allclose(space.project(once, k), once, atol=1e-9)
        coordinates = space.coordinates(d)
        assert coordinates.shape == (space.rank, 2)
        assert float(coordinates[:k, 0].square().sum()) == pytest.approx(float(once @ once), rel=1e-9)
        assert float(once @ (d[:, 0] - once)) == pytest.approx(0, abs=1e-9)
        by_name = space.layout.unravel(d[:, 0])
        assert torch.allclose(space.coordinates(by_name), coordinates[:, 0])
        assert float(space.project(d[:, 0], 0).norm()) == 0
        # each eigenvector lies in itself, with all of its length
        e = space.combine(torch.eye(k, dtype=torch.float64)[:, k - 1 :])[:, 0]
        assert float(space.shares(e)[k - 1]) == pytest.approx(1, abs=1e-9)


def test_a_direction_that_changes_no_prediction_lies_nowhere():
    """Adding a number to all logits: in the kernel of every softmax's Fisher matrix."""
    model, batch = load("mlp")
    space = eigenspace(model, batch)
    step = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    step[list(step)[-1]] += 1.0
    assert float(space.shares(step).sum()) < 1e-12


def checkpoints(name, scale=0.05):
    """A case, and the same model some way on, with the matrices of both."""
    case, (model, batch) = CASES[name], load(name)
    later = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in later.parameters():
            value.add_(scale * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    F = oracles.exact_fisher(oracles.examples(later, batch, case.kind), case.kind, case.variance)
    return case, model, later, batch, torch.linalg.eigh(F)[1].flip(1)


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual_batch_norm", "transformer_encoder", "tied_language_model"])
def test_overlap_is_that_of_the_dense_eigenvectors(name):
    case, model, later, batch, other = checkpoints(name)
    values, vectors = brute(name)
    forms = ("gram", "dense")
    left = [Eigenspace(dynaxx.fisher(model, batch, likelihood=case.likelihood, form=form)) for form in forms]
    right = [Eigenspace(dynaxx.fisher(later, batch, likelihood=case.likelihood, form=form)) for form in forms]
    k = clear(values, min(space.rank for space in [*left, *right]))[-1] // 2 or 1
    wanted = float((vectors[:, :k].T @ other[:, :k]).square().sum()) / k
    assert 0.05 < wanted < 0.9999
    for one in left:
        for two in right:
            assert one.overlap(two, k) == pytest.approx(wanted, abs=1e-6), (one, two)
        assert one.overlap(one, k) == pytest.approx(1, abs=1e-8)


def test_overlap_of_different_data_in_several_batches():
    """Rows are ordered by example whatever the batches, and the two sides need not have equally many."""
    model, (x, _) = load("mlp")
    parts = [x[:1], x[1:4], x[4:]]
    whole, cut = eigenspace(model, x), eigenspace(model, parts)
    few = eigenspace(model, x[:2])
    assert cut.overlap(whole, 5) == pytest.approx(1, abs=1e-9)
    assert cut.overlap(few, 3) == pytest.approx(whole.overlap(few, 3), abs=1e-9)
    assert few.overlap(cut, 3) == pytest.approx(whole.overlap(few, 3), abs=1e-9)
    assert whole.overlap(few, 3) < 0.99


def test_beyond_the_limit_it_is_sampled_and_says_so(monkeypatch):
    model, batch = load("cnn")
    exact = eigenspace(model, batch)
    assert exact.exact
    assert exact.spectrum.trace().exact
    monkeypatch.setattr(import_module("dynaxx.eigenspace"), "SIDE", 9)
    found = [eigenspace(model, batch, seed=seed) for seed in range(60)]
    assert not found[0].exact
    assert "sampled" in repr(found[0])
    assert found[0].rank <= 5  # one combination for each of 5 examples
    traces = torch.tensor([float(space.spectrum.trace()) for space in found], dtype=torch.float64)
    assert abs(float(traces.mean()) - exact.spectrum.trace()) < 4 * float(traces.std()) / 60**0.5
    # and the projection is one: it shortens
    d = draw(exact.layout.size)
    assert 0 < float(found[0].shares(d).sum()) < 1
    monkeypatch.setattr(import_module("dynaxx.eigenspace"), "SIDE", 4)
    with pytest.raises(SizeError, match="fewer examples"):
        eigenspace(model, batch)
    with pytest.raises(SizeError, match="fewer examples"):
        eigenspace(model, batch, estimator="monte_carlo")


def test_the_side_is_the_smaller_one():
    model, batch = load("mlp")  # 43 parameters; 2 columns of each of 6 examples
    assert "from 12 rows" in repr(eigenspace(model, batch))
    x = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Linear(5, 3).double()
    assert "from 18 parameters" in repr(eigenspace(model, x))
    assert eigenspace(model, x).rank == 12  # (C - 1) (I + 1)


def test_single_precision_has_the_floor_of_squared_gradients():
    model, (x, _) = CASES["mlp"].build()
    double = eigenspace(model, x)
    single = eigenspace(copy.deepcopy(model).float(), x.float())
    assert single.spectrum.floor < 1e-11 * float(single.values[0])
    keep = double.values > 1e-6 * double.values[0]
    assert torch.allclose(single.values[: len(double.values)][keep[: single.rank]], double.values[keep], rtol=1e-3)
    d = draw(double.layout.size)
    assert torch.allclose(single.project(d, 2), double.project(d, 2), atol=1e-4)


def test_the_model_is_untouched():
    model, batch = prepared("residual_batch_norm")
    with Watch(model):
        space = eigenspace(model, batch)
        d = draw(space.layout.size)
        space.project(d, 2)
        space.overlap(space, 2)


def test_bad_input():
    model, (x, _) = CASES["mlp"].build()
    space = eigenspace(model, x)
    d = draw(space.layout.size)
    for call, words in {
        (lambda: eigenspace(model, x, estimator="exakt")): "estimator='exakt'.*'auto', 'exact'",
        (lambda: eigenspace(model, x, likelihood="normal")): "likelihood='normal'",
        (lambda: eigenspace(model, iter([x]))): "read once",
        (lambda: eigenspace("model", x)): "expected a torch.nn.Module",
        (lambda: space.project(d, space.rank + 1)): f"between 0 and {space.rank}",
        (lambda: space.project(d, True)): "k=True",
        (lambda: space.project(d[1:], 2)): r"shape \(43,\)",
        (lambda: space.shares(torch.zeros_like(d))): "displacement is zero",
        (lambda: space.overlap(space, 0)): "between 1",
        (lambda: space.overlap(eigenspace(model, x, params=["0.weight"]), 1)): "different parameters",
        (lambda: space.coordinates({"0.weight": d})): "missing",
    }.items():
        with pytest.raises(InputError, match=words):
            call()
    with torch.no_grad():
        model[0].weight.add_(1e-3)
    with pytest.raises(InputError, match="changed since"):
        space.project(d, 1)
