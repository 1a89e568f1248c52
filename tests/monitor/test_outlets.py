"""Slow, dead and hanging sinks: the training's thread never waits, and what went wrong is said."""

import threading
import time

import pytest

import dynaxx
from dynaxx.monitor import outlets
from dynaxx.monitor.journal import Journal, MonitorWarning
from dynaxx.monitor.outlets import Outlet, require_sinks
from dynaxx.track import Store
from dynaxx.track.records import Alert
from dynaxx.track.sinks.base import Record


class Taking:
    def __init__(self, fail=0, hold=None):
        self.taken, self.fail, self.hold, self.closed, self.flushed = [], fail, hold, 0, 0

    def write(self, records):
        if self.hold is not None:
            self.hold.wait()
        if self.fail:
            self.fail -= 1
            raise ConnectionError("nobody there")
        self.taken += records

    def event(self, event):
        self.taken.append(event)

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed += 1


def record(step):
    return Record(step, float(step), {"a": float(step)})


EVENT = Alert("warning", "t", "text", 3, 0.0)


def test_order_and_end():
    sink, said = Taking(), []
    outlet = Outlet(sink, said.append)
    items = [record(0), record(1), EVENT, record(2)]
    for item in items:
        outlet.put(item)
    outlet.close()
    outlet.close()
    outlet.put(record(9))
    assert sink.taken == items
    assert (sink.flushed, sink.closed, said) == (1, 1, [])


def test_a_sink_never_used_is_closed():
    sink = Taking()
    Outlet(sink, print).close()
    assert (sink.taken, sink.closed) == ([], 1)


def test_a_sink_that_fails_a_few_times_gets_everything():
    sink, said = Taking(fail=outlets.TRIES - 1), []
    outlet = Outlet(sink, said.append, pause=0.001)
    for step in range(3):
        outlet.put(record(step))
    deadline = time.monotonic() + 10
    while len(sink.taken) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    outlet.close()
    assert [item.step for item in sink.taken] == [0, 1, 2]
    assert said == []


def test_a_dead_sink_is_given_up_and_said_once():
    sink, said = Taking(fail=10**6), []
    outlet = Outlet(sink, said.append, pause=0.001)
    for step in range(20):
        outlet.put(record(step))
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        time.sleep(0.005)
    outlet.put(record(99))
    outlet.close()
    assert len(said) == 1
    assert "Taking was given up after 5 failures" in said[0]
    assert "ConnectionError: nobody there" in said[0]
    assert sink.closed == 1


def test_a_slow_sink_costs_nothing_and_a_full_queue_keeps_the_newest(monkeypatch):
    monkeypatch.setattr(outlets, "WAITING", 5)
    gate = threading.Event()
    sink, said = Taking(hold=gate), []
    outlet = Outlet(sink, said.append)
    for step in range(100):  # would take for ever if put waited for write
        outlet.put(record(step))
    assert outlet.dropped >= 90
    assert len(said) == 1
    assert "too slow" in said[0]
    gate.set()
    outlet.close()
    assert [item.step for item in sink.taken][-4:] == [96, 97, 98, 99]


def test_closing_does_not_wait_for_ever():
    gate, said = threading.Event(), []
    outlet = Outlet(Taking(hold=gate), said.append)
    outlet.put(record(0))
    outlet.close(timeout=0.05)
    assert "did not take what waits within 0.05 s" in said[0]
    gate.set()


def test_what_happens_to_one_sink_reaches_the_others_and_the_store(tmp_path):
    dead, alive = Taking(fail=10**6), Taking()
    journal = Journal([dead, alive])
    for outlet in journal._outlets:
        outlet.pause = 0.001
    journal.keep(tmp_path / "a.db", "one", "default", {}, {"preset": "economy"})

    def record_and_wait():
        journal.record(record(1))
        deadline = time.monotonic() + 10
        while not journal.events and time.monotonic() < deadline:
            time.sleep(0.005)

    with pytest.warns(MonitorWarning, match="given up"):
        record_and_wait()
    journal.close("finished")
    assert [event.title for event in journal.events] == ["sink"]
    assert alive.taken == [journal.history[0], journal.events[0]]
    with Store(tmp_path / "a.db", readonly=True) as store:
        (info,) = store.runs()
        assert info.status == "finished"
        assert [alert.title for alert in store.alerts(info.id)] == ["sink"]
        assert store.metrics(info.id, "a").values.tolist() == [1.0]


def test_a_run_or_store_of_the_users_stays_open(tmp_path):
    with Store(tmp_path / "a.db") as store:
        journal = Journal()
        journal.keep(store, "one", "default", {"lr": 1.0}, {"preset": "economy"})
        journal.close("finished")
        run = store.run("two")
        journal = Journal()
        journal.keep(run, None, "default", {}, {})
        journal.record(record(1))
        journal.close("finished")
        assert run.status == "running"
        assert {info.name: info.status for info in store.runs()} == {"one": "finished", "two": "running"}
        assert store.metrics(run.id, "a").values.tolist() == [1.0]


def test_what_is_no_sink_is_refused():
    with pytest.raises(dynaxx.InputError, match="a int without write, event, flush, close"):
        require_sinks([3])
