"""Log-probabilities, scores, samples, divergences and entropies, against scipy, autograd and enumeration."""

import mpmath
import numpy
import pytest
import scipy.special
import scipy.stats
import torch

from dynaxx.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Poisson
from dynaxx.likelihoods.poisson import gamma_inverse
from dynaxx.likelihoods.simplex import exponential_excess
from likelihoods.cases import EVERY, INF, adversarial, draw, exact_probabilities


def labels_for(likelihood, z, seed=0):
    return likelihood.sample(z, torch.Generator().manual_seed(seed))


def test_log_prob_agrees_with_scipy():
    z = draw(6, 4)
    n, p = z.numpy(), torch.sigmoid(z).numpy()
    y = labels_for(Poisson(), z)
    torch.testing.assert_close(Poisson().log_prob(z, y).numpy(), scipy.stats.poisson.logpmf(y, z.exp()).sum(-1))
    y = labels_for(Bernoulli(), z)
    torch.testing.assert_close(Bernoulli().log_prob(z, y).numpy(), scipy.stats.bernoulli.logpmf(y, p).sum(-1))
    y = draw(6, 4, seed=3)
    expected = scipy.stats.norm.logpdf(y, n, 0.7**0.5).sum(-1)
    torch.testing.assert_close(Gaussian(variance=0.7).log_prob(z, y).numpy(), expected)
    expected = scipy.stats.norm.logpdf(y[:, :2], n[:, :2], (0.5 * z[:, 2:]).exp()).sum(-1)
    torch.testing.assert_close(HeteroscedasticGaussian().log_prob(z, y[:, :2]).numpy(), expected)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    expected = -torch.nn.functional.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(Categorical().log_prob(z, y), expected)


@pytest.mark.parametrize("likelihood", EVERY, ids=str)
def test_score_is_the_derivative_of_log_prob(likelihood):
    z = draw(3, 5, 4).requires_grad_()
    y = labels_for(likelihood, z.detach())
    (expected,) = torch.autograd.grad(likelihood.log_prob(z, y).sum(), z)
    torch.testing.assert_close(likelihood.score(z.detach(), y), expected, atol=1e-13, rtol=1e-12)


def test_score_and_log_prob_keep_their_digits_for_a_certain_label():
    z = torch.tensor([50.0, 1.0, 0.0], dtype=torch.float64)
    with mpmath.workdps(60):
        p = exact_probabilities(z.tolist(), 60)
        expected, log_p = [float(1 - p[0]), float(-p[1]), float(-p[2])], float(mpmath.log(p[0]))
    assert Categorical().score(z, torch.tensor(0)).tolist() == pytest.approx(expected, rel=1e-13)
    assert Categorical().log_prob(z, torch.tensor(0)).item() == pytest.approx(log_p, rel=1e-13)
    assert Bernoulli().score(torch.tensor([50.0]).double(), torch.tensor([1])).item() == pytest.approx(
        float(1 / (1 + mpmath.exp(50))), rel=1e-13
    )


