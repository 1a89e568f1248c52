import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import dynaxx
from dynaxx import PruningResult


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    return model, torch.randn(30, 6)


@pytest.mark.parametrize("criterion", ["obd", "obs"])
def test_modes_agree_and_optimizers_go_on(case, criterion):
    model, x = case
    result = dynaxx.prune(model, x, sparsity=0.6, criterion=criterion)
    outputs = {}
    for mode in ("zero", "prune", "parametrize"):
        mine = copy.deepcopy(model)
        optimizer = torch.optim.Adam(mine.parameters(), lr=0.1)
        mine(x).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, original in zip(mine.parameters(), model.parameters(), strict=True):
                parameter.copy_(original)
        assert result.apply(mine, mode) is mine
        outputs[mode] = mine(x).detach()
        assert float((mine[0].weight == 0).double().mean()) > 0.3
        optimizer.zero_grad()
        mine(x).square().sum().backward()
        before = mine(x).detach()
        optimizer.step()  # the state made before pruning still belongs to these parameters
        assert not torch.equal(before, mine(x).detach())
        if mode != "zero":
            mask = result.masks["0.weight"]
            assert float(mine[0].weight[~mask].detach().abs().max()) == 0.0
    assert torch.equal(outputs["zero"], outputs["prune"])
    assert torch.equal(outputs["zero"], outputs["parametrize"])
    assert not torch.equal(outputs["zero"], model(x))


def test_modes_leave_their_usual_marks(case):
    model, x = case
    result = dynaxx.prune(model, x, sparsity=0.5)
    assert prune.is_pruned(result.apply(copy.deepcopy(model), "prune"))
    assert parametrize.is_parametrized(result.apply(copy.deepcopy(model), "parametrize")[0], "weight")
    zeroed = result.apply(copy.deepcopy(model))
    assert not prune.is_pruned(zeroed)
    assert (result.kept, result.prunable, result.sparsity) == (36, 72, 0.5)
    assert sum(int((zeroed[i].weight != 0).sum()) for i in (0, 2)) == 36


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_save_and_load(case, criterion, tmp_path):
    model, x = case
    result = dynaxx.prune(model, x, sparsity=0.5, criterion=criterion)
    again = PruningResult.load(result.save(tmp_path / "deep" / "masks.safetensors"))
    assert repr(again) == repr(result)
    assert again.report == result.report
    assert list(again.masks) == list(result.masks)
    for part in ("masks", "scores"):
        assert all(torch.equal(getattr(again, part)[name], value) for name, value in getattr(result, part).items())
    assert torch.equal(again.apply(copy.deepcopy(model))(x), result.apply(copy.deepcopy(model))(x))


def test_bad_files(case, tmp_path):
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(dynaxx.InputError, match="cannot read a pruning result"):
        PruningResult.load(tmp_path / "junk")
    operator = dynaxx.fisher(*case, form="diagonal").save(tmp_path / "operator")
    with pytest.raises(dynaxx.InputError, match="holds no pruning result"):
        PruningResult.load(operator)
    result = dynaxx.prune(*case, sparsity=0.5)
    (tmp_path / "file").write_text("")
    with pytest.raises(dynaxx.InputError, match="cannot write"):
        result.save(tmp_path / "file" / "below")


def test_what_does_not_fit_changes_nothing(case):
    model, x = case
    result = dynaxx.prune(model, x, sparsity=0.5)
    other = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    before = other[0].weight.detach().clone()
    with pytest.raises(dynaxx.InputError, match=r"'2.weight' has shape \(4, 8\)"):
        result.apply(other)
    with pytest.raises(dynaxx.InputError, match="mode='delete'"):
        result.apply(model, "delete")
    assert torch.equal(other[0].weight, before)
    with pytest.raises(dynaxx.InputError, match=r"does not have"):
        result.apply(result.apply(copy.deepcopy(model), "prune"), "prune")


def test_tied_weights_stay_tied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).eval()
    model[2].weight = model[0].weight
    result = dynaxx.prune(model, torch.randn(10, 4), sparsity=0.5)
    assert result.prunable == 16
    with pytest.raises(dynaxx.InputError, match=r"shared by .*mode='zero'"):
        result.apply(model, "prune")
    result.apply(model)
    assert model[2].weight is model[0].weight
    assert int((model[2].weight == 0).sum()) == 8
