"""Agreement with nngeometry 0.4: the dense Fisher matrix and its diagonal.

Its ``classif_logits`` variant takes an exact root of the categorical's metric, and averages over the examples of the
loader, as here. Its parameters stand in the order of the model.
"""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynaxx
import oracles

metrics = pytest.importorskip("nngeometry.metrics", reason="peers live in their own environment: make bench-env")
representations = pytest.importorskip("nngeometry.object.pspace")

TOLERANCE = 1e-7  # it keeps eps of the default dtype, 1e-7, in a denominator


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval(), torch.randn(7, 4).double()


def convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3))
    return model.double().eval(), torch.randn(7, 2, 4, 4).double()


@pytest.fixture(params=[perceptron, convolution])
def problem(request):
    model, x = request.param()
    data = TensorDataset(x, torch.randint(3, (7,), generator=torch.Generator().manual_seed(1)))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # its buffers are of the default dtype
    yield model, DataLoader(data, batch_size=4)
    torch.set_default_dtype(default)


@pytest.mark.parametrize("form", ["dense", "implicit", "gram"])
def test_dense(problem, form):
    model, loader = problem
    theirs = metrics.FIM(model, loader, representations.PMatDense, variant="classif_logits")
    assert oracles.distance(dynaxx.fisher(model, loader, form=form).to_dense(), theirs.to_torch().detach()) < TOLERANCE


def test_diagonal(problem):
    model, loader = problem
    theirs = metrics.FIM(model, loader, representations.PMatDiag, variant="classif_logits")
    ours = dynaxx.fisher(model, loader, form="diagonal").diagonal()
    assert oracles.distance(ours, theirs.get_diag().detach()) < TOLERANCE


def test_trace(problem):
    model, loader = problem
    theirs = metrics.FIM(model, loader, representations.PMatDense, variant="classif_logits")
    assert float(dynaxx.fisher(model, loader).trace()) == pytest.approx(float(theirs.trace()), rel=TOLERANCE)