def test_derivative_with_masked_classes_is_finite():
    z = torch.tensor([[1.0, -INF, -INF], [0.5, 0.2, -INF]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Categorical().log_prob(z, torch.tensor([0, 1])).sum(), z)
    torch.testing.assert_close(gradient, Categorical().score(z.detach(), torch.tensor([0, 1])))


def test_certain_outputs_give_certain_log_probs():
    assert Bernoulli().log_prob(torch.tensor([-INF, INF]), torch.tensor([0, 1])).item() == 0
    assert Bernoulli().log_prob(torch.tensor([-INF]), torch.tensor([1])).item() == -INF
    assert Poisson().log_prob(torch.tensor([-INF]), torch.tensor([0])).item() == 0
    assert Categorical().log_prob(torch.tensor([0.0, -INF]), torch.tensor(1)).item() == -INF


def test_labels_carry_extra_leading_axes_and_one_unit_needs_no_axis():
    z = draw(3, 4)
    y = torch.tensor([[0, 1, 2], [3, 3, 0]])
    torch.testing.assert_close(Categorical().score(z, y)[1], Categorical().score(z, y[1]))
    for likelihood, outputs in ((Bernoulli(), 1), (Gaussian(), 1), (Poisson(), 1), (HeteroscedasticGaussian(), 2)):
        z, y = draw(5, outputs), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
        torch.testing.assert_close(likelihood.log_prob(z, y), likelihood.log_prob(z, y[:, None]))
        assert likelihood.score(z, y).shape == (5, outputs)


# Samples


def test_categorical_quantile_inverts_the_distribution_function():
    z = torch.tensor([-INF, 1.0, -INF, 0.0, -INF], dtype=torch.float64)
    first = float(torch.sigmoid(torch.tensor(1.0, dtype=torch.float64)))
    u = torch.tensor([2.0**-54, first - 1e-12, first + 1e-12, 1 - 2.0**-53], dtype=torch.float64)
    assert Categorical().quantile(z, u).tolist() == [1, 1, 3, 3]
    z, u = draw(3, 5, 6), torch.rand(7, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = Categorical().quantile(z, u)
    cumulative = torch.softmax(z, -1).cumsum(-1)
    assert (y == (cumulative < u[..., None]).sum(-1)).all()
    assert y.dtype == torch.int64


def test_last_class_is_reachable_but_never_passed_in_float32_with_many_classes():
    z = torch.zeros(50_000)
    u = torch.tensor([1 - 2.0**-53, 0.500001], dtype=torch.float64)
    assert Categorical().quantile(z, u).tolist() == [49_999, 25_000]


def test_samples_have_the_right_frequencies():
    # 20,000 draws; a chi-square test at level 1e-4 with this seed
    z = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0], dtype=torch.float64)
    y = labels_for(Categorical(), z.expand(20_000, 5), seed=11)
    counts = torch.bincount(y, minlength=5)
    assert scipy.stats.chisquare(counts, 20_000 * torch.softmax(z, -1)).pvalue > 1e-4
    y = labels_for(Poisson(), torch.full((20_000, 1), 0.7).double(), seed=12)
    counts = torch.bincount(y.long().flatten().clamp_max(7), minlength=8)
    p = scipy.stats.poisson.pmf(range(7), 2.718281828459045**0.7)
    assert scipy.stats.chisquare(counts, 20_000 * numpy.append(p, 1 - p.sum())).pvalue > 1e-4
    y = labels_for(Bernoulli(), torch.full((20_000, 1), -1.0), seed=13)
    assert scipy.stats.binomtest(int(y.sum()), 20_000, 0.2689414213699951).pvalue > 1e-4
    y = labels_for(Gaussian(variance=4.0), torch.full((20_000, 1), 3.0).double(), seed=14)
    assert scipy.stats.kstest(y.flatten(), "norm", (3.0, 2.0)).pvalue > 1e-4
    z = torch.tensor([3.0, 1.0], dtype=torch.float64).expand(20_000, 2)
    y = labels_for(HeteroscedasticGaussian(), z, seed=15)
    assert scipy.stats.kstest(y.flatten(), "norm", (3.0, 2.718281828459045**0.5)).pvalue > 1e-4


def test_poisson_quantile_is_the_exact_integer():
    rates = torch.tensor([1e-3, 0.1, 1.0, 5.0, 63.0, 1e3, 9e4, 1.1e5, 1e6], dtype=torch.float64)
    u = torch.tensor([2.0**-54, 1e-9, 0.01, 0.3, 0.5, 0.9, 0.999, 1 - 1e-9], dtype=torch.float64)
    z = rates.log()
    got = Poisson().quantile(z.expand(8, 9), u[:, None].expand(8, 9))
    assert got.tolist() == scipy.stats.poisson.ppf(u[:, None], z.exp()).tolist()
    assert Poisson().quantile(torch.tensor([-INF]), torch.tensor([1 - 2.0**-53], dtype=torch.float64)).item() == 0


