"""dynaxx.hessian against two loops of autograd and against differences of gradients, on every architecture."""

import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional

import dynaxx
import oracles
from architectures import CASES, NAMES, load

TOLERANCE = 1e-9
# torch cannot differentiate these twice: embedding_bag has no second derivative, that of the fused weight_norm is wrong
TWICE_DIFFERENTIABLE = tuple(name for name in NAMES if name not in ("embedding_bag", "weight_norm"))


def loss_of(kind):
    """A loss that takes (outputs, labels) and returns one number, the mean over the batch."""
    if kind == "categorical":
        return lambda z, y: functional.cross_entropy(z.flatten(0, -2), y.flatten(), ignore_index=-100)
    if kind == "bernoulli":
        return functional.binary_cross_entropy_with_logits
    if kind == "poisson":
        return functional.poisson_nll_loss
    if kind == "heteroscedastic":
        return lambda z, y: (z[:, 1:] + (y - z[:, :1]) ** 2 * (-z[:, 1:]).exp()).mean()
    return functional.mse_loss


@cache
def dense(name):
    model, batch = load(name)
    return oracles.hessian(model, batch, loss_of(CASES[name].kind))


def direction(size, columns=2):
    return torch.randn(size, columns, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def central_difference(model, batch, loss, v, step=1e-5):
    """(grad(w + step v) - grad(w - step v)) / 2 step: off by O(step^2) of truncation and 1e-16 / step of rounding."""
    selected = oracles.parameters(model)

    def moved(by):
        pieces = (by * v).split([value.numel() for value in selected.values()])
        with torch.no_grad():
            for value, piece in zip(selected.values(), pieces, strict=True):
                value.add_(piece.reshape(value.shape))
        return oracles.gradient(model, batch, loss)

    ahead, behind = moved(step), moved(-2 * step)
    moved(step)
    return (ahead - behind) / (2 * step)


@pytest.mark.parametrize("name", TWICE_DIFFERENTIABLE)
class TestArchitectures:
    def test_products(self, name):
        model, batch = load(name)
        found = dynaxx.hessian(model, batch, loss_of(CASES[name].kind))
        v = direction(len(dense(name)))
        assert found.names == tuple(oracles.parameters(model))
        assert found.count == oracles.length(batch)
        assert oracles.distance(found @ v, dense(name) @ v) < TOLERANCE

    def test_symmetric(self, name):
        model, batch = load(name)
        found = dynaxx.hessian(model, batch, loss_of(CASES[name].kind))
        v, w = direction(len(dense(name))).T
        left, right = float(w @ (found @ v)), float(v @ (found @ w))
        scale = float((found @ v).norm() * w.norm())
        assert left == pytest.approx(right, abs=1e-10 * scale)

    def test_differences_of_gradients(self, name):
        if name == "text_convolution":
            pytest.skip("torch stops the gradient of a padding row, so that differences of gradients are not symmetric")
        case = CASES[name]
        model, batch = case.build()
        loss, v = loss_of(case.kind), direction(len(dense(name)))[:, 0]
        v = v / v.norm()
        product = dynaxx.hessian(model, batch, loss) @ v
        differences = central_difference(model, batch, loss, v)
        assert float((product - differences).norm()) < 1e-6 * max(1.0, float(differences.norm()))


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "layer_norm_mlp", "tied_language_model", "transformer_encoder", "called_twice"]
)
@pytest.mark.parametrize("form", ["dense", "diagonal", "block"])
def test_forms(name, form):
    model, batch = load(name)
    found = dynaxx.hessian(model, batch, loss_of(CASES[name].kind), form=form)
    wanted = dense(name)
    if form == "diagonal":
        assert oracles.distance(found.diagonal(), wanted.diagonal()) < TOLERANCE
        return
    if form == "block":
        wanted = oracles.keep_blocks(wanted, oracles.offsets(model), getattr(found, "blocks"))  # noqa: B009  block form only
    assert oracles.distance(found.to_dense(), wanted) < TOLERANCE


@pytest.mark.parametrize("form", ["gram", "kfac", "ekfac"])
def test_forms_that_need_a_fisher_are_refused(form):
    model, batch = load("mlp")
    with pytest.raises(dynaxx.InputError, match=r"(?s)form.*implicit.*dense"):
        dynaxx.hessian(model, batch, functional.cross_entropy, form=form)


def test_negative_curvature_is_kept():
    """A Hessian is no Fisher: it is indefinite, and clipping it would be wrong."""
    model, batch = load("mlp")
    exact = torch.linalg.eigvalsh(dense("mlp"))
    assert exact[0] < -1e-3
    found = dynaxx.hessian(model, batch, functional.cross_entropy, form="dense")
    torch.testing.assert_close(torch.linalg.eigvalsh(found.to_dense()), exact, rtol=1e-8, atol=1e-10)


def test_linear_softmax_model_has_hessian_equal_to_fisher():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    found = dynaxx.hessian(model, (x, y), nn.CrossEntropyLoss(), form="dense").to_dense()
    assert oracles.distance(found, dynaxx.fisher(model, (x, y), form="dense").to_dense()) < 1e-12


def test_linear_regression_in_closed_form():
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64)
    found = dynaxx.hessian(model, (x, y), nn.MSELoss(), form="dense").to_dense()
    torch.testing.assert_close(found, 2 * x.T @ x / 7, rtol=1e-12, atol=1e-14)


def test_selection():
    model, batch = load("mlp")
    found = dynaxx.hessian(model, batch, functional.cross_entropy, form="dense", params=["2.weight", "2.bias"])
    where = oracles.offsets(model)
    index = torch.cat([torch.arange(where[name].start, where[name].stop) for name in found.names])
    assert sorted(found.names) == ["2.bias", "2.weight"]
    assert oracles.distance(found.to_dense(), dense("mlp")[index][:, index]) < TOLERANCE


def test_dictionaries_in_and_out():
    model, batch = load("mlp")
    found = dynaxx.hessian(model, batch, functional.cross_entropy)
    v = direction(len(dense("mlp")))[:, 0]
    assert oracles.distance(found.ravel(found @ found.unravel(v)), dense("mlp") @ v) < TOLERANCE


@pytest.mark.parametrize("name", ["embedding_bag", "weight_norm"])
def test_right_or_refused_where_torch_cannot_differentiate_twice(name):
    """Double backward through the fused weight_norm of torch 2.13 fails gradgradcheck: a wrong number must not pass."""
    model, batch = CASES[name].build()
    v = direction(sum(value.numel() for value in oracles.parameters(model).values()))[:, 0]
    differences = central_difference(model, batch, functional.cross_entropy, v)
    try:
        product = dynaxx.hessian(model, batch, functional.cross_entropy) @ v
    except (dynaxx.InputError, NotImplementedError):
        return
    assert oracles.distance(product, differences) < 1e-6


def test_loss_without_targets():
    model, (x, _) = load("mlp")
    found = dynaxx.hessian(model, x, lambda z: z.square().sum(1).mean())
    wanted = oracles.hessian(model, x, lambda z, _: z.square().sum(1).mean())
    v = direction(len(wanted))
    assert oracles.distance(found @ v, wanted @ v) < TOLERANCE


@pytest.mark.parametrize("first", ["fisher", "hessian"])
def test_functions_are_not_hidden_by_modules_of_the_same_name(first):
    """Importing a submodule sets it as an attribute of its package: the public function must outlive that."""
    second = {"fisher": "hessian", "hessian": "fisher"}[first]
    lines = f"import dynaxx; dynaxx.{first}; assert callable(dynaxx.{second})"
    subprocess.run(
        [sys.executable, "-c", lines], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
