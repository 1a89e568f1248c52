"""The metric and its square roots, against labels enumerated, signs enumerated, and 700-digit arithmetic."""

import numpy
import pytest
import torch

from dynaxx.errors import InputError, SizeError
from dynaxx.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Poisson
from likelihoods.cases import DIAGONAL, EVERY, INF, adversarial, draw, exact_metric, many, outer, sign_patterns

KINDS = Categorical.kinds


@pytest.mark.parametrize("outputs", [2, 3, 6])
def test_metric_matches_700_digit_arithmetic_entry_by_entry(outputs):
    z = adversarial(outputs)[:91]
    expected = torch.stack([exact_metric(row.tolist()) for row in z])
    # relative, with only what underflows float64 forgiven; exp of a logit of 700 costs 700 roundings
    torch.testing.assert_close(Categorical().metric(z), expected, rtol=1e-12, atol=1e-307)


def test_metric_is_the_covariance_of_the_score_over_enumerated_labels():
    z = draw(7, 5, scale=3.0)
    labels = torch.arange(5)[:, None].expand(5, 7)
    score = Categorical().score(z, labels)
    weights = Categorical().log_prob(z, labels).exp()
    torch.testing.assert_close(torch.einsum("yn,yni->ni", weights, score), torch.zeros_like(z), atol=1e-15, rtol=0)
    covariance = torch.einsum("yn,yni,ynj->nij", weights, score, score)
    torch.testing.assert_close(covariance, Categorical().metric(z), atol=1e-14, rtol=1e-13)


def test_bernoulli_metric_is_the_covariance_of_the_score_over_enumerated_labels():
    z = draw(6, 3, scale=2.0)
    labels = ((sign_patterns(3) + 1) / 2)[:, None].expand(8, 6, 3)
    score, weights = Bernoulli().score(z, labels), Bernoulli().log_prob(z, labels).exp()
    covariance = torch.einsum("yn,yni,ynj->nij", weights, score, score)
    torch.testing.assert_close(covariance, Bernoulli().metric(z), atol=1e-15, rtol=1e-13)