def test_poisson_quantile_at_a_rate_where_gammaincc_has_lost_the_upper_tail():
    # scipy's ppf is off by one here; P(Y > k) = P(Y = k+1) (1 + r/(k+2) + r^2/((k+2)(k+3)) + ...) is summed instead
    u, z = torch.tensor([1 - 1e-9], dtype=torch.float64), torch.tensor([1e9], dtype=torch.float64).log()
    rate = z.exp().item()

    def tail(k):
        with mpmath.workdps(40):
            first = mpmath.exp((k + 1) * mpmath.log(rate) - rate - mpmath.loggamma(k + 2))
        return float(first) * (1 + (rate / (k + 2 + numpy.arange(400_000.0))).cumprod().sum())

    k = int(Poisson().quantile(z, u))
    assert tail(k) <= 1 - u.item() < tail(k - 1)


def test_gamma_inverse_inverts_the_regularised_gamma_function():
    u = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
    x = gamma_inverse(torch.full_like(u, 1e4), u)
    # the density of x is 0.004, so an error of 4e-6 in it, that of a wrong third term, would show as 1.6e-8
    torch.testing.assert_close(torch.from_numpy(scipy.special.gammaincc(x.numpy(), 1e4)), u, atol=1e-9, rtol=0)


def test_poisson_quantile_has_no_seam_where_the_method_changes():
    u = torch.linspace(1e-6, 1 - 1e-6, 501, dtype=torch.float64)[:, None]
    z = torch.tensor([99_999.0, 100_001.0], dtype=torch.float64).log().expand(501, 2)
    expected = scipy.stats.poisson.ppf(u, z.exp())
    assert (Poisson().quantile(z, u.expand(501, 2)).numpy() == expected).all()


@pytest.mark.parametrize("likelihood", EVERY, ids=str)
def test_samples_follow_the_generator_and_leave_the_global_one_alone(likelihood):
    z = draw(3, 4).to(torch.bfloat16)
    state = torch.get_rng_state()
    first, second = labels_for(likelihood, z, 3), labels_for(likelihood, z, 3)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == likelihood.uniform_shape(z)
    assert first.dtype == (torch.int64 if isinstance(likelihood, Categorical) else torch.float32)
    likelihood.check(z, first)


# Divergence and entropy


@pytest.mark.parametrize("likelihood", EVERY, ids=str)
@pytest.mark.parametrize("epsilon", [1e-2, 1e-4, 1e-7])
def test_divergence_is_half_the_squared_length_of_a_small_step(likelihood, epsilon):
    z, d = draw(20, 4), draw(20, 4, seed=8)
    length = 0.5 * epsilon**2 * (d * likelihood.apply(z, d)).sum(-1)
    # third order is epsilon; the step itself rounds to eps / epsilon
    tolerance = 3 * epsilon + 1e-8
    torch.testing.assert_close(
        likelihood.divergence(z, z + epsilon * d) / length, torch.ones(20).double(), atol=tolerance, rtol=0
    )


def test_categorical_divergence_in_700_digits():
    z0 = adversarial(4)[:91:3]
    z1 = torch.cat([z0[:5] + 1e-9 * draw(5, 4), z0[5:].roll(1, 0)])
    for a, b in zip(z0, z1, strict=True):
        got = Categorical().divergence(a, b).item()
        with mpmath.workdps(700):
            p, q = exact_probabilities(a.tolist()), exact_probabilities(b.tolist())
            if any(x > 0 and y == 0 for x, y in zip(p, q, strict=True)):
                assert got == INF
                continue
            expected = mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)
        assert got == pytest.approx(float(expected), rel=1e-8, abs=1e-300)


