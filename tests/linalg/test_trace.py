import pytest
import torch

from dynaxx.errors import ConvergenceWarning, InputError, SizeError
from dynaxx.linalg import frobenius, hutch_plus_plus, hutchinson, xnystrace, xtrace
from dynaxx.linalg.probes import signs
from linalg.matrices import Counted, power, with_spectrum

SKETCHED = [hutch_plus_plus, xtrace, xnystrace]
ALL = [hutchinson, *SKETCHED]


def leave_out_by_hand(a, x, method):
    """t_j of the definition, every leave-one-out sketch factored anew."""
    draws = []
    for j in range(x.shape[1]):
        rest = torch.cat([x[:, :j], x[:, j + 1 :]], 1)
        if method is xtrace:
            q, _ = torch.linalg.qr(a @ rest)
            away = x[:, j] - q @ (q.T @ x[:, j])
            draws.append((q.T @ a @ q).trace() + away @ a @ away)
        else:
            y = a @ rest
            approximation = y @ torch.linalg.solve(rest.T @ y, y.T)
            draws.append(approximation.trace() + x[:, j] @ (a - approximation) @ x[:, j])
    return torch.stack(draws)


@pytest.mark.parametrize(("method", "samples"), [(xtrace, 12), (xnystrace, 6)])
def test_draws_and_error_against_the_definition(method, samples):
    a = with_spectrum(power(40, 1.0))
    x = signs(a, 0, 6, seed=3)
    draws = leave_out_by_hand(a, x, method)
    found = method(a, samples=samples, seed=3)
    assert float(found) == pytest.approx(float(draws.mean()), rel=1e-10)
    fewer = [leave_out_by_hand(a, torch.cat([x[:, :i], x[:, i + 1 :]], 1), method) for i in range(6)]
    jackknife = torch.stack([row.mean() for row in fewer]).var() * 25 / 6
    before = torch.stack([row.var() for row in fewer]).mean()
    jackknife = jackknife * min(1.0, float(draws.var() / before))
    assert found.stderr == pytest.approx(float((draws.var() / 6 * jackknife) ** 0.25), rel=1e-7)


