"""Nothing that goes wrong in a monitor reaches the training loop: it becomes a warning and an event."""

import warnings

import pytest
import torch

from dynaxx.monitor import Monitor, MonitorWarning
from dynaxx.monitor.signals import NotFinite, Signal
from monitor.loops import OPTIMIZERS, data, everything, model, train


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
