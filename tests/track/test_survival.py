"""Killed processes, full disks, many writers, forks: the numbers that were logged are there afterwards."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from sqlalchemy import event

from dynaxx.track import Store, StoreWarning, schema, writer
from dynaxx.track.writer import Row


def script(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


ENDLESS = """
import sys, time
from dynaxx.track import Store
run = Store(sys.argv[1]).run(name="doomed")
step = 0
while True:
    step += 1
    run.log({"step": step, "time": time.time()}, step=step)
    if step == 50: print("going", flush=True)
    time.sleep(0.002)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_process_loses_at_most_a_second_and_its_run_reads_interrupted(tmp_path):
    path = tmp_path / "a.db"
    process = script(ENDLESS, path)
    assert process.stdout.readline() == "going\n"
    time.sleep(1.5)
    with Store(path, readonly=True) as store:
        assert store.runs()[0].status == "running"
    process.send_signal(signal.SIGKILL)
    killed = time.time()
    process.communicate()
    with Store(path) as store:
        (info,) = store.runs()
        assert (info.name, info.status, info.ended) == ("doomed", "interrupted", None)
        steps = store.metrics(info.id, "step")
        np.testing.assert_array_equal(steps.values, np.arange(1, len(steps) + 1))  # no holes
        assert killed - store.metrics(info.id, "time").values[-1] < 1.0
        store.run("next").finish()
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert raw.execute("SELECT status FROM run ORDER BY id").fetchall() == [("running",), ("finished",)]


@pytest.mark.parametrize(
    ("last_line", "status"),
    [
        ("pass", "finished"),
        ("raise ValueError('x')", "failed"),
        ("raise KeyboardInterrupt", "interrupted"),
    ],
)
def test_a_program_that_ends_without_finishing_its_run(tmp_path, last_line, status):
    code = (
        f"import sys; from dynaxx.track import Store\nStore(sys.argv[1]).run().log({{'a': 1.0}}, step=3)\n{last_line}\n"
    )
    process = script(code, tmp_path / "a.db")
    process.communicate(timeout=60)
    with Store(tmp_path / "a.db", readonly=True) as store:
        assert store.runs()[0].status == status
        assert store.summary(1) == {"a": 1.0}


def write_many(path, name, count):
    with Store(path, interval=0.02) as store, store.run(name=name) as run:
        for step in range(count):
            run.log({"shared": step, f"own/{name}": -step}, step=step)
            if step % 50 == 0:
                run.log_array("s", np.full(3, step), step=step)
                time.sleep(0.01)


