import pytest
import torch

from dynaxx.errors import ConvergenceWarning, InputError
from dynaxx.linalg import cg
from linalg.matrices import Counted, power, with_spectrum


def right_hand_sides(p, k, seed=1):
    return torch.randn(p, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_equals_dense_solve():
    a, b = with_spectrum(power(80, 1.0)), right_hand_sides(80, 3)
    found = cg(a, b, damping=1e-2, tolerance=1e-13, max_iterations=2000)
    exact = torch.linalg.solve(a + 1e-2 * torch.eye(80, dtype=torch.float64), b)
    assert found.converged
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-10 * float(exact.abs().max()))
    true = (b - (a + 1e-2 * torch.eye(80, dtype=torch.float64)) @ found.value).norm(dim=0) / b.norm(dim=0)
    torch.testing.assert_close(found.residual, true, rtol=1e-2, atol=1e-15)


def test_steps_equal_the_number_of_distinct_eigenvalues():
    a = with_spectrum([5.0] * 20 + [2.0] * 20 + [1.0] * 20)
    found = cg(a, right_hand_sides(60, 1)[:, 0], tolerance=1e-10)
    assert found.iterations == 3
    assert found.value.shape == (60,)
    assert found.residual.shape == ()


def test_converged_columns_leave_the_products():
    a = with_spectrum(power(60, 2.0))
    easy = torch.linalg.eigh(a).eigenvectors[:, -1:]
    op = Counted(a)
    found = cg(op, torch.cat([easy, right_hand_sides(60, 1)], 1), damping=1e-3, tolerance=1e-9)
    assert found.converged
    assert op.columns < 2 * found.iterations  # two columns at every step would make this an equality or more


def test_columns_of_any_scale_and_zero_columns():
    a, b = with_spectrum(power(40, 1.0)).float(), right_hand_sides(40, 3).float()
    b[:, 1] = 0
    b[:, 2] *= 1e-30  # its square underflows in float32
    found = cg(a, b, damping=0.1, x0=torch.ones_like(b) * (b.abs().amax(0) > 1e-20))
    assert found.converged
    assert not found.value[:, 1].any()
    assert float(found.residual[1]) == 0
    exact = torch.linalg.solve(a.double() + 0.1 * torch.eye(40, dtype=torch.float64), b.double())
    error = (found.value.double() - exact).norm(dim=0)
    assert float(error[0]) < 1e-5 * float(exact[:, 0].norm())
    assert float(error[2]) < 1e-5 * float(exact[:, 2].norm())


def test_start_at_the_answer_takes_no_step():
    a, b = with_spectrum(power(30, 1.0)), right_hand_sides(30, 2)
    exact = torch.linalg.solve(a, b)
    found = cg(a, b, x0=exact)
    assert (found.iterations, found.converged) == (0, True)


@pytest.mark.parametrize("as_operator", [True, False])
def test_preconditioner_saves_steps(as_operator):
    scale = torch.logspace(0, 4, 100, dtype=torch.float64)
    a = with_spectrum(torch.linspace(1, 2, 100)) * (scale[:, None] * scale).sqrt()
    b = right_hand_sides(100, 1)
    inverse = torch.diag(1 / a.diagonal())
    plain = cg(a, b, tolerance=1e-8)
    preconditioned = cg(a, b, tolerance=1e-8, preconditioner=inverse if as_operator else lambda r: inverse @ r)
    assert preconditioned.converged
    assert preconditioned.iterations < plain.iterations / 3
    torch.testing.assert_close(preconditioned.value, torch.linalg.solve(a, b), rtol=1e-5, atol=1e-8)


def test_indefinite_and_singular_operators_are_refused_with_advice():
    b = torch.ones(3, dtype=torch.float64)
    with pytest.raises(InputError, match="damping"):
        cg(torch.diag(torch.tensor([1.0, 2.0, -4.0], dtype=torch.float64)), b)
    with pytest.raises(InputError, match="damping"):
        cg(
            torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)),
            torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64),
        )
    damped = cg(torch.diag(torch.tensor([1.0, 2.0, -4.0], dtype=torch.float64)), b, damping=5.0)
    torch.testing.assert_close(damped.value, torch.tensor([1 / 6, 1 / 7, 1.0], dtype=torch.float64))


def test_singular_operator_with_a_consistent_right_hand_side():
    a = with_spectrum([3.0, 2.0, 1.0] + [0.0] * 40)
    b = a @ right_hand_sides(43, 2)
    found = cg(a, b, tolerance=1e-10)
    assert found.converged
    torch.testing.assert_close(found.value, torch.linalg.pinv(a, rtol=1e-10) @ b, rtol=1e-7, atol=1e-8)


def test_unconverged_says_so():
    a = with_spectrum(power(100, 4.0))
    with pytest.warns(ConvergenceWarning, match="max_iterations=5"):
        found = cg(a, right_hand_sides(100, 1), max_iterations=5)
    assert not found.converged
    assert found.iterations == 5
    assert float(found.residual[0]) > 1e-6


def test_unattainable_tolerance_ends_and_says_so():
    a = with_spectrum(torch.logspace(0, -4, 100)).float()
    with pytest.warns(ConvergenceWarning):
        found = cg(a, right_hand_sides(100, 1).float(), tolerance=1e-12)
    assert not found.converged
    assert float(found.residual) < 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": torch.ones(4)}, "takes"),
        ({"b": torch.ones(3, dtype=torch.float32)}, "float64"),
        ({"b": torch.tensor([1.0, float("nan"), 0.0], dtype=torch.float64)}, "NaN"),
        ({"damping": -1.0}, "damping=-1.0"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"x0": torch.ones(3, 1, dtype=torch.float64)}, "x0"),
        ({"op": torch.ones(3, 4, dtype=torch.float64)}, "square"),
        ({"op": torch.ones(3, 3, dtype=torch.int64)}, "floating"),
        ({"preconditioner": lambda r: -r}, "positive definite"),
    ],
)
def test_bad_input(change, words):
    given = {"op": torch.eye(3, dtype=torch.float64), "b": torch.ones(3, dtype=torch.float64)} | change
    with pytest.raises(InputError, match=words):
        cg(given.pop("op"), given.pop("b"), **given)
