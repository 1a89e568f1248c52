"""Recipes: schedules, steps on a quadratic, compensation under any mask, damping chosen on held-out examples."""

import copy

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.compress.decision import decide
from dynaxx.compress.divergence import divergence, outputs
from dynaxx.compress.foresight import foresee, rank_correlation
from dynaxx.compress.gradual import GRID, _parted
from dynaxx.compress.recipe import Recipe
from dynaxx.compress.schedule import cubic, exponential
from dynaxx.model.calibrate import calibrate


def quadratic(seed=0):
    """A linear model at its optimum: mean NLL = const + 1/2 (w - w*)^T F (w - w*) with F = X^T X / N."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 20, dtype=torch.float64, generator=generator) @ torch.randn(
        20, 20, dtype=torch.float64, generator=generator
    )
    model = nn.Linear(20, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 20, dtype=torch.float64, generator=generator))
        return model, x, x @ model.weight.T


def loss(model, x, y):
    with torch.no_grad():
        return float(0.5 * (model(x) - y).square().mean(0).sum())


@pytest.mark.parametrize("curvature", ["dense", "rows"])
@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
def test_steps_predict_the_loss_of_a_quadratic_and_end_in_its_optimum(curvature, criterion):
    model, x, y = quadratic()
    result = dynaxx.prune(model, x, likelihood="gaussian", sparsity=0.6, criterion=criterion, compensation="obs",
                          curvature=curvature, estimator="exact", steps=5, damping=1e-10)  # fmt: skip
    keep = result.masks["weight"][0]
    assert int(keep.sum()) == 8
    best = torch.linalg.lstsq(x[:, keep], y).solution[:, 0]
    torch.testing.assert_close(result.weights["weight"][0, keep], best, rtol=1e-6, atol=1e-8)
    assert loss(result.apply(copy.deepcopy(model)), x, y) == pytest.approx(result.predicted_loss_increase, rel=1e-6)
    assert result.predicted == {"weight": pytest.approx(result.predicted_loss_increase)}


def test_looking_again_finds_a_better_set_of_weights():
    """Greedy backward elimination one weight at a time is what OBS was made for: never worse here than all at once."""
    better = 0
    for seed in range(6):
        model, x, y = quadratic(seed)
        options = {"likelihood": "gaussian", "sparsity": 0.7, "criterion": "obs", "damping": 1e-10}
        once, often = (
            loss(dynaxx.prune(model, x, steps=steps, **options).apply(copy.deepcopy(model)), x, y) for steps in (1, 14)
        )
        assert often <= once * (1 + 1e-9)
        better += often < once * 0.9
    assert better >= 4


def test_what_went_stays_away():
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double().eval(), torch.randn(40, 6).double()
    for scope in ("global", "layer", "erk"):
        first = Recipe("obs", scope=scope).prune(model, x, 0.3)
        then = Recipe("obs", scope=scope, steps=3).prune(first.apply(copy.deepcopy(model)), x, 0.7, first.masks)
        assert all(not bool((then.masks[name] & ~mask).any()) for name, mask in first.masks.items())
        assert then.sparsity == pytest.approx(0.7, abs=0.01)


def test_compensation_moves_what_stays_biases_included_and_nothing_else():
    torch.manual_seed(2)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval(), torch.randn(40, 6).double()
    plain = dynaxx.prune(model, x, sparsity=0.5, criterion="magnitude")
    moved = dynaxx.prune(model, x, sparsity=0.5, criterion="magnitude", compensation="obs")
    masked = dynaxx.prune(model, x, sparsity=0.5, criterion="obs", compensation="none")
    assert all(torch.equal(plain.masks[name], mask) for name, mask in moved.masks.items())
    assert plain.weights is None
    assert masked.weights is None
    assert set(moved.weights) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert float((moved.weights["0.bias"] - model[0].bias.detach()).abs().max()) > 1e-6
    assert sum(moved.predicted.values()) == pytest.approx(moved.predicted_loss_increase)
    # the same masks without compensation cost more, by the same curvature
    assert (
        masked.predicted_loss_increase > dynaxx.prune(model, x, sparsity=0.5, criterion="obs").predicted_loss_increase
    )
    frozen = copy.deepcopy(model)
    frozen[0].bias.requires_grad_(False)
    assert "0.bias" not in dynaxx.prune(frozen, x, sparsity=0.5, criterion="obs").weights


def test_batchnorm_is_calibrated_after_each_step_and_on_request():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(50, 6).double()
    calibrate(model.eval(), x)
    before = model[1].running_mean.clone()
    result = dynaxx.prune(model, x, sparsity=0.6, criterion="obs", steps=2)
    assert torch.equal(model[1].running_mean, before)
    stale, fresh = result.apply(copy.deepcopy(model)), result.apply(copy.deepcopy(model), data=x)
    torch.testing.assert_close(fresh[1].running_mean, fresh[0](x).mean(0), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(stale[1].running_mean, fresh[1].running_mean)


@pytest.mark.parametrize("whole", [True, False])
def test_damping_is_chosen_on_examples_the_curvature_has_not_seen(whole):
    torch.manual_seed(4)
    model, x = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double().eval(), torch.randn(40, 6).double()
    data = x if whole else list(x.split(7))
    seen, held = _parted(model, data)
    join = lambda parts: torch.cat(list(parts))
    assert torch.equal(torch.cat([join(seen), join(held)]), x)
    assert len(join(held)) == 10
    result = dynaxx.prune(model, data, sparsity=0.7, criterion="obs", damping="auto")
    dense, far = outputs(model, held), {}
    recipe = Recipe("obs")
    found = recipe.saliency(model, seen)
    unit = found.curvature.trace() / found.curvature.size
    for factor in GRID:
        pruned = Recipe("obs", damping=factor * unit).prune(model, seen, 0.7).apply(copy.deepcopy(model))
        far[factor] = float(divergence(dense, outputs(pruned, held)).mean())
    best = min(far, key=far.get)
    assert result.report["dampings"] == [pytest.approx(best * unit)]
    assert len(set(far.values())) == len(GRID)


def test_divergence_is_twice_differentiable_into_fisher():
    """KL(w || w + e d) = e^2/2 d^T F d: what is predicted is what is measured, to third order."""
    torch.manual_seed(5)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval(), torch.randn(20, 4).double()
    F, step = dynaxx.fisher(model, x), 1e-4
    direction = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += step * direction[name]
    far = float(divergence(outputs(model, x), outputs(moved, x)).mean())
    assert far == pytest.approx(0.5 * step**2 * float(F.quadratic(direction)), rel=1e-2)


def test_predictions_are_exact_on_a_quadratic_layer_by_layer():
    model, x, _ = quadratic(3)
    for recipe in (Recipe("obs", likelihood="gaussian", damping=1e-12), Recipe("obs", likelihood="gaussian",
                   damping=1e-12, compensation="none")):  # fmt: skip
        for row in foresee(recipe, model, x, sparsities=(0.3, 0.6, 0.9)):
            assert row.predicted == pytest.approx(row.measured, rel=1e-7)


def test_predictions_rank_layers_and_sparsities_of_a_trained_net():
    """Spearman's correlation over 3 layers x 5 sparsities of a net trained on digits."""
    from sklearn.datasets import load_digits

    from dynaxx.compress.training import fit

    digits = load_digits()
    x, y = torch.as_tensor(digits.data / 16, dtype=torch.float32), torch.as_tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    fit(model, list(zip(x[:1200].split(40), y[:1200].split(40), strict=True)), epochs=15, lr=0.1)
    for recipe in (Recipe("obd"), Recipe("obs", curvature="rows")):
        rows = foresee(recipe, model.eval(), x[:400], (0.2, 0.4, 0.6, 0.8, 0.9), held=x[1200:])
        assert [row.layer for row in rows][::5] == ["0.weight", "2.weight", "4.weight", "all"]
        assert rank_correlation([row for row in rows if row.layer != "all"]) > 0.85
        assert rank_correlation([row for row in rows if row.layer == "all"]) == pytest.approx(1.0)


