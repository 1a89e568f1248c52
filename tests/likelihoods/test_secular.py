"""The top eigenpair, against 60- and 700-digit arithmetic, dense eigensolvers and residuals."""

import mpmath
import pytest
import torch

from dynaxx.likelihoods import Categorical
from likelihoods.cases import INF, adversarial, draw, exact_probabilities, many


def exact_pair(logits: list[float], digits: int) -> tuple[float, torch.Tensor]:
    """Bisection of the textbook equation sum p^2 / (p - l) = 1 between the two largest p, then v = p / (p - l)."""
    with mpmath.workdps(digits):
        p = exact_probabilities(logits, digits)
        low, high = sorted(p)[-2:]
        for _ in range(int(3.4 * digits)):
            middle = (low + high) / 2
            if mpmath.fsum(x * x / (x - middle) for x in p) < 1:
                low = middle
            else:
                high = middle
        value = (low + high) / 2
        v = [x / (x - value) for x in p]
        norm = mpmath.sqrt(mpmath.fsum(x * x for x in v))
        return float(value), torch.tensor([float(x / norm) for x in v], dtype=torch.float64)


def table() -> dict[str, tuple[list[float], int]]:
    """The cases of neuromanifold.md 7.2 that have a simple top eigenvalue: logits and digits."""
    cases = {f"gap {gap:g}": ([2.0, 2.0 - gap, 1.0, 0.3, -1.0], 80) for gap in (1e-4, 1e-8, 1e-12)}
    return cases | {
        f"margin {m}": ([float(m), 1.0, 0.0, -0.5, -2.0], max(80, 2 * m)) for m in (5, 20, 40, 80, 300, 700)
    }


@pytest.mark.parametrize("name", table())
def test_table_of_hard_cases_in_float64(name):
    logits, digits = table()[name]
    value, vector = exact_pair(logits, digits)
    got_value, got_vector = Categorical().top_eigenpair(torch.tensor(logits, dtype=torch.float64))
    # the second class's logit enters the value through exp(z_2 - z_t), which rounds to eps times the margin
    assert abs(float(got_value) / value - 1) < 2e-13
    assert (got_vector * vector[0].sign() - vector).abs().max() < 2e-15


@pytest.mark.parametrize("name", table())
def test_table_of_hard_cases_in_float32(name):
    logits, digits = table()[name]
    z = torch.tensor(logits, dtype=torch.float32)
    if name in ("gap 1e-08", "gap 1e-12"):
        # gaps of that size between small logits: float32 cannot hold them next to 2
        z = torch.tensor([1e4, 1e4 - 1.0, -1.0, -1.7, -3.0]) * torch.tensor([float(name[4:])] * 2 + [1.0] * 3)
    value, vector = exact_pair(z.double().tolist(), digits)
    got_value, got_vector = Categorical().top_eigenpair(z)
    assert (got_vector.double() * vector[0].sign() - vector).abs().max() < 1e-6
    if value > 1e-36:
        assert abs(float(got_value) / value - 1) < 1e-5
    else:
        assert float(got_value) == pytest.approx(0.0, abs=1e-36)


@pytest.mark.parametrize("ties", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_ties_at_the_top(ties, dtype):
    z = torch.tensor([0.5] * ties + [0.1, -3.0, -INF], dtype=dtype)
    value, vector = Categorical().top_eigenpair(z)
    torch.testing.assert_close(value, torch.softmax(z, -1)[0])
    torch.testing.assert_close(Categorical().apply(z, vector), value * vector)


def test_a_lone_class_has_no_information_and_no_nan():
    z = torch.tensor([[-INF, 3.0, -INF], [0.0, 0.0, -INF]], dtype=torch.float64)
    value, vector = Categorical().top_eigenpair(z)
    torch.testing.assert_close(value, torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert torch.isfinite(vector).all()
    torch.testing.assert_close(vector.norm(dim=-1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("outputs", [2, 3, 10, 100])
def test_eigenvalues_agree_with_a_dense_solver(outputs):
    z = torch.cat([draw(60, outputs, seed=s, scale=10.0**s) for s in (-9, -4, -1, 0, 1)])
    expected = torch.linalg.eigvalsh(Categorical().metric(z))[:, -1]
    value, vector = Categorical().top_eigenpair(z)
    # eigvalsh is good to eps of the largest eigenvalue, and so is the matrix it is given
    torch.testing.assert_close(value, expected, rtol=3e-14, atol=0)
    residual = (Categorical().apply(z, vector) - value[:, None] * vector).norm(dim=-1) / value
    assert residual.max() < 3e-14


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_residuals_are_small_in_units_of_the_eigenvalue_for_every_input(dtype, tolerance):
    z = many(6, 6_000).to(dtype)
    value, vector = Categorical().top_eigenpair(z)
    assert torch.isfinite(value).all()
    assert torch.isfinite(vector).all()
    torch.testing.assert_close(vector.norm(dim=-1), torch.ones_like(value))
    # in float64, on what float32 can represent of the eigenvalue
    residual = Categorical().apply(z.double(), vector.double()) - value.double()[:, None] * vector.double()
    alive = value > 1e3 * torch.finfo(dtype).tiny
    assert alive.sum() > 5_000
    assert (residual.norm(dim=-1)[alive] / value.double()[alive]).max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fifty_thousand_classes(dtype):
    k = torch.arange(50_000, dtype=torch.float64)
    peaked = draw(50_000) + 25.0 * (k == 7)
    z = torch.stack([-torch.log1p(k), draw(50_000, scale=5.0), peaked, peaked + (25.0 + 1e-6) * (k == 9)]).to(dtype)
    value, vector = Categorical().top_eigenpair(z)
    residual = Categorical().apply(z.double(), vector.double()) - value.double()[:, None] * vector.double()
    assert (residual.norm(dim=-1) / value.double()).max() < (1e-14 if dtype == torch.float64 else 4e-6)
    lower, upper = Categorical().spectrum_bounds(z.double())
    assert ((lower * (1 - 1e-5) <= value) & (value <= upper * (1 + 1e-5))).all()


def test_order_of_classes_and_batch_shape_do_not_matter():
    z = adversarial(4)[:90]
    value, _ = Categorical().top_eigenpair(z)
    permuted, _ = Categorical().top_eigenpair(z[:, [2, 0, 3, 1]])
    torch.testing.assert_close(permuted, value, rtol=1e-12, atol=0)
    shaped, vectors = Categorical().top_eigenpair(z.reshape(9, 2, 5, 4))
    torch.testing.assert_close(shaped.flatten(), value, rtol=0, atol=0)
    assert vectors.shape == (9, 2, 5, 4)
