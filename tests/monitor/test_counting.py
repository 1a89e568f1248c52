"""Steps are the optimizer's own, losses are handed over without waiting, and looks cost what was allowed."""

import pytest
import torch
from torch.nn import functional

from dynaxx.monitor import Monitor, MonitorWarning
from dynaxx.monitor.look import Look
from dynaxx.monitor.schedule import Adaptive
from monitor.loops import OPTIMIZERS, data, model


def test_the_context_counts_and_hands_over_the_loss():
    net, (x, y) = model(), data()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    monitor = Monitor(net, (x, y), every=2)
    for _ in range(4):
        loss = functional.cross_entropy(net(x), y)
        with monitor.step(loss=loss, validation_loss=1.5):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    monitor.close()
    monitor.close()
    looks = [record for record in monitor.history if "dynaxx/trace" in record.values]
    assert [record.step for record in looks] == [0, 2, 4]
    assert sum("validation_loss" in record.values for record in monitor.history) == 4
    assert monitor.losses.values[-1] == (4, float(loss.detach()))
    with (
        pytest.raises(RuntimeError, match="broken"),
        pytest.warns(MonitorWarning, match="broken"),
        Monitor(net, (x, y)) as other,
        other.step(),
    ):
        raise RuntimeError("broken")
    assert other.events[0].title == "training raised"
    assert other.steps == 0


def test_steps_count_not_backward_calls():
    """Gradient accumulation: three backward calls a step."""
    net, (x, y) = model(), data()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    monitor = Monitor(net, (x, y), every=2).attach(optimizer)
    for i in range(12):
        functional.cross_entropy(net(x), y).backward()
        if i % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    assert monitor.steps == 4
    assert [record.step for record in monitor.history] == [0, 2, 4]


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_grad_scaler_skips_do_not_count(fused):
    net, (x, y) = model(), data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monitor = Monitor(net, (x, y), every=100).attach(optimizer)
    for i in range(6):
        optimizer.zero_grad()
        scaler.scale(functional.cross_entropy(net(x), y)).backward()
        if i in (1, 4):
            net[0].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    assert monitor.steps == 4
    assert monitor.events == []


@pytest.mark.parametrize(("growth", "least", "most"), [(1.2, 0.04, 0.0505), (1.0, 0.004, 0.01)])
def test_adaptive_looks_cost_what_was_allowed(monkeypatch, growth, least, most):
    """A clock of our own: while the trace grows the budget is spent, while it stands still an eighth of it."""
    now, value = [0.0], [1.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def preset(subject):
        now[0] += 0.1
        value[0] *= growth
        return Look({"dynaxx/trace": value[0]})

    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    monitor = Monitor(net, data(), every="adaptive", budget=0.05, preset=preset)
    monitor._schedule = Adaptive(0.05, lambda: now[0])
    monitor.attach(optimizer)
    for _ in range(4000):
        now[0] += 0.05
        optimizer.step()
    assert least < monitor.share <= most


def test_losses_on_a_device_are_read_together(monkeypatch):
    """With tensors that claim to live elsewhere: nothing is read until fifty wait, or somebody asks."""
    from dynaxx.monitor import losses

    held = losses.Losses()
    reads = []
    real = torch.stack
    monkeypatch.setattr(
        losses.torch, "stack", lambda values: reads.append(len(values)) or real([torch.tensor(0.5) for _ in values])
    )
    for step in range(120):
        held.add(step, torch.zeros((), device="meta"))
    assert reads == [50, 50]
    assert len(held.read()) == 20
    assert held.mean() == 0.5
    assert held.read() == []
