"""A run that goes on after its process was killed is one run, as if nothing had happened."""

import os
import signal
import subprocess
import sys

import pytest

from dynaxx.track import Store, StoreError

KILLED = """
import os, signal, sys
from dynaxx.track import Store
run = Store(sys.argv[1]).run("long", project="p", config={"lr": 0.1}, tags=["keep"])
for step in (1, 2, 3):
    run.log({"x": float(step), "layer": 1.0}, step=step)
run.alert("rank collapse", "rank 1", step=2, rule="rank")
run.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_goes_on_in_its_place(tmp_path):
    place = tmp_path / "a.db"
    assert subprocess.run([sys.executable, "-c", KILLED, str(place)]).returncode == -signal.SIGKILL
    with Store(place) as store:
        (before,) = store.runs()
        assert before.status == "interrupted"
        with store.resume(before.id) as run:
            (during,) = store.runs()
            assert (during.status, during.pid, during.ended) == ("running", os.getpid(), None)
            run.alert("rank collapse", "rank 1", step=2, rule="rank")  # the step is done again
            run.alert("rank collapse", "rank 1", step=7, rule="rank")
            run.log({"x": 30.0}, step=3)
            run.log({"x": 4.0})
        (after,) = store.runs()
        assert (after.status, after.name, after.config, after.tags) == ("finished", "long", {"lr": 0.1}, ("keep",))
        assert after.started == before.started < after.ended
        found = store.metrics(after.id, "x")
        assert (found.steps.tolist(), found.values.tolist()) == ([1, 2, 3, 4], [1.0, 2.0, 30.0, 4.0])
        assert store.metrics(after.id, "layer").steps.tolist() == [1, 2, 3]
        assert [alert.step for alert in store.alerts(after.id)] == [2, 7]


def test_a_run_that_cannot_go_on_is_refused(tmp_path):
    with Store(tmp_path / "a.db") as store:
        run = store.run("one")
        with pytest.raises(StoreError, match=r"run 1 \('one'\) is still running"):
            store.resume(run.id)
        run.finish("failed")
        with pytest.raises(StoreError, match="no run 2"):
            store.resume(2)
        with store.resume(run.id) as again:
            again.log({"x": 1.0})
        assert store.metrics(run.id, "x").steps.tolist() == [0]
    with (
        Store(tmp_path / "a.db", readonly=True) as store,
        pytest.raises(StoreError, match="readonly=True; open it without to go on with a run"),
    ):
        store.resume(1)
