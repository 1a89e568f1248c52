import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.model.calibrate import calibrate


def test_statistics_are_those_of_the_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()  # frozen in part: the mode must come back as it was
    x = torch.randn(40, 3) * 3 + 1
    weights = [p.clone() for p in model.parameters()]
    assert calibrate(model, x) == 1
    hidden = model[0](x).detach()
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(model[1].running_var, hidden.var(0))
    assert [module.training for module in model] == [True, False, True, True]
    assert model[1].momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_batches_count_by_their_examples():
    norm = nn.BatchNorm1d(1)
    x = torch.randn(12, 1, generator=torch.Generator().manual_seed(1))
    calibrate(norm, [x[:8], x[8:]])
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    expected = (8 * x[:8].var() + 4 * x[8:].var()) / 12
    torch.testing.assert_close(norm.running_var[0], expected)


def test_repairs_what_a_mask_moved():
    """Behind a mask the old statistics are far off; calibrated, the normalised activations are standard again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)).eval()
    x = torch.randn(200, 5) + 2
    calibrate(model, x)
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(6, 5) > 0.5)
        assert float(model(x).mean(0).abs().max()) > 0.2
        calibrate(model, x)
        assert float(model(x).mean(0).abs().max()) < 1e-4
    assert calibrate(nn.Linear(2, 2), torch.ones(3, 2)) == 0


def test_single_examples_are_refused_and_nothing_is_changed():
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(3.0)
    with pytest.raises(dynaxx.InputError, match="two examples or more"):
        calibrate(norm, [torch.ones(1, 2)])
    assert norm.running_mean.tolist() == [3.0, 3.0]
