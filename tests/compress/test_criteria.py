"""Saliencies on models whose loss is exactly quadratic, so that predictions can be held against the loss itself."""

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.compress.criteria import saliency
from dynaxx.likelihoods import Gaussian


def quadratic(orthogonal: bool, seed: int = 0):
    """A linear model at its optimum: mean NLL = const + 1/2 (w - w*)^T F (w - w*) with F = X^T X / N."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 8, dtype=torch.float64, generator=generator)
    if orthogonal:
        x = torch.linalg.qr(x).Q * torch.linspace(1, 5, 8, dtype=torch.float64)
    model = nn.Linear(8, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 8, dtype=torch.float64, generator=generator))
        return model, x, x @ model.weight.T


def loss(model, x, y):
    with torch.no_grad():
        return float(0.5 * (model(x) - y).square().mean(0).sum())


def test_obd_predicts_the_increase_of_a_separable_quadratic_loss():
    model, x, y = quadratic(orthogonal=True)
    result = dynaxx.prune(model, x, likelihood="gaussian", sparsity=0.5, criterion="obd")
    expected = 0.5 * (x.square().mean(0) * model.weight[0].detach().square())
    torch.testing.assert_close(result.scores["weight"][0], expected, rtol=1e-10, atol=0)
    result.apply(model)
    assert loss(model, x, y) == pytest.approx(result.predicted_loss_increase, rel=1e-9)
    assert result.predicted_loss_increase == pytest.approx(float(expected.sort().values[:4].sum()), rel=1e-9)


def test_joint_obs_is_the_constrained_optimum():
    model, x, y = quadratic(orthogonal=False)
    result = dynaxx.prune(model, x, likelihood="gaussian", sparsity=0.5, criterion="obs", damping=1e-12)
    keep = result.masks["weight"][0]
    best = torch.linalg.lstsq(x[:, keep], y).solution[:, 0]
    torch.testing.assert_close(result.weights["weight"][0, keep], best, rtol=1e-8, atol=1e-10)
    assert float(result.weights["weight"][0, ~keep].abs().max()) == 0.0
    result.apply(model)
    assert loss(model, x, y) == pytest.approx(result.predicted_loss_increase, rel=1e-7)


def test_single_obs_score_is_the_increase_of_the_best_refit_without_that_weight():
    model, x, y = quadratic(orthogonal=False, seed=1)
    scores = saliency("obs", model, x, likelihood="gaussian", damping=1e-12).scores["weight"][0]
    for i in range(8):
        rest = [j for j in range(8) if j != i]
        residual = y - x[:, rest] @ torch.linalg.lstsq(x[:, rest], y).solution
        assert float(scores[i]) == pytest.approx(float(0.5 * residual.square().mean()), rel=1e-7)


def test_obs_beats_its_own_mask_without_compensation():
    model, x, y = quadratic(orthogonal=False, seed=2)
    result = dynaxx.prune(model, x, likelihood="gaussian", sparsity=0.5, criterion="obs", damping=1e-10)
    bare = nn.Linear(8, 1, bias=False).double()
    bare.load_state_dict(model.state_dict())
    with torch.no_grad():
        bare.weight.mul_(result.masks["weight"])
    result.apply(model)
    assert loss(model, x, y) < loss(bare, x, y)


def test_gaussian_variance_scales_saliency():
    model, x, _ = quadratic(orthogonal=False)
    one, half = (saliency("obd", model, x, likelihood=Gaussian(variance=v)).scores["weight"] for v in (1.0, 0.5))
    torch.testing.assert_close(half, 2 * one)


def classifier():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval(), torch.randn(20, 5).double()


def test_controls_and_magnitude():
    model, x = classifier()
    weight = model[0].weight.detach()
    assert torch.equal(saliency("magnitude", model, None).scores["0.weight"], weight.abs())
    diagonal = dynaxx.fisher(model, x, form="diagonal")
    fisher = saliency("fisher", model, x).scores
    torch.testing.assert_close(fisher["2.weight"], diagonal.unravel(diagonal.diagonal())["2.weight"])
    first, again, other = (saliency("random", model, None, seed=s).scores["0.weight"] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dead_units_are_ranked_by_magnitude():
    model, x = classifier()
    with torch.no_grad():
        model[0].bias[0] = -1e6  # unit 0 never fires: its weights have no curvature
    result = dynaxx.prune(model, x, sparsity=4 / 48, criterion="obd")
    dead = torch.cat([model[0].weight[0], model[2].weight[:, 0]]).detach().abs()  # 5 in, 3 out, all of zero saliency
    kept = torch.cat([result.masks["0.weight"][0], result.masks["2.weight"][:, 0]])
    assert int((~kept).sum()) == 4
    assert float(dead[~kept].max()) < float(dead[kept].min())
    assert any("no curvature" in remark for remark in result.report["remarks"])


def test_large_damping_turns_obd_into_magnitude():
    model, x = classifier()
    masks = [
        dynaxx.prune(model, x, sparsity=0.5, criterion=c, damping=d).masks
        for c, d in (("obd", 1e9), ("magnitude", None))
    ]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[1])


def test_pruning_leaves_the_model_alone():
    model, x = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    for criterion in ("magnitude", "obd", "obs", "fisher", "random"):
        dynaxx.prune(model, x, sparsity=0.5, criterion=criterion)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_bad_input(monkeypatch):
    model, x = classifier()
    with pytest.raises(dynaxx.InputError, match=r"sparsity=80.*give 0\.8"):
        dynaxx.prune(model, x, sparsity=80)
    with pytest.raises(dynaxx.InputError, match="criterion='wanda'"):
        dynaxx.prune(model, x, sparsity=0.5, criterion="wanda")
    with pytest.raises(dynaxx.InputError, match="needs data"):
        dynaxx.prune(model, None, sparsity=0.5)
    with pytest.raises(dynaxx.InputError, match="singular"):
        dynaxx.prune(model, x, sparsity=0.5, criterion="obs", damping=0.0)
    with pytest.raises(dynaxx.InputError, match="no weight with two axes"):
        dynaxx.prune(nn.BatchNorm1d(5), x, sparsity=0.5)
    monkeypatch.setattr("dynaxx.errors._free_memory", lambda: 1e4)
    with pytest.raises(dynaxx.SizeError, match="criterion='obd'"):
        dynaxx.prune(model, x, sparsity=0.5, criterion="obs")