def test_schedules_end_where_they_should():
    for schedule in (cubic, exponential):
        values = schedule(0.9, 10, 0.2)
        assert values[-1] == 0.9
        assert values == sorted(values)
        assert values[0] > 0.2
        assert schedule(0.5, 1) == [0.5]


def test_a_result_keeps_its_predictions(tmp_path):
    model, x, _ = quadratic()
    result = dynaxx.prune(model, x, likelihood="gaussian", sparsity=0.5, criterion="obs", steps=2)
    again = dynaxx.PruningResult.load(result.save(tmp_path / "result"))
    assert again.predicted == result.predicted
    assert again.report == result.report
    assert again.report["layers"][0]["predicted"] == pytest.approx(result.predicted_loss_increase)


def test_bad_input():
    model, x, _ = quadratic()
    with pytest.raises(dynaxx.InputError, match="steps=0"):
        dynaxx.prune(model, x, sparsity=0.5, steps=0)
    with pytest.raises(dynaxx.InputError, match="damping='auto' chooses"):
        dynaxx.prune(model, x, sparsity=0.5, damping="auto")
    with pytest.raises(dynaxx.InputError, match="damping='small'"):
        dynaxx.prune(model, x, sparsity=0.5, damping="small")
    with pytest.raises(dynaxx.InputError, match="7 examples"):
        dynaxx.prune(model, x[:7], likelihood="gaussian", sparsity=0.5, criterion="obs", damping="auto")
    with pytest.raises(dynaxx.InputError, match="curvature='kfac' says how weights make up for each other"):
        dynaxx.prune(model, x, sparsity=0.5, curvature="kfac")
    with pytest.raises(dynaxx.InputError, match="compensation='yes'"):
        dynaxx.prune(model, x, sparsity=0.5, compensation="yes")
    with pytest.raises(dynaxx.InputError, match="sparsity is missing"):
        dynaxx.prune(model, x)
    with pytest.raises(dynaxx.InputError, match="needs data"):
        dynaxx.prune(model, None, sparsity=0.5, criterion="magnitude", compensation="obs")
    with pytest.raises(dynaxx.InputError, match="'magnitude' predicts nothing"):
        foresee(Recipe("magnitude"), model, x)
    with pytest.raises(dynaxx.InputError, match="one step"):
        foresee(Recipe("obs", steps=2), model, x)


def test_decide_serves_several_sparsities():
    model, x, _ = quadratic()
    recipe = Recipe("obs", likelihood="gaussian")
    found = recipe.saliency(model, x)
    for sparsity, result in zip((0.3, 0.6), recipe.several(model, x, (0.3, 0.6)), strict=True):
        assert torch.equal(result.masks["weight"], decide(found, sparsity).masks["weight"])


def test_the_default_curvature_is_dense_while_it_is_small_and_kfac_beyond():
    from dynaxx.compress.criteria import saliency
    from dynaxx.compress.curvature.base import Parts
    from dynaxx.compress.curvature.blocks import Blocks

    for width, kind in ((4, Blocks), (300, Parts)):
        model = nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 3)).eval()
        assert type(saliency("obs", model, torch.randn(10, 16)).curvature) is kind
