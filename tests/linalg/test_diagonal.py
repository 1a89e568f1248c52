import pytest
import torch

from dynaxx.errors import InputError
from dynaxx.linalg import hutchinson_diagonal, xdiag
from dynaxx.linalg.probes import signs
from linalg.matrices import Counted, power, with_spectrum

BOTH = [hutchinson_diagonal, xdiag]


def leave_out_by_hand(a, x):
    draws = []
    for j in range(x.shape[1]):
        q, _ = torch.linalg.qr(a @ torch.cat([x[:, :j], x[:, j + 1 :]], 1))
        inside = q @ q.T @ a
        draws.append(inside.diagonal() + x[:, j] * ((a - inside) @ x[:, j]))
    return torch.stack(draws, 1)


def test_xdiag_against_the_definition():
    a = with_spectrum(power(40, 1.0))
    x = signs(a, 0, 6, seed=3)
    draws = leave_out_by_hand(a, x)
    found = xdiag(a, samples=12, seed=3)
    torch.testing.assert_close(found.diagonal, draws.mean(1), rtol=1e-10, atol=1e-12)
    fewer = [leave_out_by_hand(a, torch.cat([x[:, :i], x[:, i + 1 :]], 1)) for i in range(6)]
    jackknife = torch.stack([row.mean(1) for row in fewer]).var(0) * 25 / 6
    before = torch.stack([row.var(1) for row in fewer]).mean(0)
    jackknife = jackknife * (draws.var(1) / before).clamp_max(1)
    torch.testing.assert_close(found.stderr, (draws.var(1) / 6 * jackknife) ** 0.25, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_xdiag_is_exact_when_the_sketch_holds_the_range(dtype):
    a = with_spectrum([5.0, 4.0, 3.0, 2.0, 1.0] + [0.0] * 75).to(dtype)
    found = xdiag(a, samples=20)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found.diagonal, a.diagonal(), rtol=0, atol=tolerance)
    assert float(found.stderr.max()) < tolerance
    assert found.diagonal.dtype == dtype


@pytest.mark.parametrize("method", BOTH)
def test_unbiased_entry_by_entry(method):
    a = with_spectrum(power(40, 1.0))
    found = torch.stack([method(a, samples=16, seed=s).diagonal for s in range(300)])
    score = (found.mean(0) - a.diagonal()) / (found.std(0) / 300**0.5)
    assert float(score.abs().max()) < 4  # the largest of 40


def test_hutchinson_variance_is_the_closed_form():
    a = with_spectrum(power(40, 1.0))
    runs = [hutchinson_diagonal(a, samples=33, seed=s) for s in range(600)]
    variance = (a.square().sum(1) - a.diagonal().square()) / 33
    spread = torch.stack([run.diagonal for run in runs]).var(0)
    assert float((spread / variance - 1).abs().max()) < 0.3
    reported = torch.stack([run.stderr for run in runs]).square().mean(0)
    torch.testing.assert_close(reported, variance, rtol=0.1, atol=0)


@pytest.mark.parametrize("method", BOTH)
def test_as_many_products_as_p_is_exact(method):
    op = Counted(with_spectrum(power(70, 1.0)))
    found = method(op, samples=70)
    torch.testing.assert_close(found.diagonal, op.matrix.diagonal(), rtol=1e-13, atol=1e-15)
    assert not found.stderr.any()
    assert op.columns == 70
    assert op.widest <= 32


@pytest.mark.parametrize("method", BOTH)
def test_diagonal_operators_and_zero(method):
    values = torch.arange(1.0, 51, dtype=torch.float64)
    if method is hutchinson_diagonal:  # signs make it exact
        torch.testing.assert_close(method(torch.diag(values), samples=2).diagonal, values)
    found = method(torch.zeros(50, 50), samples=8)
    assert not found.diagonal.any()
    assert not found.stderr.any()


@pytest.mark.parametrize(("method", "least"), [(hutchinson_diagonal, 2), (xdiag, 4)])
def test_bad_input(method, least):
    with pytest.raises(InputError, match=f"at least {least}"):
        method(torch.eye(9), samples=least - 1)
