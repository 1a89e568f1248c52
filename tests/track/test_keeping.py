"""Finding, judging, exporting and removing what a store has kept."""

import csv
import json
import math
import sqlite3
import sys

import numpy as np
import pytest

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.track import Store, StoreError
from dynaxx.track.export import export
from dynaxx.track.health import drift, health
from track.first_schema import check, make


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "a.db") as opened:
        yield opened


def test_a_store_of_the_first_version_is_migrated_when_it_is_opened_to_be_written(tmp_path):
    make(tmp_path / "old.db")
    with pytest.raises(StoreError, match=r"schema version 1, now 2.*dynaxx migrate"):
        Store(tmp_path / "old.db", readonly=True)
    with Store(tmp_path / "old.db") as store:
        check(store)
    with sqlite3.connect(tmp_path / "old.db") as raw:
        assert raw.execute("SELECT version FROM schema_version").fetchall() == [(2,)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_new_store_has_the_columns_of_a_migrated_one(tmp_path):
    make(tmp_path / "old.db")
    Store(tmp_path / "old.db").close()
    Store(tmp_path / "new.db").close()
    columns = []
    for name in ("old.db", "new.db"):
        with sqlite3.connect(tmp_path / name) as raw:
            tables = [row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            tables = sorted(name for name in tables if not name.startswith("sqlite_"))
            columns.append(
                {table: sorted(row[1:4] for row in raw.execute(f"PRAGMA table_info({table})")) for table in tables}
            )
    assert columns[0] == columns[1]


def test_tags_are_given_taken_away_and_searched(store):
    first = store.run("a", tags=("x", "y"))
    second = store.run("b", tags="alone")
    first.tag("z", "x")
    first.finish()
    store.tag(first.id, "late", remove=["y"])
    assert store.info(first.id).tags == ("late", "x", "z")
    assert store.info(second.id).tags == ("alone",)
    assert store.tags() == ["alone", "late", "x", "z"]
    assert [info.id for info in store.runs(tag="z")] == [first.id]
    assert [info.id for info in store.runs(search="tag:alone")] == [second.id]
    with pytest.raises(InputError, match="tag name"):
        store.tag(first.id, "a,b")
    with pytest.raises(StoreError, match="no run 9"):
        store.tag(9, "x")
    with pytest.raises(StoreError, match="no run 9"):
        store.run(parent=9)


def test_last_values_up_to_a_step_and_how_far_series_go(store):
    run = store.run()
    for step in range(5):
        run.log({"a": Estimate(step, 0.5, 2), "b": math.inf if step == 3 else 1.0}, step=10 * step)
    run.log({"late": 7.0}, step=40)
    assert {name: (one.first, one.step, one.value) for name, one in store.last(run.id).items()} == {
        "a": (0, 40, 4.0),
        "b": (0, 40, 1.0),
        "late": (40, 40, 7.0),
    }
    early = store.last(run.id, 35)
    assert sorted(early) == ["a", "b"]
    assert (early["a"].stderr, early["b"].value) == (0.5, math.inf)
    assert store.last(run.id, -1) == {}
    extent = store.extent(run.id, ["a", "late", "none"])
    assert {name: one[:2] for name, one in extent.items()} == {"a": (5, 40), "late": (1, 40)}
    walls = store.metrics(run.id, "a").walls
    assert store.metrics(run.id, "a", since=float(walls[2])).steps.tolist() == [30, 40]
    assert len(store.metrics(run.id, "a", since=float(walls[-1]))) == 0
    with pytest.raises(StoreError, match="no metric 'none'"):
        store.metrics(run.id, "none", since=0.0)


def test_the_last_array_of_each_name_comes_in_one_question(store):
    first, second = store.run(), store.run()
    for step in (3, 20, 7):
        first.log_array("a/x", np.full(2, float(step)), step=step, attributes={"floor": step})
    first.log_array("a/y", np.eye(2), step=1)
    second.log_array("a/x", np.zeros(1), step=99)
    found = store.last_arrays(first.id, ["a/x", "a/y", "a/z"])
    assert {name: (record.step, record.attributes) for name, record in found.items()} == {
        "a/x": (20, {"floor": 20}),
        "a/y": (1, {}),
    }
    assert found["a/x"].value.tolist() == [20.0, 20.0]
    assert store.last_arrays(second.id, []) == {}
    with pytest.raises(StoreError, match="no run 9"):
        store.last_arrays(9, ["a/x"])


def test_alerts_after_a_number_and_of_all_runs(store):
    first, second = store.run("a"), store.run("b")
    first.alert("one", rule="rank collapse")
    second.alert("two", level="error")
    one, two = store.alerts()
    assert (one.rule, one.run_id, two.run_id) == ("rank collapse", first.id, second.id)
    assert [alert.title for alert in store.alerts(since=one.id)] == ["two"]
    assert store.alerts(first.id, since=one.id) == []
    assert store.alert_counts() == {first.id: {"warning": 1}, second.id: {"error": 1}}


def test_baselines_keep_their_errors_and_what_is_not_finite(store):
    run = store.run()
    run.model_version("v", baseline={"rank": Estimate(3.0, 0.25, 4), "trace": math.nan, "plain": 1})
    run.model_version("v", baseline={"rank": 4.0})
    (first, _) = store.model_versions(run.id)
    assert first.baseline["rank"] == (3.0, 0.25)
    assert math.isnan(first.baseline["trace"][0])
    assert math.isnan(first.baseline["plain"][1])
    assert store.model_version(run.id, "v").baseline["rank"][0] == 4.0  # the last of one name counts
    with pytest.raises(StoreError, match="no model version 'w'; it has 'v'"):
        store.model_version(run.id, "w")
    with pytest.raises(InputError, match="no number"):
        run.model_version("v", baseline={"rank": "3"})


def test_health_follows_alerts_values_and_drift(store):
    run = store.run("trained")
    judged = lambda name: health(store, store.model_version(run.id, name))
    run.model_version("untouched", step=0)
    assert judged("untouched").level == "unknown"
    run.log({"loss": 1.0, "rank": Estimate(10.0, 1.0, 4)}, step=10)
    run.alert("note", level="info", step=5)
    run.model_version("good", step=10, baseline={"rank": Estimate(10.0, 1.0, 4)})
    assert judged("good").level == "good"
    run.alert("slow", level="warning", step=15)
    run.model_version("warned", step=20)
    assert judged("warned").reasons == ("slow (step 15)",)
    run.alert("burst", level="error", step=25)
    run.model_version("bad", step=30)
    assert judged("bad").level == "bad"
    run.model_version("recovered", step=40)  # the alerts before it were before the version before it
    assert judged("recovered").level == "good"
    run.log({"loss": math.nan}, step=50)
    run.model_version("broken", step=50)
    assert judged("broken").reasons == ("loss is nan (step 50)",)
    assert judged("good").level == "good"  # what came later is not its fault
    with store.run("deployed", parent=run.id) as later:
        later.log({"rank": Estimate(15.0, 1.0, 4)}, step=0)
    assert judged("good").level == "good"  # 5 / sqrt 2 = 3.5 standard errors
    with store.run("deployed", parent=run.id) as later:
        later.log({"rank": Estimate(17.0, 1.0, 4)}, step=0)
    assert judged("good").level == "warning"
    (found,) = drift(store.model_version(run.id, "good").baseline, store.last(later.id))
    assert found.deviations == pytest.approx(7 / math.sqrt(2))


def filled(store):
    with store.run("one", project="p", config={"lr": 0.1}, tags=["t"]) as run:
        for step, value in enumerate([0.1, math.nan, math.inf, -math.inf, 5e-324]):
            run.log({"a": Estimate(value, 0.5, 2), "b": 1.0}, step=step)
        run.log_array("s", np.array([[1.0, math.nan]]), step=3, attributes={"floor": 1e-9})
        run.log_array("c", np.array([1 + 2j]), step=3)
        run.alert("beware", step=2)
        run.artifact("f", b"bytes")
        run.model_version("v", baseline={"a": math.nan})
    with store.run("two") as other:
        other.log({"a": 2.0}, step=0)
    return run.id, other.id


def test_csv_gives_the_numbers_back_bit_for_bit(store, tmp_path):
    first, second = filled(store)
    export(store, tmp_path / "deep" / "out.csv")
    with open(tmp_path / "deep" / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    np.testing.assert_array_equal(
        [float(row["value"]) for row in rows if row["metric"] == "a" and row["run"] == str(first)],
        store.metrics(first, "a").values,
    )
    assert {row["stderr"] for row in rows if row["metric"] == "b"} == {""}
    export(store, tmp_path / "one.csv", [second])
    assert (tmp_path / "one.csv").read_text().count("\n") == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_json_holds_everything_and_only_what_json_knows(store, tmp_path):
    first, _ = filled(store)
    export(store, tmp_path / "out.json")
    refuse = lambda word: pytest.fail(f"{word} is not JSON")
    run = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)["runs"][0]
    assert (run["id"], run["config"], run["tags"]) == (first, {"lr": 0.1}, ["t"])
    assert run["metrics"]["a"]["values"] == [0.1, "nan", "inf", "-inf", 5e-324]
    arrays = {array["name"]: array for array in run["arrays"]}
    assert arrays["s"]["values"] == [[1.0, "nan"]]
    assert arrays["s"]["attributes"] == {"floor": 1e-9}
    assert arrays["c"]["values"] == [[1.0, 2.0]]
    assert run["alerts"][0]["title"] == "beware"
    assert run["model_versions"][0]["baseline"] == {"a": ["nan", "nan"]}
    assert [item["name"] for item in run["artifacts"]] == ["f"]


def test_parquet_keeps_nan_apart_from_nothing(store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    first, _ = filled(store)
    export(store, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["run", "project", "run_name", "metric", "step", "wall", "value", "stderr"]
    rows = [row for row in table.to_pylist() if row["run"] == first and row["metric"] == "a"]
    np.testing.assert_array_equal([row["value"] for row in rows], store.metrics(first, "a").values)
    assert table.column("value").null_count == 0
    assert table.column("stderr").null_count == 6  # those of "b", and that of the other run


def test_exports_that_cannot_be(store, tmp_path, monkeypatch):
    filled(store)
    for path, options, words in [
        ("out.xls", {}, "format='.xls' is not known; choose one of 'csv', 'json', 'parquet'"),
        ("out", {}, "format='none' is not known"),
        ("out.csv", {"runs": [9]}, "no run 9"),
        ("out.csv/x.csv", {}, "cannot write"),
    ]:
        (tmp_path / "out.csv").write_text("old")
        with pytest.raises(InputError, match=words):
            export(store, tmp_path / path, **options)
        assert (tmp_path / "out.csv").read_text() == "old"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install pyarrow, or export to \.csv or \.json"):
        export(store, tmp_path / "out.parquet")
    monkeypatch.setattr("dynaxx.track.export._plain", lambda values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(store, tmp_path / "new.json")
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"a.db", "a.db-wal", "a.db-shm", "out.csv"}


def test_removing_runs_takes_all_their_rows_and_nobody_elses(store, tmp_path):
    first, second = filled(store)
    child = store.run("child", parent=first)
    with pytest.raises(StoreError, match="still running"):
        store.remove([second, child.id])
    assert len(store.runs()) == 3
    child.finish()
    before = store.metrics(second)
    store.remove([first])
    store.tidy()
    assert [info.name for info in store.runs()] == ["child", "two"]
    assert store.info(child.id).parent is None
    assert store.projects() == ["default"]
    np.testing.assert_array_equal(store.metrics(second)["a"].values, before["a"].values)
    with sqlite3.connect(tmp_path / "a.db") as raw:
        for table in ("metric", "array", "alert", "artifact", "model_version", "tag"):
            assert raw.execute(f"SELECT count(*) FROM {table} WHERE run_id = {first}").fetchone() == (0,)
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
    with pytest.raises(StoreError, match="no run"):
        store.remove([first])


def test_the_number_of_a_removed_run_is_not_given_again_and_names_written_before_still_fit(store):
    run = store.run("newest")
    run.log({"loss": 1.0}, step=0)
    run.alert("beware")
    run.finish()
    (alert,) = store.alerts()
    with Store(store.location) as other:
        other.remove([run.id])
        other.tidy()
    again = store.run("next")
    assert again.id > run.id
    again.log({"loss": 2.0}, step=0)
    again.alert("again")
    assert store.summary(again.id) == {"loss": 2.0}
    assert store.alerts()[0].id > alert.id


def test_a_store_opened_to_be_read_changes_nothing(store):
    run_id, _ = filled(store)
    with Store(store.location, readonly=True) as reader:
        for change in (lambda: reader.tag(run_id, "x"), lambda: reader.remove([run_id]), reader.tidy, reader.run):
            with pytest.raises(StoreError, match="readonly=True"):
                change()


def test_tidying_gives_the_space_back(store, tmp_path):
    with store.run() as run:
        run.artifact("large", bytes(2 * 10**6))
    store.remove([run.id])
    store.tidy()
    store.close()
    assert (tmp_path / "a.db").stat().st_size < 5 * 10**5
