"""The oracles against each other and against closed forms: three routes to the same number, none of them dynaxx."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import oracles
from architectures import CASES, NAMES, load

KINDS = ("categorical", "bernoulli", "gaussian", "heteroscedastic", "poisson")


def dense(name):
    case, (model, batch) = CASES[name], load(name)
    rows = oracles.examples(model, batch, case.kind)
    return oracles.exact_fisher(rows, case.kind, case.variance)


@pytest.mark.parametrize("name", NAMES)
def test_cases_are_small_and_what_they_claim(name):
    model, batch = load(name)
    size = sum(value.numel() for value in oracles.parameters(model).values())
    assert 10 <= size <= 400
    assert 5 <= oracles.length(batch) <= 7
    assert all(value.dtype == torch.float64 for value in model.parameters())
    assert not model.training
    again, _ = CASES[name].build()
    for old, new in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_examples_do_not_interact(name):
    """The oracle runs one example at a time; that is only the model's own answer where examples are independent."""
    model, batch = load(name)
    together, _ = oracles.forward(model, batch)
    apart = torch.cat([oracles.forward(model, oracles.pick(batch, n))[0] for n in range(oracles.length(batch))])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "text_convolution"])
def test_fisher_is_the_curvature_of_the_divergence(name):
    # text_convolution is left out: torch stops the gradient of a padding row, the divergence does not know that
    case, (model, batch) = CASES[name], load(name)
    fisher = dense(name)
    direction = torch.randn(len(fisher), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction /= direction.norm()
    step = 1e-3
    both = [
        oracles.mean_divergence(model, batch, case.kind, sign * step * direction, case.variance) for sign in (1, -1)
    ]
    # the odd orders cancel in the mean of both signs; what is left is O(step^2)
    assert sum(both) / step**2 == pytest.approx(float(direction @ fisher @ direction), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_metric_is_minus_the_expected_second_derivative(kind):
    """For exponential families the curvature of KL(z || w) in w, at w = z, is I(z)."""
    z = torch.tensor([0.3, -0.4, 0.8, 0.1], dtype=torch.float64)
    curvature = torch.func.hessian(lambda w: oracles.divergence(kind, z, w, 0.3))(z)
    torch.testing.assert_close(curvature, oracles.metric(kind, z, 0.3), rtol=1e-10, atol=1e-12)


LOG_PROBABILITY = {
    "categorical": lambda z, y: -functional.cross_entropy(z, y),
    "bernoulli": lambda z, y: -functional.binary_cross_entropy_with_logits(z, y, reduction="sum"),
    "gaussian": lambda z, y: torch.distributions.Normal(z, math.sqrt(0.3)).log_prob(y).sum(),
    "heteroscedastic": lambda z, y: torch.distributions.Normal(z[:2], (z[2:] / 2).exp()).log_prob(y).sum(),
    "poisson": lambda z, y: torch.distributions.Poisson(z.exp()).log_prob(y).sum(),
}
OBSERVED = {
    "categorical": torch.tensor(2),
    "bernoulli": torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64),
    "gaussian": torch.tensor([1.0, 0.5, -0.3, 2.0], dtype=torch.float64),
    "heteroscedastic": torch.tensor([1.0, 0.5], dtype=torch.float64),
    "poisson": torch.tensor([1.0, 0.0, 3.0, 2.0], dtype=torch.float64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_the_gradient_of_the_log_probability(kind):
    z, y = torch.tensor([0.3, -0.4, 0.8, 0.1], dtype=torch.float64), OBSERVED[kind]
    torch.testing.assert_close(oracles.score(kind, z, y, 0.3), torch.func.grad(LOG_PROBABILITY[kind])(z, y))


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_metric_is_the_covariance_of_the_score(kind):
    z = torch.tensor([0.3, -0.4, 0.8], dtype=torch.float64)
    if kind == "categorical":
        outcomes = [(torch.tensor(c), z.softmax(0)[c]) for c in range(3)]
    else:
        binary = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
        outcomes = [(y, torch.where(y > 0, z.sigmoid(), 1 - z.sigmoid()).prod()) for y in binary]
    scores = [(oracles.score(kind, z, y), weight) for y, weight in outcomes]
    covariance = sum(weight * torch.outer(s, s) for s, weight in scores)
    torch.testing.assert_close(covariance, oracles.metric(kind, z), rtol=1e-12, atol=1e-14)


def test_hessian_of_a_linear_softmax_model_is_its_fisher():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    rows = oracles.examples(model, (x, y), "categorical")
    found = oracles.hessian(model, (x, y), functional.cross_entropy)
    assert oracles.distance(found, oracles.exact_fisher(rows, "categorical")) < 1e-12


def test_fisher_of_linear_regression_is_the_design_matrix():
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = oracles.examples(model, x, "gaussian")
    torch.testing.assert_close(oracles.exact_fisher(rows, "gaussian", 0.25), 4 * x.T @ x / 7)


def test_jacobians_agree_with_jacrev():
    model, (x, _) = load("mlp")
    weights = {name: value.detach() for name, value in model.named_parameters()}
    batched = torch.func.jacrev(lambda w: torch.func.functional_call(model, w, (x,)))(weights)
    wanted = torch.cat([batched[name].flatten(2) for name in weights], dim=2)
    found = torch.cat([row.jacobian for row in oracles.examples(model, x, "categorical")])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_kfac_factors_are_exact_for_one_example():
    model, (x, _) = load("mlp")
    batch = x[:1]
    full = oracles.exact_fisher(oracles.examples(model, batch, "categorical"), "categorical")
    where = oracles.offsets(model)
    for index in (0, 2):
        block = slice(where[f"{index}.weight"].start, where[f"{index}.bias"].stop)
        factors = oracles.kfac_factors(model, model.get_submodule(str(index)), batch, "categorical", "expand")
        assert oracles.distance(factors.dense(), full[block, block]) < 1e-12


def test_signs_average_to_the_fisher_with_the_variance_of_the_formula():
    """E = G G^T and Var of a diagonal entry = 2 F_ii^2 - 2 sum_k g_ik^4."""
    model, (x, _) = load("mlp")
    rows = oracles.examples(model, x[:3], "categorical")
    factor = torch.cat([row.jacobian[0].T @ oracles.symmetric_factor(row.outputs[0]) for row in rows], 1)
    mean, variance = oracles.enumerate_signs(factor)
    assert oracles.distance(mean / 3, oracles.exact_fisher(rows, "categorical")) < 1e-12
    wanted = 2 * (factor**2).sum(1) ** 2 - 2 * (factor**4).sum(1)
    torch.testing.assert_close(variance.diagonal(), wanted, rtol=1e-10, atol=1e-14)
