import math

import pytest
import torch

from dynaxx.errors import InputError, SizeError
from dynaxx.linalg import eigh, eigvalsh, inverse_psd, logdet_psd, symmetric, symmetric_eigenvalues, to_dense
from linalg.matrices import Counted, power, with_spectrum


def test_to_dense_of_the_protocol_alone():
    a = with_spectrum(power(70, 1.0))
    op = Counted(a)
    assert torch.equal(to_dense(op), a)
    assert op.columns == 70


def test_eigendecomposition_of_the_symmetric_part():
    a = with_spectrum([3.0, 1.0, -2.0])
    skew = torch.tensor([[0.0, 1, 2], [-1, 0, 3], [-2, -3, 0]], dtype=torch.float64)
    values, vectors = eigh(a + skew)
    torch.testing.assert_close(values, torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close((vectors * values) @ vectors.T, a)
    torch.testing.assert_close(eigvalsh((a + skew).float()), values, rtol=1e-6, atol=1e-6)
    assert eigvalsh(a.float()).dtype == torch.float64


def test_logdet_by_cholesky_and_by_eigenvalues():
    values = power(50, 2.0)
    assert logdet_psd(with_spectrum(values)) == pytest.approx(float(values.log().sum()), rel=1e-10)
    singular = with_spectrum([2.0, 1.0] + [0.0] * 30)
    exact = math.log(2.5) + math.log(1.5) + 30 * math.log(0.5)
    assert logdet_psd(singular, damping=0.5) == pytest.approx(exact, rel=1e-12)
    with pytest.raises(InputError, match="damping"):
        logdet_psd(torch.diag(torch.tensor([1.0, 0.0])))
    with pytest.raises(InputError, match="damping"):
        logdet_psd(torch.diag(torch.tensor([1.0, -1.0])))


def test_bad_input():
    with pytest.raises(InputError, match="square"):
        symmetric(torch.ones(2, 3))
    with pytest.raises(InputError, match="NaN"):
        symmetric(torch.full((2, 2), float("nan")))


class Huge:
    shape, dtype, device = (10**9, 10**9), torch.float64, torch.device("cpu")


def test_refuses_before_allocating():
    with pytest.raises(SizeError, match="dense matrix"):
        to_dense(Huge())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("damping", [1e-8, 1e-4, 1.0])
def test_inverse_psd(damping, dtype):
    """Of singular matrices, float32 ones whose condition number no float32 decomposition survives included."""
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    matrix = rows @ rows.T
    values, vectors = torch.linalg.eigh(matrix.double())
    if float(values[0]) <= -damping:  # rounding has made it indefinite
        values = values.clamp(min=0)
    wanted = (vectors / (values + damping)) @ vectors.T
    found = inverse_psd(matrix, damping)
    assert found.dtype == dtype
    assert float((found.double() - wanted).norm() / wanted.norm()) < (1e-3 if dtype == torch.float32 else 1e-6)


def test_inverse_psd_of_what_rounding_made_indefinite():
    matrix = torch.diag(torch.tensor([1.0, -1e-9], dtype=torch.float64))
    assert torch.allclose(inverse_psd(matrix, 1e-10).diagonal(), torch.tensor([1.0, 1e10], dtype=torch.float64))


@pytest.mark.parametrize("size", [257, 600, 1025])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_psd_by_halves(size, dtype):
    """Sizes above one leaf, odd ones included: A^{-1} A = I to what the condition number allows."""
    rows = torch.randn(size, size // 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = rows @ rows.T / size
    damped = matrix + 0.1 * torch.eye(size, dtype=torch.float64)
    error = inverse_psd(matrix.to(dtype), 0.1).double() @ damped - torch.eye(size, dtype=torch.float64)
    assert float(error.norm()) / math.sqrt(size) < (2e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("at", [0, 300, 599])
def test_inverse_psd_by_halves_meets_a_negative_pivot_anywhere(at):
    """In the first half, in its Schur complement, or in the last leaf: eigenvalues clamped at 0 take over."""
    matrix = torch.eye(600, dtype=torch.float64)
    matrix[at, at] = -1.0
    assert inverse_psd(matrix, 0.5).diagonal()[at] == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symmetric_eigenvalues_are_torchs(dtype):
    matrix = with_spectrum(power(70, 1.0)).to(dtype)
    found = symmetric_eigenvalues(matrix)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.linalg.eigvalsh(matrix).flip(0))
    assert symmetric_eigenvalues(matrix[:0, :0]).shape == (0,)
