"""Products through oneDNN against float64, in every layout, and what is built on them."""

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx import matmul
from dynaxx.model.rules import convolution
from dynaxx.model.rules.convolution import ConvolutionWeight

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN product",
)


@pytest.fixture
def fast(monkeypatch):
    """As on a processor that has faster products, and for the smallest of them."""
    called = []
    inner = matmul._linear
    monkeypatch.setattr(matmul, "has_faster_products", lambda: True)
    monkeypatch.setattr(matmul, "LEAST", 1)
    monkeypatch.setattr(matmul, "_linear", lambda a, b: called.append(1) or inner(a, b))
    return called


def layouts(rows, columns, seed):
    """The same kind of matrix by rows, by columns, and as slices of larger ones."""
    generator = torch.Generator().manual_seed(seed)
    yield torch.randn(rows, columns, generator=generator)
    yield torch.randn(columns, rows, generator=generator).T
    yield torch.randn(rows + 5, columns + 7, generator=generator)[2:-3, 3:-4]
    yield torch.randn(columns + 5, rows + 7, generator=generator)[2:-3, 3:-4].T
    yield torch.randn(rows, 2 * columns, generator=generator)[:, ::2]


@needs_onednn
@pytest.mark.parametrize("sizes", [(33, 20, 17), (1, 5, 3), (64, 1, 2)], ids=str)
def test_products_in_every_layout(fast, sizes):
    m, k, n = sizes
    for a in layouts(m, k, 0):
        for b in layouts(k, n, 1):
            exact, bound = a.double() @ b.double(), 1e-6 * float(a.norm() * b.norm())
            assert float((matmul.matmul(a, b) - exact).abs().max()) <= bound
            for total in layouts(m, n, 2):
                before = total.double()
                added = matmul.add_product(total.clone(), a, b)
                assert float((added - before - exact).abs().max()) <= bound + 1e-6 * float(before.norm())
                fresh = torch.full_like(total, torch.nan)
                assert matmul.add_product(fresh, a, b, beta=0) is fresh
                assert float((fresh - exact).abs().max()) <= bound
    assert len(fast) == 25 * 11


@needs_onednn
def test_only_what_gains_takes_the_other_way(fast):
    a = torch.randn(4, 4)
    for left, right in ((a.double(), a.double()), (a[None], a[None]), (a, torch.randn(2, 4, 4)), (a.bfloat16(),) * 2):
        assert matmul.matmul(left, right).equal(left @ right)
    w = torch.randn(4, 4, requires_grad=True)
    matmul.matmul(w, a).sum().backward()
    torch.testing.assert_close(w.grad, a.sum(1).expand(4, 4))
    assert not fast
    with torch.no_grad():
        matmul.matmul(w, a)
    assert len(fast) == 1


def test_small_products_are_torchs(monkeypatch):
    monkeypatch.setattr(matmul, "LEAST", 2**24)
    monkeypatch.setattr(matmul, "_linear", None)
    monkeypatch.setattr(matmul, "has_faster_products", lambda: True)
    a = torch.randn(255, 256)
    assert matmul.matmul(a, a.T).equal(a @ a.T)
    assert matmul.sliceable(a.T).data_ptr() == a.data_ptr()


@needs_onednn
@pytest.mark.parametrize("form", ["diagonal", "kfac", "gram"])
def test_operators_are_the_same_either_way(fast, form):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(150, 40), nn.Tanh())
    model = nn.Sequential(*model, nn.Linear(40, 4))
    x, v = torch.randn(7, 16, 5, 5), torch.randn(sum(p.numel() for p in model.parameters()))
    found = dynaxx.fisher(model, x, form=form)
    given = found @ v if form != "kfac" else found.solve(v, damping=0.1, method="factored")
    assert fast
    exact = dynaxx.fisher(model.double(), x.double(), form=form)
    expected = exact @ v.double() if form != "kfac" else exact.solve(v.double(), damping=0.1, method="factored")
    torch.testing.assert_close(given.double(), expected, rtol=1e-3, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: nn.Conv1d(40, 6, 5, stride=3, dilation=2), (31,)),
        (lambda: nn.Conv2d(16, 6, 3, stride=2), (9, 8)),
        (lambda: nn.Conv3d(8, 3, 2), (4, 3, 5)),
    ],
    ids=["1d", "2d", "3d"],
)
def test_gradients_of_single_images_are_the_same_either_way(monkeypatch, make, size):
    torch.manual_seed(0)
    layer = make()
    rule, a = ConvolutionWeight(layer), torch.randn(19, layer.in_channels, *size)
    g = torch.randn(2, 19, *layer(a).shape[1:])
    called, found = [], {}
    inner = rule._grouped
    monkeypatch.setattr(rule, "_grouped", lambda *given: called.append(1) or inner(*given))
    for quick in (False, True):
        monkeypatch.setattr(convolution, "has_faster_products", lambda quick=quick: quick)
        found[quick] = [rule.squares(a, g), super(ConvolutionWeight, rule).norms(a, g), rule.gradients(a, g)]
        found[quick].append(rule.inner(a, g, a, g))
        assert bool(called) == quick
    expected = ConvolutionWeight(layer.double()).gradients(a.double(), g.double())
    for squares, norms, gradients, inner in found.values():
        torch.testing.assert_close(gradients.double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(squares.double(), expected.square().sum((0, 1)), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(norms.double(), expected.flatten(2).square().sum(2), rtol=1e-4, atol=1e-3)
        rows = expected.flatten(2).flatten(0, 1)
        torch.testing.assert_close(inner.flatten(2).flatten(0, 1).tril(), (rows @ rows.T).tril(), rtol=1e-4, atol=1e-2)
