import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.compress.scoring import evaluate
from dynaxx.compress.training import fit


def data():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    return [(x[i : i + 10], (x[i : i + 10, 0] > 0).long()) for i in range(0, 40, 10)]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def test_one_step_is_gradient_descent_on_the_penalised_mean_loss():
    net = nn.Linear(6, 2).double()
    (x, y) = data()[0]
    before = net.weight.detach().clone()
    loss = nn.functional.cross_entropy(net(x.double()), y) + 0.05 * sum(p.square().sum() for p in net.parameters())
    (gradient, _) = torch.autograd.grad(loss, list(net.parameters()))
    (epoch,) = fit(net, [(x.double(), y)], epochs=1, lr=0.3, weight_decay=0.1)
    torch.testing.assert_close(net.weight, before - 0.3 * gradient)
    assert (epoch.number, epoch.step, epoch.lr) == (1, 1, 0.3)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_masked_weights_stay_zero(optimizer):
    net = model()
    mask = torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    fit(
        net,
        data(),
        epochs=3,
        lr=0.05,
        masks={"0.weight": mask},
        weight_decay=1e-3,
        optimizer=lambda p, lr: optimizer(p, lr),
    )
    assert float(net[0].weight[~mask].abs().max()) == 0.0
    assert int((net[0].weight == 0).sum()) == int((~mask).sum())


def test_repeats_bit_for_bit_and_leaves_random_state():
    nets, state = [model(), model()], torch.random.get_rng_state()
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    fit(nets[0], data(), epochs=2, lr=0.1, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(5)
    fit(nets[1], data(), epochs=2, lr=0.1, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    torch.random.set_rng_state(state)


def test_interruption_keeps_masks_and_modes():
    net = model().eval()
    mask = torch.zeros(8, 6, dtype=torch.bool)

    def stop(epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(net, data(), epochs=5, lr=0.1, masks={"0.weight": mask}, callback=stop)
    assert float(net[0].weight.abs().max()) == 0.0
    assert not net.training
    assert net[3].weight.grad is None


def test_learns_and_scores():
    net = model()
    before = evaluate(net, data())
    fit(net, data(), epochs=30, lr=0.1)
    after = evaluate(net, data())
    assert after.score > max(before.score, 0.9)
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    net.eval()
    assert after.loss == pytest.approx(float(nn.functional.cross_entropy(net(x), y).detach()), rel=1e-6)
    assert after.score == float((net(x).argmax(1) == y).double().mean())


def test_bad_input():
    with pytest.raises(dynaxx.InputError, match=r"mask of '9.weight'"):
        fit(model(), data(), epochs=1, lr=0.1, masks={"9.weight": torch.ones(2)})
    with pytest.raises(dynaxx.InputError, match="lr=-1"):
        fit(model(), data(), epochs=1, lr=-1)
    with pytest.raises(dynaxx.InputError, match="no labels"):
        fit(model(), [data()[0][0]], epochs=1, lr=0.1)
