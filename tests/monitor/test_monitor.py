"""The monitor beside real training loops: it changes nothing, counts right, and never raises into them."""

import random
import warnings

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

import dynaxx
from dynaxx.monitor import Monitor, MonitorWarning, Probe
from dynaxx.monitor.look import Look
from dynaxx.monitor.schedule import Adaptive
from dynaxx.monitor.signals import Alarm, Divergence, NotFinite, Observation, Signal
from dynaxx.track import Store

STEPS = 12


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def data(count=24, seed=1):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 3


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
}


def train(net, optimizer, monitor=None, steps=STEPS, wrapped=None):
    """A plain loop with dropout; draws from torch's, numpy's and Python's random numbers between steps."""
    x, y = data()
    torch.manual_seed(7)
    random.seed(7)
    numpy.random.seed(7)  # noqa: NPY002  the global state is what is being watched
    drawn = []
    for _ in range(steps):
        rows = torch.randperm(len(x))[:12]
        loss = functional.cross_entropy((wrapped or net)(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        if monitor is not None:
            monitor.observe(loss=loss)
        optimizer.step()
        drawn.append((float(torch.rand(1)), random.random(), numpy.random.rand()))  # noqa: NPY002
    return drawn


def everything(net, optimizer):
    """Weights, buffers, gradients, optimizer state, as bytes."""
    out = {name: value.numpy().tobytes() for name, value in net.state_dict().items()}
    out |= {f"{name}.grad": p.grad.numpy().tobytes() for name, p in net.named_parameters()}
    for i, state in optimizer.state_dict()["state"].items():
        out |= {f"{i}.{k}": v.numpy().tobytes() for k, v in state.items() if isinstance(v, torch.Tensor)}
    return out


@pytest.mark.parametrize("preset", ["economy", "standard", "full"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_bit_equal_with_and_without(optimizer, preset, tmp_path):
    plain, watched = model(), model()
    first, second = OPTIMIZERS[optimizer](plain.parameters()), OPTIMIZERS[optimizer](watched.parameters())
    drawn = train(plain, first)
    with Monitor(watched, data(), every=3, preset=preset, store=tmp_path / "a.db") as monitor:
        monitor.attach(second)
        assert train(watched, second, monitor) == drawn
    assert everything(plain, first) == everything(watched, second)
    assert [record.step for record in monitor.history] == [0, 3, 6, 9, 12]
    assert monitor.events == []
    assert all(module.training for module in watched.modules())


def test_history_and_store_say_the_same(tmp_path):
    net = model()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    probe = Probe("twenty-four", data())
    with Monitor(
        net, probe, every=4, preset="standard", store=tmp_path / "a.db", name="one", config={"lr": 0.1}
    ) as monitor:
        monitor.attach(optimizer)
        train(net, optimizer, monitor)
    with Store(tmp_path / "a.db", readonly=True) as store:
        (info,) = store.runs()
        assert (info.name, info.status, info.config["lr"]) == ("one", "finished", 0.1)
        assert info.config["dynaxx"]["probe"]["digest"] == probe.digest
        assert b"twenty-four" in store.artifact(info.id, "dynaxx/protocol.json")
        metrics = store.metrics(info.id)
        for name, value in monitor.history[-1].values.items():
            kept = metrics[name]
            assert kept.values[-1] == float(value), name
            if getattr(value, "stderr", 0.0) > 0:
                assert kept.stderrs[-1] == pytest.approx(value.stderr)
        assert metrics["dynaxx/trace"].steps.tolist() == [0, 4, 8, 12]
        (spectrum,) = store.arrays(info.id, "dynaxx/spectrum", [12])
        assert float(spectrum.value.sum()) == pytest.approx(float(monitor.history[-1].values["dynaxx/trace"]), rel=1e-6)
    values = monitor.history[-1].values
    start = monitor.history[0].values
    assert values["dynaxx/relative/trace"] == pytest.approx(values["dynaxx/trace"] / start["dynaxx/trace"])
    assert values["dynaxx/change/posterior_entropy"] == pytest.approx(
        values["dynaxx/posterior_entropy"] - start["dynaxx/posterior_entropy"]
    )
    assert values["dynaxx/relative/trace"].stderr > 0
    assert values["dynaxx/learning_rate"] == 0.1
    assert values["dynaxx/stability_limit"] == pytest.approx(38.0)
    losses = [loss for _, loss in monitor.losses.values]
    assert len(losses) == STEPS
    assert values["dynaxx/train_loss"] == pytest.approx(sum(losses[-4:]) / 4)


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


def test_compiled_and_wrapped_models_are_looked_through():
    net = model()
    compiled = torch.compile(net, backend="eager")
    optimizer = OPTIMIZERS["sgd"](compiled.parameters())
    plain = model()
    first = OPTIMIZERS["sgd"](plain.parameters())
    drawn = train(plain, first)
    monitor = Monitor(compiled, data(), every=4).attach(optimizer)
    assert train(net, optimizer, monitor, wrapped=compiled) == drawn
    assert everything(plain, first) == everything(net, optimizer)
    layers = {name.split("/")[2] for name in monitor.history[-1].values if name.startswith("dynaxx/layer/")}
    assert layers == {"0", "1", "4"}  # neither _orig_mod. nor module.
    parallel = nn.DataParallel(model())
    assert Monitor(parallel, data()).measure(0).values["dynaxx/layer/0/trace"] > 0


def test_only_the_first_rank_measures(monkeypatch):
    monkeypatch.setattr("dynaxx.monitor.monitor._rank", lambda: 1)
    net = model()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    monitor = Monitor(net, data(), every=1, store="/nowhere/at/all.db").attach(optimizer)
    train(net, optimizer, monitor)
    assert (monitor.steps, monitor.history, monitor.run) == (STEPS, [], None)


def test_ctrl_c_passes():
    def interrupted(subject):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Monitor(model(), data(), preset=interrupted).measure(0)


def test_a_look_that_fails_becomes_an_event_and_is_tried_less_often():
    calls = []

    def broken(subject):
        calls.append(1)
        raise torch.OutOfMemoryError("no memory") if len(calls) < 4 else ValueError("no idea")

    net, plain = model(), model()
    optimizer, first = OPTIMIZERS["sgd"](net.parameters()), OPTIMIZERS["sgd"](plain.parameters())
    monitor = Monitor(net, data(), every=1, preset=broken)
    with pytest.warns(MonitorWarning, match="OutOfMemoryError: no memory"):
        train(net, optimizer, monitor.attach(optimizer), steps=40)
    train(plain, first, steps=40)
    assert everything(plain, first) == everything(net, optimizer)
    assert len(calls) == 5  # at 0, 1, then after pauses of 2, 6, 14
    assert [event.title for event in monitor.events] == ["monitor: looking failed"] * 5
    assert monitor.events[-1].text == "ValueError: no idea"


def test_warnings_made_errors_stay_out_of_the_loop():
    def broken(subject):
        raise ValueError("x")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = Monitor(model(), data(), preset=broken)
        assert monitor.measure(0) is None
    assert len(monitor.events) == 1


def test_signals_and_actions_that_fail_are_events():
    class Broken(Signal):
        name = "broken"

        def statistic(self, seen):
            raise ZeroDivisionError("signal")

    def action(monitor, alarm):
        raise ZeroDivisionError("action")

    monitor = Monitor(model(), data(), signals=[Broken(1.0), NotFinite(actions=[action])])
    with pytest.warns(MonitorWarning):
        monitor.observe(loss=float("nan"))
    assert [event.title for event in monitor.events] == [
        "monitor: signal 'broken' failed",
        "not finite",
        "monitor: action action failed",
    ]


def test_nan_weights_are_seen_and_do_not_stop_the_looks():
    net = model()
    monitor = Monitor(net, data())
    monitor.measure(0)
    saved = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    with pytest.warns(MonitorWarning, match="not finite"):
        broken = monitor.measure(1)
    with torch.no_grad():
        net[0].weight.copy_(saved)
    again = monitor.measure(2)
    assert broken.values["dynaxx/parameters_not_finite"] == 1
    assert "dynaxx/trace" not in broken.values
    assert again.values["dynaxx/relative/trace"] == 1.0
    assert [event.title for event in monitor.events] == ["not finite"]


def test_defaults_are_silent_on_a_healthy_training_and_levels_choose_warnings(recwarn):
    net = model()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    monitor = Monitor(net, data(), every=5).attach(optimizer)
    train(net, optimizer, monitor, steps=60)
    assert monitor.events == []
    assert not [w for w in recwarn if issubclass(w.category, MonitorWarning)]
    assert [type(signal) for signal in monitor.signals] == [NotFinite, Divergence]

    class Note(Signal):
        name = "note"
        default_level = "info"

        def statistic(self, seen):
            return 1.0

    monitor = Monitor(net, data(), signals=[Note(1.0)])
    monitor.measure(0)
    assert [event.level for event in monitor.events] == ["info"]
    assert not [w for w in recwarn if issubclass(w.category, MonitorWarning)]


def test_a_training_that_goes_on():
    net = model()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    monitor = Monitor(net, data(), every=3).attach(optimizer)
    train(net, optimizer, monitor)
    state = monitor.state_dict()
    resumed = Monitor(net, data(), every=3)
    resumed.load_state_dict(state)
    record = resumed.measure()
    assert record.step == STEPS
    assert record.values["dynaxx/relative/trace"] == pytest.approx(monitor.history[-1].values["dynaxx/relative/trace"])
    assert record.values["dynaxx/relative/trace"].stderr == pytest.approx(
        monitor.history[-1].values["dynaxx/relative/trace"].stderr
    )
    with pytest.raises(dynaxx.InputError, match="another probe"):
        Monitor(net, data(seed=2)).load_state_dict(state)


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


def test_hooks_are_gone_after_closing():
    net = model()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    before = len(optimizer._optimizer_step_post_hooks)
    with Monitor(net, data(), every=1) as monitor:
        monitor.attach(optimizer)
        assert len(optimizer._optimizer_step_post_hooks) == before + 1
    assert len(optimizer._optimizer_step_post_hooks) == before
    train(net, optimizer)
    assert (len(monitor.history), monitor.measure(5)) == (1, None)


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


def test_bad_input(tmp_path):
    net = model()
    for wrong, message in (
        ({"preset": "luxury"}, "preset='luxury' is not known"),
        ({"every": 0}, "every=0"),
        ({"prior_precision": 0}, "both must be positive"),
        ({"params": ["nothing"]}, "does not have"),
        ({"likelihood": "cauchy"}, "cauchy"),
        ({"sinks": [object()]}, "without write, event, flush, close"),
        ({"store": tmp_path}, "is a folder"),
    ):
        with pytest.raises(dynaxx.InputError, match=message):
            Monitor(net, data(), **wrong)
    with pytest.raises(dynaxx.InputError, match=r"expected a torch\.nn\.Module"):
        Monitor("net", data())
    with pytest.raises(dynaxx.InputError, match="carries its own"):
        Monitor(net, Probe("p", data()), likelihood="gaussian")
    with pytest.raises(dynaxx.InputError, match="without step hooks"):
        Monitor(net, data()).attach("optimizer")
    assert net.training


def test_alarm_reaches_store_sink_and_action(tmp_path):
    taken = []
    with (
        pytest.warns(MonitorWarning, match="not finite"),
        Monitor(
            model(), data(), store=tmp_path / "a.db", signals=[NotFinite(actions=[lambda m, a: taken.append(a)])]
        ) as monitor,
    ):
        monitor.observe(loss=torch.tensor(torch.nan))
    (alarm,) = taken
    assert isinstance(alarm, Alarm)
    assert (alarm.signal, alarm.step, alarm.level) == ("not finite", 1, "error")
    with Store(tmp_path / "a.db", readonly=True) as store:
        (alert,) = store.alerts(store.runs()[0].id)
    assert (alert.title, alert.step, alert.level) == ("not finite", 1, "error")


def test_observation_of_nothing():
    assert Observation(0).change("m", "previous") is None
