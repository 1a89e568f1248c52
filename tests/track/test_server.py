"""The same store on a PostgreSQL server of its own, started here on a socket in a temporary folder."""

import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from dynaxx.track import Store, StoreError, StoreWarning
from dynaxx.track.export import export
from dynaxx.track.health import health
from track.first_schema import check, make

pytest.importorskip("psycopg", reason="psycopg is not installed", exc_type=ImportError)
FOUND = shutil.which("initdb") or next(iter(sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))), None)
pytestmark = pytest.mark.skipif(FOUND is None or os.name != "posix", reason="no PostgreSQL server programs here")


class Server:
    """A cluster in a folder; PostgreSQL refuses to run as root, so root lends it to nobody."""

    def __init__(self, folder):
        self.folder = folder
        self.user = {"user": "nobody"} if os.geteuid() == 0 else {}
        self.url = f"postgresql+psycopg://tester@/postgres?host={folder}"
        self.call("initdb", "-D", f"{folder}/data", "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync")

    def call(self, program, *arguments):
        command = [str(Path(FOUND).with_name(program)), *arguments]
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, cwd="/", **self.user
        )
        if done.returncode:
            pytest.skip(f"{program} does not work here (exit status {done.returncode})")

    def start(self):
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c shared_buffers=16MB"
        self.call("pg_ctl", "-D", f"{self.folder}/data", "-w", "-l", f"{self.folder}/log", "-o", options, "start")

    def stop(self):
        self.call("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def server():
    folder = tempfile.mkdtemp(prefix="dynaxx-pg-", dir="/tmp")  # a socket's path must be short
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
    made = Server(folder)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_several_processes_make_the_tables_and_write(server):
    code = (
        "import sys; from dynaxx.track import Store\n"
        "with Store(sys.argv[1], interval=0.02) as store, store.run(sys.argv[2]) as run:\n"
        "    for step in range(100): run.log({'shared': step, sys.argv[2]: -step}, step=step)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, server.url, f"w{i}"], stderr=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    with Store(server.url, readonly=True) as store:
        assert sorted(info.name for info in store.runs()) == ["w0", "w1", "w2"]
        for info in store.runs():
            assert info.status == "finished"
            np.testing.assert_array_equal(store.metrics(info.id, "shared").values, np.arange(100))
            assert store.metric_names(info.id) == ["shared", info.name]


def test_everything_comes_back(server):
    with Store(server.url) as store:
        run = store.run("all", project="pg", config={"limit": math.inf})
        for step, value in enumerate([1.5, math.nan, math.inf, -math.inf]):
            run.log({"x": value}, step=step)
            run.log({"x": value}, step=step)
        run.log_array("s", np.arange(6, dtype=np.float32).reshape(2, 3), step=2**40)
        run.alert("title", "te\0xt", step=3)
        for content in (b"old", b"new"):
            run.artifact("file", content)
            run.flush()
        run.model_version("v", details={"a": [1]})
        np.testing.assert_array_equal(store.metrics(run.id, "x").values, [1.5, math.nan, math.inf, -math.inf])
        assert math.isinf(store.summary(run.id)["x"])
        (record,) = store.arrays(run.id, "s")
        np.testing.assert_array_equal(record.value, np.arange(6, dtype=np.float32).reshape(2, 3))
        assert record.step == 2**40
        assert store.alerts(run.id)[0].text == "text"
        assert store.artifact(run.id, "file") == b"new"
        assert store.artifacts(run.id)[0].size == 3
        assert store.model_versions(run.id)[0].details == {"a": [1]}
        assert store.info(run.id).config == {"limit": "inf"}
        assert [info.name for info in store.runs("pg")] == ["all"]


def test_a_server_that_goes_away_and_comes_back_costs_nothing(server):
    with Store(server.url, interval=60) as store:
        run = store.run("patient")
        run.log({"x": 0.0}, step=0)
        assert run.flush()
        server.stop()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for step in (1, 2):
                    run.log({"x": float(step)}, step=step)
                    assert not run.flush()
            assert [warning.category for warning in caught] == [StoreWarning]
            assert run.waiting == 2
            with pytest.raises(StoreError, match="cannot open the run store"):
                Store(server.url)
        finally:
            server.start()
        assert run.flush()
        assert store.metrics(run.id, "x").values.tolist() == [0.0, 1.0, 2.0]


def test_what_is_kept_is_found_judged_exported_and_removed(server, tmp_path):
    with Store(server.url) as store:
        with store.run("parent", tags=["here"]) as run:
            run.log({"x": 1.0}, step=0)
            run.log({"x": math.nan}, step=1)
            run.alert("beware", rule="r")
            run.model_version("v", step=1, baseline={"x": math.inf})
        with store.run("child", parent=run.id) as child:
            child.log({"x": 2.0}, step=0)
        assert [info.name for info in store.runs(tag="here", search="PARENT")] == ["parent"]
        assert [info.name for info in store.runs(parent=run.id)] == ["child"]
        last = store.last(run.id)["x"]
        assert (last.first, last.step) == (0, 1)
        assert store.extent(run.id, ["x"])["x"][:2] == (2, 1)
        assert health(store, store.model_version(run.id, "v")).level == "bad"
        export(store, tmp_path / "out.csv", [run.id])
        assert (tmp_path / "out.csv").read_text().count("\n") == 3
        store.remove([run.id])
        store.tidy()
        assert store.info(child.id).parent is None
        assert "parent" not in [info.name for info in store.runs()]


def test_a_database_of_the_first_version_is_migrated(server):
    with Store(server.url) as store, store.database.engine().connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("CREATE DATABASE veteran"))
    url = server.url.replace("/postgres?", "/veteran?")
    make(url)
    with Store(url) as store:
        check(store)
