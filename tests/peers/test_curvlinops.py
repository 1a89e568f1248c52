"""Agreement with curvlinops-for-pytorch 3.0.1: Gauss-Newton products, Hessian products, Kronecker factors.

Its matrices are those of a loss with its reduction: with CrossEntropyLoss() the mean over examples, as here; for
sequences it averages over the positions too, so that its matrix is ours divided by their number. Its K-FAC takes weight
and bias together with ``separate_weight_and_bias=False``, which is this package's convention.
"""

import pytest
import torch
from torch import nn

import dynaxx
import oracles

curvlinops = pytest.importorskip("curvlinops", reason="peers live in their own environment: make bench-env")

TOLERANCE = 1e-9


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval(), torch.randn(7, 4).double()


def convolution():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)
    )  # fmt: skip
    return model.double().eval(), torch.randn(7, 2, 4, 4).double()


def labels(count=7):
    return torch.randint(3, (count,), generator=torch.Generator().manual_seed(1))


def batches(x, y):
    return [(x[:4], y[:4]), (x[4:], y[4:])]


def dense(operator, size):
    return operator @ torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("problem", [perceptron, convolution])
def test_gauss_newton_is_the_fisher(problem):
    model, x = problem()
    data = batches(x, labels())
    ours = dynaxx.fisher(model, data)
    theirs = curvlinops.GGNLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
    v = torch.randn(ours.shape[0], 3, dtype=torch.float64)
    assert oracles.distance(ours @ v, theirs @ v) < TOLERANCE


def test_gauss_newton_of_a_squared_error():
    """MSELoss averages over the outputs too and has no half: 2 / C times the Gaussian's Fisher with variance 1."""
    model, x = perceptron()
    data = batches(x, torch.randn(7, 3, dtype=torch.float64))
    ours = dynaxx.fisher(model, data, likelihood="gaussian")
    theirs = curvlinops.GGNLinearOperator(model, nn.MSELoss(), list(model.parameters()), data)
    v = torch.randn(ours.shape[0], dtype=torch.float64)
    assert oracles.distance(ours @ v * 2 / 3, theirs @ v) < TOLERANCE


@pytest.mark.parametrize("problem", [perceptron, convolution])
def test_hessian(problem):
    model, x = problem()
    data = batches(x, labels())
    ours = dynaxx.hessian(model, data, nn.CrossEntropyLoss())
    theirs = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
    v = torch.randn(ours.shape[0], dtype=torch.float64)
    assert oracles.distance(ours @ v, theirs @ v) < TOLERANCE


def test_empirical_fisher():
    model, x = perceptron()
    data = batches(x, labels())
    ours = dynaxx.fisher(model, data, estimator="empirical")
    theirs = curvlinops.EFLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
    v = torch.randn(ours.shape[0], dtype=torch.float64)
    assert oracles.distance(ours @ v, theirs @ v) < TOLERANCE


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("problem", [perceptron, convolution])
def test_kronecker_factors(problem, sharing):
    model, x = problem()
    data = batches(x, labels())
    ours = dynaxx.fisher(model, data, form="kfac", sharing=sharing)
    theirs = curvlinops.KFACLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data, fisher_type="type-2", kfac_approx=sharing,
        separate_weight_and_bias=False,
    )  # fmt: skip
    assert oracles.distance(ours.to_dense(), dense(theirs, ours.shape[0])) < TOLERANCE


@pytest.mark.parametrize("problem", [perceptron, convolution])
def test_corrected_eigenvalues(problem):
    model, x = problem()
    data = batches(x, labels())
    ours = dynaxx.fisher(model, data, form="ekfac")
    theirs = curvlinops.EKFACLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data, fisher_type="type-2",
        separate_weight_and_bias=False,
    )  # fmt: skip
    assert oracles.distance(ours.to_dense(), dense(theirs, ours.shape[0])) < TOLERANCE
