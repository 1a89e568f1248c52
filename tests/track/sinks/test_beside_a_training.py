"""Sinks that work, hang and raise, together beside one training that none of them may touch."""

import json
import socket
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx.monitor import Monitor, MonitorWarning, Probe, journal, outlets
from dynaxx.monitor.signals import Signal
from dynaxx.track.sinks import Callback, JsonLines, TensorBoard, Webhook


class Always(Signal):
    name = "always"

    def statistic(self, seen):
        return 1.0


def train(monitor=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(24, 5), torch.arange(24) % 3
    watch = monitor(model, Probe("all", (x, y))).attach(optimizer) if monitor else None
    for _ in range(10):
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict(), watch


def to_the_end(monitor, then=lambda: None):
    """Train, do ``then``, close."""
    weights, made = train(monitor)
    then()
    made.close()
    return weights, made


def test_none_of_them_touches_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "PATIENCE", 0.5)
    connect = outlets.Outlet.__init__
    monkeypatch.setattr(outlets.Outlet, "__init__", lambda self, sink, failed: connect(self, sink, failed, 0.001))
    gate, steps = threading.Event(), []
    with socket.socket() as taken:  # bound, but nobody listens: connections are refused
        taken.bind(("127.0.0.1", 0))
        sinks = [
            JsonLines(tmp_path / "run.jsonl"),
            Callback(record=lambda record: gate.wait()),
            Callback(record=lambda record: 1 / 0),
            Webhook(f"http://127.0.0.1:{taken.getsockname()[1]}/secret", payload="slack"),
            Callback(record=lambda record: steps.append(record.step)),
        ]
        options = {"every": 1, "preset": "standard", "sinks": sinks, "signals": [Always(1.0)]}
        with pytest.warns(MonitorWarning):
            # comes to its end though the second sink has not come back from its first record
            watched, monitor = to_the_end(lambda model, probe: Monitor(model, probe, **options))
    gate.set()
    plain, _ = train()
    assert all(torch.equal(value, watched[name]) for name, value in plain.items())
    looks = list(range(11))
    assert [record.step for record in monitor.history] == looks == steps
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    records = [line for line in lines if line["kind"] == "record"]
    for line, record in zip(records, monitor.history, strict=True):
        assert line["values"] == {name: float(value) for name, value in record.values.items()}
        assert len(line["arrays"]["dynaxx/spectrum"]) == len(record.arrays["dynaxx/spectrum"])
    texts = [event.text for event in monitor.events if event.title == "sink"]
    assert sum("ZeroDivisionError" in text for text in texts) == 1
    assert sum("Webhook was given up after" in text for text in texts) == 1
    assert sum("did not take what waits" in text for text in texts) == 1
    assert len(texts) == 3
    assert not any("secret" in text for text in texts)


def test_a_full_queue_drops_the_oldest_and_says_so_once(monkeypatch):
    monkeypatch.setattr(outlets, "WAITING", 3)
    gate, steps = threading.Event(), []

    def slow(record):
        gate.wait()
        steps.append(record.step)

    made = lambda model, probe: Monitor(model, probe, every=1, sinks=[Callback(record=slow)])
    with pytest.warns(MonitorWarning, match="Callback is too slow: 3 records wait, the oldest are being dropped"):
        _, monitor = to_the_end(made, then=gate.set)
    assert [event.title for event in monitor.events] == ["sink"]
    assert steps[-3:] == [8, 9, 10]
    assert len(steps) <= 4
    assert [record.step for record in monitor.history] == list(range(11))


def test_tensorboard_is_a_folder_for_each_run(tmp_path):
    pytest.importorskip("tensorboard", reason="writes with TensorBoard (extra: tensorboard)")
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    for name in ("a", "b"):
        sink = TensorBoard(tmp_path / name)
        _, monitor = to_the_end(lambda model, probe, sink=sink: Monitor(model, probe, every=5, sinks=[sink]))
    read = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    read.Reload()
    assert sorted(read.Runs()) == ["a", "b"]
    for record, event in zip(monitor.history, read.Scalars("b", "dynaxx/trace"), strict=True):
        assert (event.step, event.value) == (record.step, pytest.approx(float(record.values["dynaxx/trace"]), rel=1e-6))
