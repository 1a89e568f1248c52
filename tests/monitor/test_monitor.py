"""What a monitor finds is what it keeps, stores and passes on; wrong arguments are refused before training."""

import pytest
import torch

import dynaxx
from dynaxx.monitor import Monitor, MonitorWarning, Probe
from dynaxx.monitor.signals import Alarm, Divergence, NotFinite, Observation, Signal
from dynaxx.track import Store
from monitor.loops import OPTIMIZERS, STEPS, data, model, train


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


def test_only_the_first_rank_measures(monkeypatch):
    monkeypatch.setattr("dynaxx.monitor.monitor._rank", lambda: 1)
    net = model()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    monitor = Monitor(net, data(), every=1, store="/nowhere/at/all.db").attach(optimizer)
    train(net, optimizer, monitor)
    assert (monitor.steps, monitor.history, monitor.run) == (STEPS, [], None)


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
