"""A training that goes on where another was killed: count, comparisons and alarms are as without the kill."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dynaxx
from dynaxx.monitor import Monitor
from dynaxx.track import Store
from monitor.loops import OPTIMIZERS, STEPS, data, model, train


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


SCRIPT = """
import os, signal, sys
import torch
from torch import nn
from dynaxx.track import Store
from monitor.loops import data, model
from dynaxx.monitor import Monitor
from dynaxx.monitor.signals import Change, Divergence, LossShift, LossSpike, NotFinite, ValidationSlope
from dynaxx.track import Store

name, folder, killed = sys.argv[1], sys.argv[2], int(sys.argv[3])
kept, state = f"{folder}/checkpoint.pt", None
net, (x, y) = model(), data(48)
torch.use_deterministic_algorithms(True)
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
signals = [
    NotFinite(), Divergence(span=15), LossShift(window=12, threshold=3.0), LossSpike(window=30, threshold=6.0),
    Change("dynaxx/trace", 1.0, patience=4), Change("dynaxx/trace", 0.1, unit="relative", reference="smoothed"),
    ValidationSlope(points=5, threshold=2.0),
]
store = Store(f"{folder}/killed.db").resume(1) if name == "resumed" else f"{folder}/{name}.db"
monitor = Monitor(net, (x, y), every=10, store=store, signals=signals)
if name in ("resumed", "forgetful"):
    state = torch.load(kept, weights_only=True)
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    if name == "forgetful":
        state["monitor"].pop("signals")
    monitor.load_state_dict(state["monitor"])
monitor.attach(optimizer)
for step in range(state["step"] if state else 0, 120):
    torch.manual_seed(step)
    rows = torch.randperm(48)[:32]
    labels = torch.randint(0, 3, (32,)) if step >= 52 else y[rows]  # wrong labels begin shortly before the kill
    loss = nn.functional.cross_entropy(net(x[rows]), labels)
    optimizer.zero_grad()
    loss.backward()
    monitor.observe(loss=loss)
    optimizer.step()
    if name == "killed" and step + 1 == 60:
        held = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "monitor": monitor.state_dict()}
        torch.save({"step": step + 1, **held}, kept)
    if step + 1 == killed:
        monitor.run.flush()
        os.kill(os.getpid(), signal.SIGKILL)
monitor.close()
"""


def alarms(folder, name, killed=0, place=None):
    """(step, title) of what a training in a process of its own raised, as the one run of its store has it."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, name, str(folder), str(killed)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr
    with Store(folder / f"{place or name}.db", readonly=True) as store:
        (run,) = store.runs()
        assert run.status == ("interrupted" if killed else "finished")
        return [(alert.step, alert.title) for alert in store.alerts(run.id)]


@pytest.mark.slow
def test_after_a_kill_the_alarms_are_those_of_a_training_that_was_not_killed(tmp_path):
    """Killed at step 75, resumed from a checkpoint of step 60, in the same run of the store."""
    whole = alarms(tmp_path, "whole")
    assert alarms(tmp_path, "killed", 75) == [alarm for alarm in whole if alarm[0] <= 75]
    assert alarms(tmp_path, "resumed", place="killed") == whole
    after = [alarm for alarm in whole if alarm[0] > 60]
    assert {title for _, title in after} >= {"divergence", "loss shift"}, whole
    # the windows reach over the kill: signals that begin anew say something else
    assert alarms(tmp_path, "forgetful") != after