def test_poisson_metric_is_the_covariance_of_the_score_over_enumerated_counts():
    z = draw(5, 1)
    labels = torch.arange(150.0, dtype=torch.float64)[:, None, None].expand(150, 5, 1)
    score, weights = Poisson().score(z, labels), Poisson().log_prob(z, labels).exp()
    torch.testing.assert_close(weights.sum(0), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(torch.einsum("yn,yni,ynj->nij", weights, score, score), Poisson().metric(z))


def test_gaussian_metrics_are_covariances_of_the_score_under_quadrature():
    # Gauss-Hermite with 20 nodes is exact for the fourth moments that occur
    nodes, weights = (torch.from_numpy(x) for x in numpy.polynomial.hermite_e.hermegauss(20))
    weights = weights / weights.sum()
    z = draw(4, 2)
    mean, deviation = z[:, :1], (0.5 * z[:, 1:]).exp()
    score = HeteroscedasticGaussian().score(z, mean + deviation * nodes[:, None, None])
    covariance = torch.einsum("y,yni,ynj->nij", weights, score, score)
    torch.testing.assert_close(covariance, HeteroscedasticGaussian().metric(z), atol=1e-12, rtol=1e-12)
    fixed = Gaussian(variance=0.3)
    score = fixed.score(mean, mean + 0.3**0.5 * nodes[:, None, None])
    torch.testing.assert_close(torch.einsum("y,yni->ni", weights, score.square()), torch.full_like(mean, 1 / 0.3))


@pytest.mark.parametrize("likelihood", EVERY, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_columns_square_to_the_metric(likelihood, kind):
    z = draw(3, 5, 4, scale=2.0)
    columns = likelihood.columns(z, kind)
    assert columns.shape == (3, 5, 4, likelihood.noise_size(z, kind))
    torch.testing.assert_close(outer(columns), likelihood.metric(z), atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [2, 3, 6])
def test_columns_square_to_the_metric_where_it_is_tiny(kind, outputs):
    z = adversarial(outputs)
    trace = Categorical().trace(z).clamp_min(1e-320)[:, None, None]
    scaled = Categorical().columns(z, kind) / trace.sqrt()
    torch.testing.assert_close(outer(scaled), Categorical().metric(z) / trace, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [2, 3, 6])
def test_mean_over_all_sign_patterns_is_the_metric(kind, outputs):
    z = torch.cat([draw(5, outputs, scale=3.0), adversarial(outputs)[:40]])
    signs = sign_patterns(Categorical().noise_size(z, kind))
    u = Categorical().factor(z, signs[:, None], kind)
    assert u.shape == (len(signs), *z.shape)
    mean = torch.einsum("kni,knj->nij", u, u) / len(signs)
    torch.testing.assert_close(mean, Categorical().metric(z), atol=1e-12, rtol=0)


@pytest.mark.parametrize("likelihood", EVERY, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_factor_is_columns_times_noise(likelihood, kind):
    z = draw(3, 4, scale=2.0)
    xi = draw(2, 3, likelihood.noise_size(z, kind), seed=5)
    product = (likelihood.columns(z, kind) @ xi.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(likelihood.factor(z, xi, kind), product, atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_come_in_slices(kind):
    z = draw(2, 7)
    whole = Categorical().columns(z, kind)
    parts = [Categorical().columns(z, kind, 0, 3), Categorical().columns(z, kind, 3)]
    torch.testing.assert_close(torch.cat(parts, -1), whole, atol=0, rtol=0)
    with pytest.raises(InputError, match=r"start=3 to stop=9 do not lie within 0\.\."):
        Categorical().columns(z, kind, 3, 9)


@pytest.mark.parametrize("likelihood", EVERY, ids=str)
def test_apply_is_the_metric_times_a_vector(likelihood):
    z, v = draw(3, 4, scale=2.0), draw(5, 3, 4, seed=2)
    expected = torch.einsum("nij,knj->kni", likelihood.metric(z), v)
    torch.testing.assert_close(likelihood.apply(z, v), expected, atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(likelihood.apply(z, v[0, 0]), likelihood.apply(z, v[0, 0].expand(3, 4)), atol=0, rtol=0)
    torch.testing.assert_close(likelihood.product_at(z)(v), likelihood.apply(z, v), atol=0, rtol=0)


def test_apply_keeps_its_digits_next_to_a_corner():
    z, v = torch.tensor([60.0, 1.0, 0.0], dtype=torch.float64), torch.tensor([3.0, 2.0, -1.0], dtype=torch.float64)
    expected = exact_metric(z.tolist()) @ (v - v[0])
    torch.testing.assert_close(Categorical().apply(z, v), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", ["symmetric", "householder", "cholesky"])
def test_float32_factors_keep_their_digits_next_to_a_corner(kind):
    # the top entry loses all digits at this margin when it is not the sum of the others (neuromanifold.md 7.3)
    z = torch.tensor([[26.0, 1.0, 0.0, -1.0]])
    xi = draw(9, 1, Categorical().noise_size(z, kind))
    torch.testing.assert_close(
        Categorical().factor(z, xi.float(), kind).double(),
        Categorical().factor(z.double(), xi, kind),
        rtol=2e-5,
        atol=0,
    )


@pytest.mark.parametrize("likelihood", EVERY, ids=str)
def test_trace_and_bounds_hold_the_spectrum(likelihood):
    z = draw(50, 4, scale=3.0)
    eigenvalues = torch.linalg.eigvalsh(likelihood.metric(z))
    torch.testing.assert_close(likelihood.trace(z), eigenvalues.sum(-1))
    lower, upper = likelihood.spectrum_bounds(z)
    assert (lower <= eigenvalues[:, -1] * (1 + 1e-12)).all()
    assert (eigenvalues[:, -1] <= upper * (1 + 1e-12)).all()
    values, vectors = likelihood.top_eigenpair(z)
    torch.testing.assert_close(values, eigenvalues[:, -1], rtol=1e-12, atol=0)
    torch.testing.assert_close(likelihood.apply(z, vectors), values[:, None] * vectors, atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones_like(values))


def test_closed_form_bounds_are_within_a_factor_of_two_for_every_input():
    z = many(5, 10_000)
    trace = Categorical().trace(z)
    alive = trace > 0
    lower, upper = (bound[alive] / trace[alive] for bound in Categorical().spectrum_bounds(z))
    largest = Categorical().top_eigenpair(z)[0][alive] / trace[alive]
    assert (lower <= largest * (1 + 1e-12)).all()
    assert (largest <= upper * (1 + 1e-12)).all()
    assert (upper <= 2 * lower * (1 + 1e-12)).all()
    two = Categorical().spectrum_bounds(z[:, :2].nan_to_num(neginf=-50.0))
    torch.testing.assert_close(*two, rtol=1e-12, atol=1e-307)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("likelihood", EVERY, ids=str)
def test_half_precision_is_computed_in_float32_and_returned_as_given(likelihood, dtype):
    z = draw(3, 4).to(dtype)
    single, xi = z.float(), draw(3, 4, seed=3).to(dtype)
    calls = {
        "metric": lambda z: likelihood.metric(z),
        "trace": lambda z: likelihood.trace(z),
        "factor": lambda z: likelihood.factor(z, xi.to(z.dtype)),
        "apply": lambda z: likelihood.apply(z, xi.to(z.dtype)),
        "lower": lambda z: likelihood.lower(z),
        "upper": lambda z: likelihood.upper(z),
        "top": lambda z: likelihood.top_eigenpair(z)[0],
        "entropy": lambda z: likelihood.entropy(z),
        "divergence": lambda z: likelihood.divergence(z, z.roll(1, 0)),
    }
    for name, call in calls.items():
        assert call(z).dtype == dtype, name
        torch.testing.assert_close(call(z), call(single).to(dtype), msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_nan_where_classes_are_masked(kind):
    z = torch.tensor([[0.0, -INF, 2.0, -INF], [-INF, -INF, 1.0, -INF]], dtype=torch.float64)
    likelihood = Categorical()
    results = [
        likelihood.columns(z, kind),
        likelihood.apply(z, torch.ones(4)),
        likelihood.entropy(z),
        likelihood.trace(z),
    ]
    results += [likelihood.lower(z, 2, method) for method in likelihood.lower_methods]
    results += [likelihood.upper(z, method, 2) for method in likelihood.upper_methods]
    results += [*likelihood.top_eigenpair(z), *likelihood.spectrum_bounds(z), likelihood.score(z, torch.tensor([0, 2]))]
    assert all(torch.isfinite(result).all() for result in results)
    # class 1 and 3 do not exist: the rest is the two-class problem
    columns = likelihood.columns(z, kind)[0][[0, 2]]
    torch.testing.assert_close(outer(columns), likelihood.metric(z[0, [0, 2]]), atol=1e-15, rtol=1e-12)


def test_fifty_thousand_classes_take_chunks_but_no_square_matrix():
    z = draw(2, 50_000, scale=3.0).float()
    chunk = Categorical().columns(z, "householder", 100, 132)
    assert chunk.shape == (2, 50_000, 32)
    p = torch.softmax(z.double(), -1)
    # Householder columns have norm^2 p_c (1 - ...) and are orthogonal to the constant vector
    assert chunk.double().sum(-2).abs().max() < 1e-6
    assert (chunk.double().square().sum(-2) <= p[:, 1:].amax(-1, keepdim=True) * (1 + 1e-4)).all()
    with pytest.raises(SizeError, match="fewer at a time"):
        Categorical().columns(z.expand(400, 2, 50_000))
    with pytest.raises(SizeError, match=r"apply\(z, v\)"):
        Categorical().metric(z.expand(400, 2, 50_000))


@pytest.mark.parametrize("likelihood", DIAGONAL, ids=str)
def test_diagonal_closed_forms(likelihood):
    z = draw(3, 4)
    p = torch.sigmoid(z)
    expected = {
        "Bernoulli()": p - p**2,
        "Gaussian(variance=0.7)": torch.full_like(z, 1 / 0.7),
        "Gaussian(variance=[0.5, 1.0, 2.0, 4.0])": torch.tensor([2.0, 1.0, 0.5, 0.25]).double().expand(3, 4),
        "HeteroscedasticGaussian()": torch.cat([(-z[:, 2:]).exp(), torch.full((3, 2), 0.5).double()], -1),
        "Poisson()": z.exp(),
    }[str(likelihood)]
    torch.testing.assert_close(likelihood.metric(z), torch.diag_embed(expected))


def test_autocast_does_not_lower_the_precision():
    z = draw(3, 6).float()
    calls = [lambda: Categorical().lower(z, 3, "nystrom"), lambda: Categorical().factor(z, torch.ones(3, 5), "eigen")]
    for call in calls:
        expected = call()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(call(), expected, atol=0, rtol=0)


def test_functorch_transforms_go_through():
    z, y = draw(4, 5), torch.tensor([0, 1, 2, 4])
    gradient = torch.func.vmap(torch.func.grad(Categorical().log_prob))(z, y)
    torch.testing.assert_close(gradient, Categorical().score(z, y))
    xi = draw(4, 4, seed=2)
    for kind in ("householder", "cholesky"):
        mapped = torch.func.vmap(lambda z, xi, kind=kind: Categorical().factor(z, xi, kind))(z, xi)
        torch.testing.assert_close(mapped, Categorical().factor(z, xi, kind))


def test_factor_can_be_differentiated_for_a_trace_penalty():
    # E |L xi|^2 over all signs is tr I; its derivative must be that of 1 - |p|^2 (neuromanifold.md 9.6)
    z = draw(4).requires_grad_()
    for kind in ("symmetric", "householder", "cholesky"):
        signs = sign_patterns(Categorical().noise_size(z, kind))
        (sampled,) = torch.autograd.grad(Categorical().factor(z, signs, kind).square().sum(-1).mean(), z)
        (closed,) = torch.autograd.grad(1 - torch.softmax(z, -1).square().sum(), z)
        torch.testing.assert_close(sampled, closed, atol=1e-12, rtol=1e-10)
