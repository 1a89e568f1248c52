"""Bounds are bounds: in Loewner order, in every form, for every likelihood, and the gap is what it says."""

import pytest
import torch

import dynaxx
from architectures import load

NAMES = ["mlp", "residual_batch_norm", "tied_language_model", "bernoulli", "poisson", "heteroscedastic"]
LOWER = [("eigen", 1), ("eigen", 2), ("cholesky", 1), ("cholesky", 2), ("nystrom", 1)]
UPPER = [("diagonal", 1), ("laplacian", 1), ("tail", 1), ("tail", 2)]


def likelihood(name):
    from architectures import CASES

    return CASES[name].likelihood


def smallest(matrix):
    return float(torch.linalg.eigvalsh(matrix)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "rank"), LOWER)
def test_lower_is_below(name, method, rank):
    model, batch = load(name)
    options = {"likelihood": likelihood(name), "form": "dense"}
    exact = dynaxx.fisher(model, batch, **options).matrix
    bound = dynaxx.fisher(model, batch, estimator="lower", method=method, rank=rank, **options).matrix
    assert smallest(exact - bound) > -1e-10 * float(exact.trace())
    assert smallest(bound) > -1e-10 * float(exact.trace())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "rank"), UPPER)
def test_upper_is_above(name, method, rank):
    model, batch = load(name)
    options = {"likelihood": likelihood(name), "form": "dense"}
    exact = dynaxx.fisher(model, batch, **options).matrix
    bound = dynaxx.fisher(model, batch, estimator="upper", method=method, rank=rank, **options).matrix
    assert smallest(bound - exact) > -1e-10 * float(bound.trace())


def test_laplacian_has_twice_the_trace_at_most():
    """tr 2 diag(p(1-p)) is exactly 2 tr I; through one linear layer on inputs of length one that survives."""
    model = torch.nn.Linear(4, 5, bias=False).double()
    x = torch.nn.functional.normalize(
        torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    exact = dynaxx.fisher(model, x, form="diagonal").trace()
    bound = dynaxx.fisher(model, x, form="diagonal", estimator="upper", method="laplacian").trace()
    assert float(bound) == pytest.approx(2 * exact, rel=1e-12)


@pytest.mark.parametrize("form", ["diagonal", "dense", "block", "gram", "implicit"])
def test_bracket_orders_diagonal_trace_and_quadratic_forms(form):
    model, batch = load("mlp")
    bracket = dynaxx.bracket(model, batch, form=form, upper="tail", upper_rank=2)
    low, middle, high = bracket.diagonal()
    assert (low <= middle + 1e-12).all()
    assert (middle <= high + 1e-12).all()
    a, b, c = bracket.trace()
    assert a < b < c
    for seed in range(3):
        v = torch.randn(len(low), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        a, b, c = bracket.quadratic(v)
        assert a <= b <= c
    assert "<=" in repr(bracket)


def test_gap_bounds_the_error_in_frobenius_norm():
    model, batch = load("mlp")
    bracket = dynaxx.bracket(model, batch, form="dense")
    exact = bracket.estimate.matrix
    assert float((bracket.upper.matrix - exact).norm()) <= bracket.gap
    assert float((exact - bracket.lower.matrix).norm()) <= bracket.gap
    tighter = dynaxx.bracket(model, batch, form="dense", lower="cholesky", rank=2, upper="tail", upper_rank=2)
    assert tighter.gap < bracket.gap


@pytest.mark.parametrize("name", ["mlp", "tied_language_model", "dict_batch", "residual_batch_norm"])
def test_error_bounds_hold_and_are_those_of_the_jacobians(name):
    """Against Jacobians by brute force; masked positions have none."""
    import oracles

    model, batch = load(name)
    bracket = dynaxx.bracket(model, batch, form="dense")
    found = bracket.error_bounds()
    exact = bracket.estimate.matrix
    assert float((exact - bracket.lower.matrix).norm()) <= found.lower
    assert float((bracket.upper.matrix - exact).norm()) <= found.upper
    rows = oracles.examples(model, batch, "categorical")
    lower = upper = 0.0
    for row in rows:
        for z, jacobian in zip(row.outputs, row.jacobian, strict=True):
            squares = z.softmax(-1).square().sort().values
            lower += float(jacobian.square().sum() * squares[1:-1].sum().sqrt())
            upper += float(jacobian.square().sum() * squares.sum())
    assert found.lower == pytest.approx(lower / len(rows), rel=1e-9)
    assert found.upper == pytest.approx(upper / len(rows), rel=1e-9)


def test_error_bounds_are_for_classes():
    model, batch = load("poisson")
    with pytest.raises(dynaxx.InputError, match=r"Bracket\.gap holds"):
        dynaxx.bracket(model, batch, likelihood=likelihood("poisson")).error_bounds()


def test_two_classes_are_exact_with_one_column():
    """C = 2: the metric has rank one, so the lower bound is the metric."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = dynaxx.fisher(model, x, form="dense").matrix
    for method in ("eigen", "cholesky", "nystrom"):
        bound = dynaxx.fisher(model, x, form="dense", estimator="lower", method=method).matrix
        assert float((bound - exact).norm()) < 1e-12 * float(exact.norm())
    spread = [
        float(dynaxx.fisher(model, x, form="dense", estimator="hutchinson", factor="cholesky", seed=s).trace())
        for s in range(5)
    ]
    assert max(spread) - min(spread) < 1e-12


def test_random_draws_of_a_bound_average_to_it():
    model, batch = load("mlp")
    for bound in ("lower", "upper"):
        wanted = dynaxx.fisher(
            model, batch, form="diagonal", estimator=bound, rank=2, method="cholesky" if bound == "lower" else "tail"
        )
        draws = torch.stack(
            [
                dynaxx.fisher(
                    model, batch, form="dense", estimator="hutchinson", factor=bound, rank=2,
                    method="cholesky" if bound == "lower" else "tail", seed=seed,
                ).diagonal()
                for seed in range(200)
            ]
        )  # fmt: skip
        error = draws.std(0) / 200**0.5
        assert ((draws.mean(0) - wanted.diagonal()).abs() <= 4.5 * error + 1e-12).all()


def test_what_is_refused():
    model, batch = load("mlp")
    with pytest.raises(dynaxx.InputError, match="approximates"):
        dynaxx.bracket(model, batch, form="kfac")
    with pytest.raises(dynaxx.InputError, match="rank= and method="):
        dynaxx.fisher(model, batch, rank=2)
    with pytest.raises(dynaxx.InputError, match="'eigen', 'cholesky', 'nystrom'"):
        dynaxx.fisher(model, batch, estimator="lower", method="power")
    with pytest.raises(dynaxx.InputError, match="mean zero"):
        dynaxx.fisher(model, batch, estimator="lower", group="batch")
