"""SNIP, GraSP and SynFlow against their definitions, by finite differences and by hand."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

import dynaxx
from dynaxx.compress.criteria import saliency


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    return model, torch.randn(12, 5).double(), torch.randint(3, (12,))


def gradient(model, x, y, temperature=1.0):
    loss = functional.cross_entropy(model(x) / temperature, y)
    return torch.autograd.grad(loss, [model[0].weight, model[2].weight])


def test_snip_is_the_first_order_change(case):
    model, x, y = case
    scores = saliency("snip", model, list(zip(x.split(5), y.split(5), strict=True))).scores
    for name, weight, g in zip(scores, (model[0].weight, model[2].weight), gradient(model, x, y), strict=True):
        torch.testing.assert_close(scores[name], (weight * g).abs().detach(), rtol=1e-10, atol=1e-14)


def test_grasp_is_the_change_of_the_squared_gradient_norm(case):
    """d/ds |g(w)|^2 / 2 along weight i is (H g)_i; taking it away changes the norm by -w_i (H g)_i to first order."""
    model, x, y = case
    scores = saliency("grasp", model, list(zip(x.split(5), y.split(5), strict=True))).scores
    step = 1e-5
    for name, weight in (("0.weight", model[0].weight), ("2.weight", model[2].weight)):
        for place in ((0, 0), (2, 3)):
            norms = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[place] += sign * step
                norms.append(sum(float(g.square().sum()) for g in gradient(model, x, y, 200.0)) / 2)
                with torch.no_grad():
                    weight[place] -= sign * step
            slope = (norms[0] - norms[1]) / (2 * step)
            assert float(scores[name][place]) == pytest.approx(float(weight[place].detach()) * slope, rel=1e-5)


def test_synflow_of_a_linear_chain_by_hand(case):
    _, x, _ = case
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)).eval()
    scores = saliency("synflow", model, x.float()).scores
    first, second = model[0].weight.detach().double().abs(), model[1].weight.detach().double().abs()
    torch.testing.assert_close(scores["0.weight"], first * second.sum(0)[:, None], rtol=1e-10, atol=0)
    torch.testing.assert_close(scores["1.weight"], second * first.sum(1)[None], rtol=1e-10, atol=0)
    assert model[0].weight.dtype == torch.float32


def test_synflow_empties_no_layer(case):
    """Its published point: at 97 % of a deep chain with one narrow layer, every layer keeps weights."""
    torch.manual_seed(1)
    sizes = [20, 20, 3, 20, 20]
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    result = dynaxx.prune(model, torch.randn(4, 20), sparsity=0.97, criterion="synflow")
    assert result.report["steps"] == 100
    assert all(row["kept"] > 0 for row in result.report["layers"])
    assert result.kept == round(0.03 * 920)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_bad_input(case):
    model, x, _ = case
    frozen = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(dynaxx.InputError, match="do not require grad"):
        dynaxx.prune(frozen, (x, torch.zeros(12).long()), sparsity=0.5, criterion="snip", params=["0.weight"])
    with pytest.raises(dynaxx.InputError, match="no labels"):
        dynaxx.prune(model, x, sparsity=0.5, criterion="snip")
    with pytest.raises(dynaxx.InputError, match="needs data"):
        dynaxx.prune(model, None, sparsity=0.5, criterion="synflow")
    with pytest.raises(dynaxx.InputError, match="feeds ones"):
        dynaxx.prune(
            nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)), torch.arange(3), sparsity=0.5, criterion="synflow"
        )