def test_divergences_by_enumeration_and_closed_form():
    z0, z1 = draw(6, 3), draw(6, 3, seed=1)
    p0, p1 = torch.softmax(z0, -1), torch.softmax(z1, -1)
    torch.testing.assert_close(Categorical().divergence(z0, z1), (p0 * (p0 / p1).log()).sum(-1))
    p0, p1 = torch.sigmoid(z0), torch.sigmoid(z1)
    expected = (p0 * (p0 / p1).log() + (1 - p0) * ((1 - p0) / (1 - p1)).log()).sum(-1)
    torch.testing.assert_close(Bernoulli().divergence(z0, z1), expected)
    torch.testing.assert_close(Gaussian(variance=2.0).divergence(z0, z1), ((z0 - z1) ** 2).sum(-1) / 4)
    counts = torch.arange(200.0, dtype=torch.float64)[:, None]
    log0, log1 = (Poisson().log_prob(z[0, :1], counts) for z in (z0, z1))
    torch.testing.assert_close((log0.exp() * (log0 - log1)).sum(), Poisson().divergence(z0[0, :1], z1[0, :1]))
    z0, z1 = draw(6, 2), draw(6, 2, seed=1)
    normals = [torch.distributions.Normal(z[:, 0], (0.5 * z[:, 1]).exp()) for z in (z0, z1)]
    expected = torch.distributions.kl_divergence(*normals)
    torch.testing.assert_close(HeteroscedasticGaussian().divergence(z0, z1), expected)


def test_divergence_where_something_is_impossible():
    z0, z1 = torch.tensor([0.0, 0.0, -INF]), torch.tensor([0.0, 0.0, 0.0])
    assert Categorical().divergence(z0, z1).item() == pytest.approx(0.4054651081, rel=1e-6)
    assert Categorical().divergence(z1, z0).item() == INF
    assert Categorical().divergence(z0, z0).item() == 0
    assert Bernoulli().divergence(torch.tensor([-INF]), torch.tensor([0.0])).item() == pytest.approx(
        0.6931472, rel=1e-6
    )
    assert Poisson().divergence(torch.tensor([-INF]), torch.tensor([0.0])).item() == 1
    assert Poisson().divergence(torch.tensor([0.0]), torch.tensor([-INF])).item() == INF


def test_far_divergences_do_not_overflow():
    z0, z1 = torch.tensor([[300.0, 0.0]]), torch.tensor([[0.0, 300.0]])
    assert Categorical().divergence(z0, z1).item() == pytest.approx(300.0)
    assert Bernoulli().divergence(torch.tensor([300.0]), torch.tensor([-300.0])).item() == pytest.approx(300.0)


def test_entropies():
    z = draw(6, 4)
    p = torch.softmax(z, -1)
    torch.testing.assert_close(Categorical().entropy(z), -(p * p.log()).sum(-1))
    assert Categorical().entropy(torch.tensor([1.0, 1.0, -INF])).item() == pytest.approx(0.6931472, rel=1e-6)
    p = torch.sigmoid(z)
    torch.testing.assert_close(Bernoulli().entropy(z), -(p * p.log() + (1 - p) * (1 - p).log()).sum(-1))
    assert Bernoulli().entropy(torch.tensor([INF, -INF])).item() == 0
    expected = torch.distributions.Normal(z, 0.7**0.5).entropy().sum(-1)
    torch.testing.assert_close(Gaussian(variance=0.7).entropy(z), expected)
    expected = torch.distributions.Normal(z[:, :2], (0.5 * z[:, 2:]).exp()).entropy().sum(-1)
    torch.testing.assert_close(HeteroscedasticGaussian().entropy(z), expected)


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1.0, 30.0, 63.9, 64.1, 500.0])
def test_poisson_entropy_on_both_sides_of_the_asymptotic_series(rate):
    counts = torch.arange(1200.0, dtype=torch.float64)
    z = torch.tensor(rate, dtype=torch.float64).log()
    log_p = torch.from_numpy(scipy.stats.poisson.logpmf(counts, rate))
    expected = -(log_p.exp() * log_p).masked_fill(log_p.exp() == 0, 0.0).sum()
    torch.testing.assert_close(Poisson().entropy(z[None]), expected, rtol=1e-11, atol=1e-15)


def test_exponential_excess_to_full_precision():
    w = torch.cat(
        [torch.logspace(-300, 0.5, 300, dtype=torch.float64), -torch.logspace(-12, 2, 300, dtype=torch.float64)]
    )
    with mpmath.workdps(700):
        expected = [float(mpmath.expm1(mpmath.mpf(x)) - mpmath.mpf(x)) for x in w.tolist()]
    torch.testing.assert_close(
        exponential_excess(w), torch.tensor(expected, dtype=torch.float64), rtol=2e-15, atol=1e-323
    )
