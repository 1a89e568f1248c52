"""fisher(..., gradient=True): the gradient of the mean loss from the pass that makes the metric."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import dynaxx
from dynaxx.errors import InputError


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("estimator", ["exact", "hutchinson", "empirical"])
def test_is_autograds_gradient_of_the_mean_loss_whatever_the_batches(estimator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).double()
    x, y = torch.randn(7, 1, 6, 6).double(), torch.randint(4, (7,))
    wanted = torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    for data in ((x, y), [(x[:3], y[:3]), (x[3:], y[3:])]):
        (kfac, diagonal), found = dynaxx.fisher(
            model, data, form=("kfac", "diagonal"), estimator=estimator, gradient=True
        )
        assert list(found) == [name for name, _ in model.named_parameters()]
        assert max(relative(a, b) for a, b in zip(found.values(), wanted, strict=True)) < 1e-12
        alone = dynaxx.fisher(model, data, form="kfac", estimator=estimator)
        assert torch.equal(kfac.diagonal(), alone.diagonal())  # the sweep itself is as it was
        assert diagonal.count == 7
    assert all(parameter.grad is None for parameter in model.parameters())


def test_masked_positions_and_weights_count_as_in_the_metric():
    """Positions are summed, masked ones left out, weights multiply; the mean is over examples."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 11)).double()
    ids, labels = torch.randint(11, (4, 6)), torch.randint(11, (4, 6))
    labels[0, 2:] = -100
    loss = functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="sum") / 4
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    _, found = dynaxx.fisher(model, (ids, labels), form="diagonal", estimator="monte_carlo", gradient=True)
    assert max(relative(a, b) for a, b in zip(found.values(), wanted, strict=True)) < 1e-12

    weights = torch.tensor([0.5, 2.0, 0.0, 1.0]).double()
    clean = labels.clamp(min=0)
    each = functional.cross_entropy(model(ids).flatten(0, 1), clean.flatten(), reduction="none").view(4, 6).sum(1)
    wanted = torch.autograd.grad((weights * each).sum() / 4, list(model.parameters()))
    _, found = dynaxx.fisher(model, (ids, clean, weights), form="diagonal", estimator="empirical", gradient=True)
    assert max(relative(a, b) for a, b in zip(found.values(), wanted, strict=True)) < 1e-12


def test_one_natural_step_solves_least_squares():
    """On a linear model with a Gaussian likelihood the loss is quadratic and F is its Hessian."""
    torch.manual_seed(2)
    model = nn.Linear(5, 2).double()
    x, y = torch.randn(40, 5).double(), torch.randn(40, 2).double()
    F, g = dynaxx.fisher(model, (x, y), likelihood="gaussian", form="dense", gradient=True)
    step = F.solve(g, damping=1e-13)
    design = torch.cat([x, x.new_ones(40, 1)], 1)
    best = torch.linalg.lstsq(design, y).solution
    assert relative(model.weight.detach() - step["weight"], best[:5].T) < 1e-10
    assert relative(model.bias.detach() - step["bias"], best[5]) < 1e-10


def test_parameters_that_the_output_does_not_use_have_gradient_zero():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 2), nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.used(x)

    _, g = dynaxx.fisher(Spare(), (torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])), form="diagonal", gradient=True)
    assert torch.equal(g["spare"], torch.zeros(4))
    assert float(g["used.weight"].norm()) > 0
    _, alone = dynaxx.fisher(
        Spare(), (torch.randn(5, 3), torch.zeros(5).long()), form="diagonal", params=["spare"], gradient=True
    )
    assert torch.equal(alone["spare"], torch.zeros(4))


def test_bad_input():
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    with pytest.raises(InputError, match="labels"):
        dynaxx.fisher(model, x, form="diagonal", gradient=True)
    with pytest.raises(InputError, match="implicit"):
        dynaxx.fisher(model, (x, torch.zeros(5).long()), gradient=True)


def test_observed_labels_need_no_reverse_pass_of_their_own(monkeypatch):
    """The scores that make the empirical metric are the loss's gradient at the outputs."""
    made, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: made.append(1) or grad(*a, **k))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    dynaxx.fisher(model, data, form="kfac", estimator="empirical", gradient=True)
    assert len(made) == 1
    dynaxx.fisher(model, data, form="kfac", estimator="monte_carlo", gradient=True)
    assert len(made) == 1 + 2


def test_bare_and_generic_parameters_from_the_shared_pass():
    """Where a parameter belongs to no layer, and where a layer has no rule."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.scale, self.second = nn.Linear(3, 4), nn.Parameter(torch.rand(4)), nn.Bilinear(4, 4, 2)

        def forward(self, x):
            h = torch.tanh(self.first(x)) * self.scale
            return self.second(h, h)

    torch.manual_seed(3)
    model, x, y = Mixed().double(), torch.randn(6, 3).double(), torch.randint(2, (6,))
    wanted = torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    F, found = dynaxx.fisher(model, (x, y), form="diagonal", estimator="empirical", gradient=True)
    assert max(relative(a, b) for a, b in zip(found.values(), wanted, strict=True)) < 1e-12
    alone = dynaxx.fisher(model, (x, y), form="diagonal", estimator="empirical")
    assert torch.equal(F.diagonal(), alone.diagonal())
