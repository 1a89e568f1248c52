import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dynaxx
from dynaxx.monitor import Baseline, Monitor, MonitorWarning, Probe, drift, stability
from dynaxx.monitor.actions import LowerLearningRate, RaiseWeightDecay, SaveWeights, Stop
from dynaxx.monitor.economy import economy
from dynaxx.monitor.signals import Alarm, NotFinite
from dynaxx.monitor.stability import Steps
from dynaxx.monitor.standard import standard
from dynaxx.monitor.subject import Subject
from dynaxx.track import Store

ALARM = Alarm("edge of stability", 7, 2.0, 1.5, "", "info")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def data(count=60, seed=0, scale=1.0):
    return scale * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 3


def test_nothing_is_done_unless_asked_for():
    monitor = Monitor(model(), data())
    with pytest.warns(MonitorWarning):
        monitor.observe(loss=float("nan"))
    assert not monitor.should_stop
    monitor = Monitor(model(), data(), signals=[NotFinite(actions=[Stop()])])
    with pytest.warns(MonitorWarning):
        monitor.observe(loss=float("nan"))
    assert monitor.should_stop


def test_weight_decay_and_learning_rate():
    net = model()
    groups = [{"params": net[0].parameters(), "weight_decay": 0.06}, {"params": net[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    monitor = Monitor(net, data()).attach(optimizer)
    RaiseWeightDecay(2.0, most=0.1)(monitor, ALARM)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0]
    LowerLearningRate(share=0.8)(monitor, ALARM)  # at twice the limit: 0.8 of it is at 0.4 of the rate
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.04, 0.04])
    LowerLearningRate(least=0.5)(monitor, Alarm("", 0, 100.0, 1.0, "", "info"))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    LowerLearningRate()(monitor, Alarm("", 0, 0.1, 1.0, "", "info"))  # never raises it
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)


def test_saved_weights(tmp_path):
    net = model()
    action = SaveWeights(tmp_path / "weights", keep=2)
    with Monitor(net, data(), store=tmp_path / "a.db") as monitor:
        for step in (1, 2, 3):
            action(monitor, Alarm("divergence", step, 1.0, 1.0, "", "error"))
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [
        "step-2.safetensors",
        "step-3.safetensors",
    ]
    for name, value in load_file(tmp_path / "weights" / "step-3.safetensors").items():
        assert torch.equal(value, net.state_dict()[name])
    with Store(tmp_path / "a.db", readonly=True) as store:
        run = store.runs()[0].id
        assert [version.name for version in store.model_versions(run)] == ["step-1", "step-2", "step-3"]
        assert store.artifact(run, "weights/step-3")[:8] != b""


def test_bad_options(tmp_path):
    for wrong in (
        lambda: RaiseWeightDecay(0),
        lambda: LowerLearningRate(share=2),
        lambda: LowerLearningRate(least=0),
        lambda: SaveWeights(tmp_path, keep=0),
    ):
        with pytest.raises(dynaxx.InputError):
            wrong()


# ---------------------------------------------------------------------------------------------------------------------
# How sharp a loss an optimizer can stand, on quadratics


def shrinks(make, curvature, steps=400):
    """Whether an optimizer brings w to zero on curvature / 2 * w^2."""
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = make([w])
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * curvature * w**2).backward()
        optimizer.step()
    return abs(w.item()) < 1.0


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5}],
)
def test_limits_are_where_a_quadratic_stops_shrinking(options):
    make = lambda p: torch.optim.SGD(p, lr=0.05, **options)
    limit = stability.least_limit(make([torch.zeros(1, requires_grad=True)]))
    assert shrinks(make, 0.98 * limit)
    assert not shrinks(make, 1.02 * limit)


def test_limit_of_adam_for_a_fixed_preconditioner():
    """Gradient descent with an exponential average of gradients and a constant P: the bound of Cohen et al."""
    rate, beta = 0.05, 0.9
    limit = stability.limit({"lr": rate, "betas": (beta, 0.999)})
    for factor, stable in ((0.98, True), (1.02, False)):
        w, m = 1.0, 0.0
        for _ in range(2000):
            m = beta * m + (1 - beta) * factor * limit * w
            w -= rate * m
        assert (abs(w) < 1) == stable


def test_preconditioner_is_what_adam_divides_by():
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    assert stability.preconditioner(optimizer, net) is None
    x, y = data()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    found = stability.preconditioner(optimizer, net)
    # after one step v = (1 - b2) g^2, so corrected it is g^2
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], p.grad.abs() + 1e-8)
    assert stability.preconditioner(torch.optim.SGD(net.parameters(), lr=0.1), net) is None


def test_full_look_has_the_preconditioned_curvature():
    net, (x, y) = model().double(), data()
    x = x.double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    monitor = Monitor(net, (x, y), preset="full").attach(optimizer)
    H = dynaxx.hessian(net, (x, y), nn.CrossEntropyLoss())
    P = H.ravel(stability.preconditioner(optimizer, net))
    scaled = P.rsqrt()[:, None] * H.to_dense() * P.rsqrt()
    wanted = float(torch.linalg.eigvalsh(scaled)[-1])
    assert monitor.history[0].values["dynaxx/hessian/preconditioned"] == pytest.approx(wanted, rel=1e-6)
    assert monitor.history[0].values["dynaxx/stability_limit"] == pytest.approx(38_000)


def test_steps_of_fused_optimizers_are_read_late():
    steps = Steps(5)
    optimizer = type("Fused", (), {"found_inf": torch.tensor(1.0)})()
    steps.add(optimizer)
    steps.add()
    assert (steps.calls, steps.done, steps.calls) == (7, 6, 6)


# ---------------------------------------------------------------------------------------------------------------------
# Drift


def test_drift_is_silent_on_the_same_distribution_and_sees_another():
    net = model()
    alarms = 0
    for seed in range(20):
        look = standard(Subject(net, Probe("then", data(seed=seed))))
        shifts = drift(net, Probe("now", data(seed=100 + seed)), Baseline.of(look, 60, "standard"))
        alarms += shifts[0].significant
    assert alarms <= 1
    shifts = drift(net, Probe("now", data(seed=3, scale=3.0)), Baseline.of(look, 60, "standard"))
    assert shifts[0].significant
    assert [abs(shift.z) for shift in shifts] == sorted((abs(shift.z) for shift in shifts), reverse=True)


def test_drift_against_a_stored_run(tmp_path):
    net, probe = model(), Probe("then", data())
    with Monitor(net, probe, store=tmp_path / "a.db") as monitor:
        monitor.measure(5)
    with Store(tmp_path / "a.db", readonly=True) as store:
        baseline = Baseline.stored(store, store.runs()[0].id)
        with pytest.raises(dynaxx.InputError, match="no look at step 3"):
            Baseline.stored(store, store.runs()[0].id, step=3)
    assert (baseline.count, baseline.preset, baseline.step) == (60, "economy", 5)
    look = economy(Subject(net, probe))
    assert baseline.values["dynaxx/trace"] == look.values["dynaxx/trace"]
    assert all(shift.z == 0 for shift in drift(net, probe, baseline))
    with pytest.raises(dynaxx.InputError, match="give as many"):
        drift(net, Probe("fewer", data(30)), baseline)
