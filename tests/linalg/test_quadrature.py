import math

import pytest
import torch

from dynaxx.errors import InputError
from dynaxx.linalg import logdet, quadrature
from dynaxx.linalg.probes import signs
from linalg.matrices import Counted, power, with_spectrum


def test_each_probe_is_the_quadratic_form_it_claims():
    """Polynomials of degree < 2 steps are integrated exactly: p sum w t^d = x^T A^d x for that very probe x."""
    a = with_spectrum(power(60, 1.0))
    measure = quadrature(a, probes=3, steps=5, seed=7)
    assert measure.nodes.shape == measure.weights.shape == (3, 5)
    x = signs(a, 0, 3, seed=7)
    for degree in range(10):
        forms = (x * (torch.linalg.matrix_power(a, degree) @ x)).sum(0)
        found = 60 * (measure.weights * measure.nodes**degree).sum(1)
        torch.testing.assert_close(found, forms, rtol=1e-11, atol=0)


def test_more_probes_extend_fewer():
    a = with_spectrum(power(60, 1.0))
    torch.testing.assert_close(quadrature(a, probes=5, steps=6).nodes[:2], quadrature(a, probes=2, steps=6).nodes)


def test_unbiased_and_calibrated_over_seeds():
    values = power(70, 1.0)
    a = with_spectrum(values)
    runs = [quadrature(a, probes=4, steps=12, seed=s).functional(lambda t: torch.log1p(50 * t)) for s in range(200)]
    found = torch.tensor([float(run) for run in runs], dtype=torch.float64)
    exact = float(torch.log1p(50 * values).sum())
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(200)
    stderr = math.sqrt(sum(run.stderr**2 for run in runs) / 200)
    assert stderr / float(found.std()) == pytest.approx(1, abs=0.25)


def test_where_it_costs_no_more_the_answer_is_exact():
    values = torch.cat([power(40, 1.0), torch.zeros(20, dtype=torch.float64)])
    op = Counted(with_spectrum(values))
    found = logdet(op, 1e-3, probes=4, steps=15)
    assert found.exact
    assert op.columns == 60
    assert float(found) == pytest.approx(float(torch.log(values + 1e-3).sum()), rel=1e-9)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_logdet_errs_upwards(steps):
    """Gauss quadrature of a function with negative even derivatives lies above, probe by probe."""
    a = with_spectrum(power(80, 2.0))
    values, vectors = torch.linalg.eigh(a)
    x = signs(a, 0, 3, seed=0)
    forms = ((vectors.T @ x).square() * torch.log(values + 1e-4)[:, None]).sum(0)
    measure = quadrature(a, probes=3, steps=steps)
    assert (80 * (measure.weights * torch.log(measure.nodes + 1e-4)).sum(1) >= forms - 1e-9).all()


def test_low_rank_pads_with_nothing():
    a = with_spectrum([2.0, 1.0] + [0.0] * 98)
    measure = quadrature(a, probes=2, steps=10)
    assert measure.nodes.shape == (2, 10)
    assert ((measure.weights > 1e-12).sum(1) == 3).all()  # 2, 1 and 0
    torch.testing.assert_close(measure.weights.sum(1), torch.ones(2, dtype=torch.float64))
    assert (measure.functional(lambda t: t.clamp_min(0).sqrt()).stderr) >= 0


def test_identity_and_zero():
    measure = quadrature(3 * torch.eye(500), probes=2, steps=4)
    assert measure.functional(torch.log) == pytest.approx(500 * math.log(3))
    assert quadrature(torch.zeros(500, 500), probes=2, steps=4).functional(torch.exp) == pytest.approx(500)


def test_density_integrates_to_one_and_sees_the_clusters():
    a = with_spectrum([1.0] * 75 + [4.0] * 25)
    grid = torch.linspace(-1, 6, 1401, dtype=torch.float64)
    found = quadrature(a, probes=16, steps=4).density(grid, 0.1)
    assert float(torch.trapezoid(found, grid)) == pytest.approx(1, abs=1e-6)
    low = grid < 2.5
    assert float(torch.trapezoid(found[low], grid[low])) == pytest.approx(0.75, abs=0.06)


def test_bad_input():
    a = with_spectrum([1.0, -2.0] + [0.5] * 8)
    with pytest.raises(InputError, match="damping=0"):
        logdet(a, 0)
    with pytest.raises(InputError, match="above 2"):
        logdet(a, 1.0)
    with pytest.raises(InputError, match="probes=0"):
        quadrature(a, probes=0)
    with pytest.raises(InputError, match="NaN or infinite"):
        quadrature(a).functional(torch.log)
    with pytest.raises(InputError, match="width"):
        quadrature(a).density(torch.zeros(1), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_three_vectors_do_for_sums_over_the_spectrum(dtype):
    """Six decades, 3 eigenvalues that stand out and 60 steps: orthogonality is lost, and sums converge later."""
    values = torch.cat([torch.tensor([100.0, 30.0, 10.0]), torch.logspace(0, -4, 2997)]).to(dtype)
    kept = quadrature(torch.diag(values), probes=2, steps=60)
    short = quadrature(torch.diag(values), probes=2, steps=60, reorthogonalise=False)
    if dtype == torch.float32:
        # the case is what it claims to be: the largest eigenvalue is found more than once
        assert int((short.nodes[0] > 99.9).sum()) > int((kept.nodes[0] > 99.9).sum())
    for f in (torch.square, lambda t: t / (t + 0.01), lambda t: torch.log1p(t / 0.01)):
        # signs meet a diagonal matrix: x^T f(A) x is the trace itself, so what differs is the rule's own error
        exact = float(f(values.double()).sum())
        assert kept.functional(f).value == pytest.approx(exact, rel=1e-3)
        assert short.functional(f).value == pytest.approx(exact, rel=2e-2)
    assert float(short.nodes.max()) == pytest.approx(100.0, rel=1e-3)


def test_the_short_recurrence_ends_where_the_space_does():
    measure = quadrature(torch.diag(torch.tensor([1.0, 2.0] * 1500)), probes=2, steps=9, reorthogonalise=False)
    assert measure.functional(lambda t: t).value == pytest.approx(4500, rel=1e-5)
    assert bool((measure.weights.sum(1) - 1).abs().max() < 1e-12)