@pytest.mark.parametrize("method", SKETCHED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exact_when_the_sketch_holds_the_range(method, dtype):
    a = with_spectrum([5.0, 4.0, 3.0, 2.0, 1.0] + [0.0] * 75).to(dtype)
    for seed in range(10):
        found = method(a, samples=24, seed=seed)
        assert float(found) == pytest.approx(15, rel=1e-12 if dtype == torch.float64 else 1e-4)
        assert found.stderr < (1e-10 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("method", ALL)
def test_as_many_products_as_p_is_exact(method):
    op = Counted(with_spectrum(power(30, 1.0)))
    found = method(op, samples=30)
    assert found.exact
    assert op.columns == 30
    assert float(found) == pytest.approx(float(power(30, 1.0).sum()), rel=1e-12)


@pytest.mark.parametrize(("method", "made"), [(hutchinson, 24), (hutch_plus_plus, 24), (xtrace, 24), (xnystrace, 24)])
def test_makes_the_products_it_says(method, made):
    op = Counted(with_spectrum(power(50, 1.0)))
    assert not method(op, samples=24).exact
    assert op.columns == made


@pytest.mark.parametrize("method", ALL)
def test_zero_operator(method):
    found = method(torch.zeros(50, 50), samples=8)
    assert (float(found), found.stderr) == (0.0, 0.0)


@pytest.mark.parametrize("method", [hutch_plus_plus, xtrace])
def test_indefinite_operators_are_welcome(method):
    values = torch.linspace(-2, 3, 60, dtype=torch.float64)
    a = with_spectrum(values)
    found = torch.tensor([float(method(a, samples=20, seed=s)) for s in range(200)], dtype=torch.float64)
    assert abs(float(found.mean() - values.sum())) < 4 * float(found.std()) / 200**0.5


def test_sketches_beat_hutchinson_on_decay():
    a, exact = with_spectrum(power(100, 2.0)), float(power(100, 2.0).sum())
    error = {
        method: sum((float(method(a, samples=24, seed=s)) - exact) ** 2 for s in range(50)) ** 0.5 for method in ALL
    }
    assert all(error[method] < error[hutchinson] / 5 for method in SKETCHED)


def test_hutchinson_variance_is_the_closed_form():
    a = with_spectrum(power(40, 0.5))
    found = torch.tensor([float(hutchinson(a, samples=8, seed=s)) for s in range(600)], dtype=torch.float64)
    variance = 2 * (a.square().sum() - a.diagonal().square().sum()) / 8
    # a variance over 600 seeds has a relative standard error of about sqrt(2 / 600) = 6 %
    assert float(found.var() / variance) == pytest.approx(1, abs=0.25)


def test_hutchinson_extends_with_samples():
    a = with_spectrum(power(90, 0.5))
    x = signs(a, 0, 40, seed=0)
    draws = (x * (a @ x)).sum(0)
    assert float(hutchinson(a, samples=10)) == pytest.approx(float(draws[:10].mean()), rel=1e-12)
    assert float(hutchinson(a, samples=40)) == pytest.approx(float(draws.mean()), rel=1e-12)


def test_hutchinson_stops_at_a_tolerance():
    a = with_spectrum(power(3000, 0.2)[:400])
    found = hutchinson(a, samples=10, tolerance=0.01)
    assert found.stderr <= 0.01 * float(found)
    assert found.samples % 10 == 0
    with pytest.warns(ConvergenceWarning, match="max_samples"):
        assert hutchinson(a, samples=10, tolerance=1e-5, max_samples=50).samples == 50
    assert hutchinson(a, samples=10, tolerance=1e-9).exact  # p products are fewer than it would take


def test_nystrom_refuses_an_indefinite_operator():
    with pytest.raises(InputError, match="PSD"):
        xnystrace(with_spectrum(torch.linspace(-1, 1, 60)), samples=20)


@pytest.mark.parametrize("method", [xtrace, xnystrace])
def test_unbiased_where_sign_vectors_repeat(method):
    """Two of 4 sign vectors in 5 dimensions often coincide up to sign; leaving one of a pair out then removes
    nothing.
    """
    a = with_spectrum([1.0, 0.8, 0.6, 0.4, 0.2])
    found = torch.tensor([float(method(a, samples=4, seed=s)) for s in range(1000)], dtype=torch.float64)
    assert abs(float(found.mean()) - 3) < 4 * float(found.std()) / 1000**0.5


def test_frobenius():
    values = power(60, 1.0)
    a, exact = with_spectrum(values), float(values.norm())
    runs = [frobenius(a, samples=30, seed=s) for s in range(200)]
    found = torch.tensor([float(run) for run in runs], dtype=torch.float64)
    # the root's own bias, -variance / (2 exact), is allowed for
    bias = -float(found.var()) / (2 * exact)
    assert abs(float(found.mean()) - exact - bias) < 4 * float(found.std()) / 200**0.5
    assert (sum(run.stderr**2 for run in runs) / 200) ** 0.5 / float(found.std()) == pytest.approx(1, abs=0.25)
    assert frobenius(a, samples=60) == pytest.approx(exact, rel=1e-12)
    assert frobenius(a, samples=60).exact
    assert frobenius(torch.zeros(99, 99), samples=4) == 0


@pytest.mark.parametrize(
    ("method", "least"), [(hutchinson, 2), (hutch_plus_plus, 6), (xtrace, 4), (xnystrace, 2), (frobenius, 2)]
)
def test_bad_input(method, least):
    with pytest.raises(InputError, match=f"at least {least}"):
        method(torch.eye(9), samples=least - 1)
    with pytest.raises(InputError, match="square"):
        method(torch.ones(9, 3))
    if method is hutchinson:
        with pytest.raises(InputError, match="tolerance=0"):
            method(torch.eye(9), tolerance=0)


class Wrong(Counted):
    def __matmul__(self, v):
        return super().__matmul__(v)[:-1]


def test_a_product_of_the_wrong_shape_is_named():
    with pytest.raises(InputError, match="must answer in the shape"):
        hutchinson(Wrong(torch.eye(40)), samples=4)


class Huge:
    shape, dtype, device = (10**12, 10**12), torch.float64, torch.device("cpu")

    def __matmul__(self, v):
        raise AssertionError("no product may be made")


@pytest.mark.parametrize("method", SKETCHED)
def test_refuses_before_allocating(method):
    with pytest.raises(SizeError, match="sketch"):
        method(Huge())


@pytest.mark.parametrize("method", [*ALL, frobenius])
def test_leaves_the_global_random_state(method):
    state = torch.random.get_rng_state()
    first, second = (method(with_spectrum(power(50, 1.0)), samples=12, seed=1) for _ in range(2))
    assert float(first) == float(second)
    assert float(first) != float(method(with_spectrum(power(50, 1.0)), samples=12, seed=2))
    assert torch.equal(state, torch.random.get_rng_state())
