"""The verbs that look after a run store."""

import json
import os
import subprocess
import sys

import pytest

from dynaxx.cli import main
from dynaxx.track import Store
from track.first_schema import make


@pytest.fixture
def dynaxx(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        """(exit code, stdout, stderr)"""
        monkeypatch.setattr(sys, "argv", ["dynaxx", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "dynaxx-runs" / "dynaxx.db"
    with Store(path) as store:
        for name, rate, status in (
            ("cnn wide", 0.1, "finished"),
            ("cnn narrow", 0.2, "failed"),
            ("idle", 0.1, "failed"),
        ):
            run = store.run(name, project="p", config={"lr": rate}, tags=["first"] if rate == 0.1 else [])
            if name != "idle":
                for step in range(3):
                    run.log({"dynaxx/effective_rank": 5.0 / rate - step, "train/loss": rate}, step=step)
                run.model_version("v", step=2)
            run.finish(status)
    return path


@pytest.mark.parametrize("verb", ["compare", "tag", "export", "gc", "migrate", "dashboard"])
def test_help_needs_no_torch_and_no_server(verb):
    code = (
        "import sys; from dynaxx.cli.main import app; sys.argv = ['dynaxx', sys.argv[1], '--help']\n"
        "try: app()\nfinally: print([name for name in ('torch', 'sqlalchemy', 'starlette') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_runs_are_found_by_words_tag_and_metric(dynaxx, place):
    code, out, _ = dynaxx("runs", "lr=0.1", "cnn", "--metric", "dynaxx/effective_rank")
    assert code == 0
    assert "cnn wide" in out
    assert "cnn narrow" not in out
    assert "48" in out
    assert dynaxx("runs", "--tag", "first")[1].count("\n") == 3
    code, out, _ = dynaxx("runs", "nothing", "--tag", "none")
    assert out.strip() == "no runs in dynaxx-runs/dynaxx.db with tag 'none', words 'nothing'"


def test_compare_shows_what_differs_and_writes_a_page(dynaxx, place, tmp_path):
    code, out, _ = dynaxx("compare", 1, 2, "--out", tmp_path / "page.html")
    assert code == 0
    assert "Settings that differ" in out
    assert "0.2" in out
    assert "48" in out
    assert "23" in out
    assert "Model versions" in out
    assert "cnn narrow" in (tmp_path / "page.html").read_text()
    assert "train/loss" not in dynaxx("compare", 1, 2, "--metric", "dynaxx/effective_rank")[1]
    code, _, err = dynaxx("compare", 1)
    assert code == 2
    assert "2 to 8 different runs" in err
    assert "has a metric 'none'" in dynaxx("compare", 1, 2, "--metric", "none")[2]
    assert "no run 9" in dynaxx("compare", 1, 9)[2]


def test_tags_are_given_and_taken_away(dynaxx, place):
    code, out, _ = dynaxx("tag", 1, 2, "--add", "keep", "--remove", "first")
    assert (code, out) == (0, "run 1: keep\nrun 2: keep\n")
    assert dynaxx("tag", 2, "--remove", "keep")[1] == "run 2: no tags\n"
    code, _, err = dynaxx("tag", 1, "--add", "x", "--store", "none.db")
    assert code == 2
    assert "there is no run store at 'none.db'" in err
    assert not os.path.exists("none.db")


def test_export_writes_the_runs_that_were_named(dynaxx, place, tmp_path):
    assert dynaxx("export", 2, "--out", tmp_path / "out.json")[0] == 0
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert run["name"] == "cnn narrow"
    assert dynaxx("export", "--out", tmp_path / "out.csv")[0] == 0
    assert (tmp_path / "out.csv").read_text().count("\n") == 13
    code, _, err = dynaxx("export", "--out", tmp_path / "out.txt")
    assert code == 2
    assert "choose one of 'csv', 'json', 'parquet'" in err


def names(place):
    with Store(place, readonly=True) as store:
        return sorted(info.name for info in store.runs())


def test_gc_says_what_it_would_remove_and_removes_it_only_when_told(dynaxx, place):
    code, out, _ = dynaxx("gc")
    assert code == 0
    assert "idle" in out
    assert "cnn" not in out
    assert "would remove 1 run, about 0 B; --apply does it" in out
    assert len(names(place)) == 3
    assert "removed 1 run" in dynaxx("gc", "--apply")[1]
    assert names(place) == ["cnn narrow", "cnn wide"]
    assert dynaxx("gc", "--apply")[1] == "nothing to remove\n"


def test_gc_keeps_what_is_tagged_keep_or_going_on_or_too_young(dynaxx, place):
    dynaxx("tag", 2, "--add", "keep")
    with Store(place) as store:
        going = store.run("going on")
        code, out, _ = dynaxx("gc", "--search", "status:failed", "--run", 1, "--run", going.id, "--apply")
        assert "run 2 (cnn narrow) stays: it is tagged 'keep'" in out
        assert f"run {going.id} (going on) stays: it is going on" in out
    assert names(place) == ["cnn narrow", "going on"]
    assert dynaxx("gc", "--older-than", 1)[1] == "nothing to remove\n"
    out = dynaxx("gc", "--older-than", 0)[1]
    assert "would remove 1 run" in out
    code, _, err = dynaxx("gc", "--run", 99)
    assert code == 2
    assert "no run 99" in err


def test_migrate_brings_an_old_store_up_to_date(dynaxx, tmp_path):
    make(tmp_path / "old.db")
    code, _, err = dynaxx("runs", "--store", "old.db")
    assert code == 2
    assert "dynaxx migrate" in err
    assert dynaxx("migrate", "--store", "old.db")[1] == "old.db: schema version 2\n"
    assert "veteran" in dynaxx("runs", "--store", "old.db")[1]