def test_four_processes_write_at_once_from_the_creation_of_the_file_on(tmp_path):
    path = tmp_path / "a.db"
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import test_survival\ntest_survival.write_many(sys.argv[1], sys.argv[2], 400)\n"
    )
    processes = [script(code, path, f"w{index}") for index in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    with Store(path, readonly=True) as store:
        assert sorted(info.name for info in store.runs()) == ["w0", "w1", "w2", "w3"]
        for info in store.runs():
            assert info.status == "finished"
            metrics = store.metrics(info.id)
            assert sorted(metrics) == [f"own/{info.name}", "shared"]
            np.testing.assert_array_equal(metrics["shared"].values, np.arange(400))
            np.testing.assert_array_equal(metrics[f"own/{info.name}"].values, -np.arange(400))
            assert store.array_steps(info.id, "s") == list(range(0, 400, 50))


def test_many_threads_write_to_one_run(tmp_path):
    with Store(tmp_path / "a.db", interval=0.01) as store:
        run = store.run()

        def work(index):
            for step in range(200):
                run.log({f"t{index}": step}, step=step)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for columns in store.metrics(run.id).values():
            np.testing.assert_array_equal(columns.values, np.arange(200))


def limit_pages(store, pages):
    """SQLite's own limit on the file's size: it answers "database or disk is full" beyond."""
    apply = lambda connection, record: connection.execute(f"PRAGMA max_page_count={pages}")
    event.listen(store.database.engine(), "connect", apply)
    store.database.engine().dispose()
    return lambda: (event.remove(store.database.engine(), "connect", apply), store.database.engine().dispose())


def test_a_full_disk_warns_once_never_raises_and_catches_up_when_there_is_room(tmp_path):
    with Store(tmp_path / "a.db", interval=60) as store:
        run = store.run()
        lift = limit_pages(store, 40)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(30):
                run.log({"a": step}, step=step)
                run.log_array("s", np.full(4000, step, dtype=np.float32), step=step)
                run.flush()
        assert run.waiting > 0
        (warning,) = caught
        assert issubclass(warning.category, StoreWarning)
        assert "disk is full" in str(warning.message)
        assert "stays in memory" in str(warning.message)
        lift()
        assert run.flush()
        assert run.waiting == 0
        np.testing.assert_array_equal(store.metrics(run.id, "a").values, np.arange(30))
        assert [record.value[0] for record in store.arrays(run.id, "s")] == list(range(30))


FULL = """
import resource, sys, warnings
import numpy as np
from dynaxx.track import Store, StoreWarning
store = Store(sys.argv[1], interval=0.05)
run = store.run()
run.log({"early": 1.0}, step=0); run.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for step in range(60):
        run.log_array("s", np.zeros(5000), step=step)
        run.alert("beat", step=step)
    print(len(caught), caught[0].category.__name__, run.waiting > 0)
    run.finish()
print("trained to the end")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit here")
def test_a_file_that_may_not_grow_leaves_the_training_alone(tmp_path):
    process = script(FULL, tmp_path / "a.db")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert out.splitlines() == ["1 StoreWarning True", "trained to the end"], errors
    with Store(tmp_path / "a.db", readonly=True) as store:
        assert store.summary(1) == {"early": 1.0}
        assert store.runs()[0].status == "interrupted"


def test_memory_for_unwritten_rows_is_bounded_and_the_newest_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "LARGEST_BUFFER", 20_000)
    with Store(tmp_path / "a.db", interval=60) as store:
        run = store.run()
        lift = limit_pages(store, 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(40):
                run.log_array("s", np.zeros(250), step=step)
                run.flush()
        first, second = caught  # that nothing can be written, and that rows are lost: once each
        assert "stays in memory" in str(first.message)
        assert "the oldest are being dropped" in str(second.message)
        lift()
        assert run.flush()
        kept = store.array_steps(run.id, "s")
        late = len([step for step in kept if step >= 10])
        assert 4 <= late <= 8  # 2500 bytes each
        assert kept == [*range(len(kept) - late), *range(40 - late, 40)]  # the first had found room on the disk
        assert store._writer.dropped == 40 - len(kept)


def test_one_row_that_the_database_refuses_does_not_hold_up_the_others(tmp_path):
    with Store(tmp_path / "a.db", interval=60) as store:
        run = store.run()
        run.log({"a": 1.0}, step=0)
        store._writer.put(Row(schema.alert, {"run_id": 99, "wall": 0.0, "level": "info", "title": "", "text": ""}))
        run.log({"a": 2.0}, step=1)
        with pytest.warns(StoreWarning, match="refused a row, which is lost: FOREIGN KEY"):
            assert run.flush()
        assert store.metrics(run.id, "a").values.tolist() == [1.0, 2.0]


def test_a_warning_made_an_error_does_not_reach_the_training_loop(tmp_path, caplog):
    with Store(tmp_path / "a.db", interval=60) as store:
        run = store.run()
        lift = limit_pages(store, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run.log_array("s", np.zeros(10_000), step=0)
            run.alert("still here")
        assert "stays in memory" in caplog.text
        lift()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_neither_writes_its_parents_rows_nor_ends_its_run(tmp_path):
    with Store(tmp_path / "a.db", interval=60) as store:
        run = store.run()
        run.log({"parent": 1.0}, step=0)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run.log({"child": 2.0}, step=0)
                run.finish()
                store.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        with Store(tmp_path / "a.db", readonly=True) as reader:
            assert reader.summary(run.id) == {"child": 2.0}
            assert reader.info(run.id).status == "running"
        run.log({"parent": 3.0}, step=1)
        run.finish()
        assert store.summary(run.id) == {"child": 2.0, "parent": 3.0}
        assert len(store.metrics(run.id, "parent")) == 2


def test_no_thread_is_left_behind(tmp_path):
    with Store(tmp_path / "a.db", interval=0.01) as store:
        store.run().log({"a": 1.0})
        assert any(thread.name == "dynaxx-store" for thread in threading.enumerate())
    assert not any(thread.name == "dynaxx-store" for thread in threading.enumerate())


def test_an_open_run_shows_signs_of_life_without_logging(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "HEARTBEAT", 0.05)
    with Store(tmp_path / "a.db", interval=0.02) as store:
        run = store.run()
        run.log({"a": 1.0})
        run.flush()
        before = store.info(run.id).heartbeat
        deadline = time.monotonic() + 10
        while store.info(run.id).heartbeat == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert store.info(run.id).heartbeat > before


def test_closing_waits_for_a_program_that_holds_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("dynaxx.track.database.BUSY_SECONDS", 0.1)
    path = tmp_path / "held.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that writing fails for now is said, and is not what this is about
        store = Store(path)
        run = store.run("held")
        store.flush()
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        run.log({"a": 1.0}, step=0)
        threading.Timer(1.0, other.close).start()
        store.close()
    with Store(path, readonly=True) as again:
        assert again.metrics(run.id, "a").values.tolist() == [1.0]
