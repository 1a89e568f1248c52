"""Linear maps made the faster way: the same values, gradients and second derivatives as torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import dynaxx
from dynaxx import matmul
from dynaxx.model import linear_maps, tape

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN product",
)


@pytest.fixture
def replaced(monkeypatch):
    """As on a processor that has faster products, whatever their size; the shapes that were replaced."""
    names, inner = [], linear_maps._Forward.apply
    monkeypatch.setattr(matmul, "has_faster_products", lambda: True)
    monkeypatch.setattr(linear_maps, "has_faster_products", lambda: True)
    for module, name in ((matmul, "LEAST"), (linear_maps, "LEAST"), (tape, "LARGE")):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(linear_maps._Forward, "apply", lambda *given: names.append(given[1].shape) or inner(*given))
    return names


def close(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (3, 2)], ids=str)
@pytest.mark.parametrize("linear", [True, False])
def test_derivatives_are_torchs(replaced, shape, bias, linear):
    torch.manual_seed(0)
    x = torch.randn(*shape, 5, requires_grad=True)
    w, b = torch.randn(4, 5, requires_grad=True), torch.randn(4, requires_grad=True) if bias else None
    wrt = [t for t in (x, w, b) if t is not None]
    answers = []
    for mode in (linear_maps.FastLinear(linear), linear_maps.FastLinear(active=False)):
        with mode:
            z = functional.linear(x, w, b)
        assert mode.used == mode.active
        u = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        g = torch.autograd.grad(z, wrt, u, create_graph=True)
        v = [torch.randn(t.shape, generator=torch.Generator().manual_seed(2)) for t in wrt]
        second = torch.autograd.grad(g, [u] if linear else [u, x, w], v)
        one = torch.autograd.grad(z, wrt[:1], u.detach(), retain_graph=True)
        alone = torch.autograd.grad(z, [w], u.detach())
        answers.append([z, *g, *second, *one, *alone])
    assert len(answers[0]) == len(answers[1])
    for found, expected in zip(*answers, strict=True):
        close(found, expected)
    assert len(replaced) == 1


@pytest.mark.parametrize("part", ["x", "weight", "bias"])
def test_second_derivatives_of_each_gradient_alone(replaced, part):
    torch.manual_seed(0)
    x, w, b = (torch.randn(*size, requires_grad=True) for size in ((6, 5), (4, 5), (4,)))
    answers = []
    for mode in (linear_maps.FastLinear(), linear_maps.FastLinear(active=False)):
        with mode:
            z = functional.linear(x, w, b)
        u = torch.zeros_like(z, requires_grad=True)
        wanted = {"x": x, "weight": w, "bias": b}[part]
        (g,) = torch.autograd.grad(z, [wanted], u, create_graph=True)
        v = torch.randn(g.shape, generator=torch.Generator().manual_seed(1))
        answers.append(torch.autograd.grad(g, u, v)[0])
    close(*answers)


def test_what_is_not_a_plain_linear_map_is_left_to_torch(replaced):
    w = torch.randn(4, 5, requires_grad=True)
    with linear_maps.FastLinear():
        functional.linear(torch.randn(5), w)  # a vector
        functional.linear(torch.randn(3, 5), 2 * w)  # a computed weight, which may depend on the data
        functional.linear(torch.randn(3, 5).double(), w.detach().double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            functional.linear(torch.randn(3, 5), w)
    assert not replaced


class Net(nn.Module):
    """A weight that is used twice, positions, and a part that is checkpointed."""

    def __init__(self, checkpointed):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3, bias=False)
        self.scale, self.checkpointed = nn.Parameter(torch.ones(8)), checkpointed

    def forward(self, x):
        h = self.first(x).tanh() * self.scale
        h = checkpoint(self.inner, h, use_reentrant=False) if self.checkpointed else self.inner(h)
        return self.last(functional.linear(h, self.again.weight)).mean(1)

    def inner(self, h):
        return self.again(h).relu()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("form", ["implicit", "diagonal", "dense", "kfac", "gram"])
def test_operators_are_those_of_float64(replaced, form, checkpointed):
    torch.manual_seed(0)
    model, x = Net(checkpointed), torch.randn(7, 4, 6)
    y = torch.arange(7) % 3
    if form == "implicit":
        found, slopes = dynaxx.fisher(model, (x, y)), None
    else:
        found, slopes = dynaxx.fisher(model, (x, y), form=form, gradient=True)
    v = torch.randn(found.shape[0], generator=torch.Generator().manual_seed(1))
    product = found @ v
    assert len(replaced) > 1
    close(product, dynaxx.fisher(model.double(), (x.double(), y), form=form) @ v.double())
    if slopes is not None:
        loss = functional.cross_entropy(model(x.double()), y)
        expected = torch.autograd.grad(loss, list(model.parameters()))
        for (name, _), g in zip(model.named_parameters(), expected, strict=True):
            close(slopes[name], g)


def test_hessian_is_that_of_float64(replaced):
    torch.manual_seed(0)
    model, x, y = Net(False), torch.randn(7, 4, 6), torch.arange(7) % 3
    loss = nn.CrossEntropyLoss()
    found = dynaxx.hessian(model, (x, y), loss)
    v = torch.randn(found.shape[0])
    product = found @ v
    assert replaced
    close(product, dynaxx.hessian(model.double(), (x.double(), y), loss) @ v.double())


def test_gradients_of_weights_are_not_made_for_layer_outputs(replaced, monkeypatch):
    seen = []
    inner = linear_maps._Reverse.apply
    monkeypatch.setattr(linear_maps._Reverse, "apply", lambda *given: seen.append(given[3]) or inner(*given))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    dynaxx.fisher(model, torch.randn(5, 6), form="diagonal")
    assert seen
    assert not any(flag for wanted in seen for flag in wanted[1:])
