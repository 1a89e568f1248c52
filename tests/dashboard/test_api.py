"""What the server answers, held against the store."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
from sqlalchemy import insert, update

from dashboard.served import served
from dynaxx.dashboard.series import SeriesCache
from dynaxx.track import Store, schema


def test_runs_are_found_by_words_project_tag_and_parent(server):
    found = lambda query: [run["id"] for run in server.json(f"/api/runs{query}")["runs"]]
    assert found("") == [3, 2, 1]
    assert found("?search=NARROW") == [2]
    assert found("?search=lr%3D0.1%20wide") == [3, 1]
    assert found("?search=status:failed") == [2]
    assert found("?tag=keep&project=vision") == [1]
    assert found("?parent=1") == [3]
    assert found("?search=nowhere") == []
    answer = server.json("/api/runs")
    assert answer["tags"] == ["baseline", "keep"]
    assert {run["id"]: run["alerts"] for run in answer["runs"]} == {1: {"info": 1}, 2: {"error": 1}, 3: {}}


def test_a_run_tells_what_there_is_to_draw(server):
    run = server.json("/api/runs/1")
    assert [array["name"] for array in run["arrays"] if array["page"] == "pruning"] == [
        "dynaxx/one_shot/magnitude",
        "dynaxx/one_shot/obd",
    ]
    assert run["layers"] == {"trace": 12}
    assert run["config"] == [["lr", "0.1"], ["seed", "1"]]
    last = {one["name"]: one for one in run["metrics"]}
    assert last["dynaxx/sparsity"]["first"] == last["dynaxx/sparsity"]["step"] == 990
    assert last["dynaxx/effective_rank"]["stderr"] == 1.5
    assert run["children"] == [{"id": 3, "name": "cnn wide new data"}]
    assert {one["name"]: one["value"] for one in server.json("/api/runs/2")["metrics"]}["train/loss"] == "NaN"


def test_health_says_what_it_rests_on(server):
    (drifted,) = server.json("/api/runs/1")["versions"]
    assert drifted["health"] == "warning"
    # (60 - 20) / sqrt(1.5^2 + 1.5^2)
    assert drifted["reasons"] == ["dynaxx/effective_rank is 18.9 standard errors from its baseline in run 3"]
    assert drifted["drift"][0]["deviations"] == pytest.approx(40 / math.hypot(1.5, 1.5))
    (broken,) = server.json("/api/runs/2")["versions"]
    assert broken["health"] == "bad"
    assert broken["reasons"] == ["loss is not finite (step 210)", "train/loss is nan (step 290)"]


def test_a_chart_holds_the_logged_values_their_bands_and_the_alerts(server, path):
    answer = server.json("/api/lines?run=1&name=dynaxx/effective_rank")
    (curve,) = answer["curves"]
    with Store(path, readonly=True) as store:
        columns = store.metrics(1, "dynaxx/effective_rank")
    assert curve["x"] == columns.steps.tolist()
    np.testing.assert_allclose(curve["y"], columns.values, rtol=1e-6)
    np.testing.assert_allclose(np.subtract(curve["high"], curve["low"]), 6.0, rtol=1e-5)
    assert answer["markers"] == [{"x": 500.0, "label": "learning rate changed"}]
    gaps = server.json("/api/lines?run=2&name=train/loss")
    assert gaps["curves"][0]["y"][-1] is None
    assert gaps["remarks"] == ["train/loss: 9 of 30 values are not finite (gaps)."]


def test_a_long_series_is_thinned_and_keeps_its_peaks_and_a_part_of_it_comes_whole(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=20000)
    values[7777], values[12345] = 99.0, -99.0
    with Store(tmp_path / "a.db") as store, store.run() as run:
        for step, value in enumerate(values):
            run.log({"x": value}, step=step)
    with served(tmp_path / "a.db") as server:
        (curve,) = server.json("/api/lines?run=1&name=x&points=400")["curves"]
        assert 200 < len(curve["x"]) <= 402
        assert {99, -99} <= set(curve["y"])
        assert curve["x"][0] == 0
        assert curve["x"][-1] == 19999
        (part,) = server.json("/api/lines?run=1&name=x&points=400&from=7700.5&to=7800")["curves"]
        assert part["x"] == list(range(7700, 7802))
        np.testing.assert_allclose(part["y"], values[7700:7802], rtol=1e-6)


def test_an_answer_that_has_not_changed_is_not_sent_again_and_one_that_has_is(tmp_path):
    with Store(tmp_path / "a.db") as store, served(tmp_path / "a.db") as server:
        run = store.run("live")
        run.log({"x": 1.0}, step=0)
        run.flush()
        for path in ("/api/lines?run=1&name=x", "/api/runs/1", "/api/runs"):
            status, headers, _ = server.ask(path)
            assert status == 200
            again = {"If-None-Match": headers["etag"]}
            assert server.ask(path, headers=again)[0] == 304
        lines = {"If-None-Match": server.ask("/api/lines?run=1&name=x")[1]["etag"]}
        run.log({"x": 5.0}, step=0)  # in the place of the old value: as many values, the same last step
        run.flush()
        status, _, body = server.ask("/api/lines?run=1&name=x", headers=lines)
        assert status == 200
        assert json.loads(body)["curves"][0]["y"] == [5]


def test_news_are_the_alerts_after_a_number_and_the_runs_that_go_on(tmp_path):
    with Store(tmp_path / "a.db") as store, served(tmp_path / "a.db") as server:
        run = store.run("live")
        run.alert("first")
        news = server.json("/api/news?since=0")
        assert [alert["title"] for alert in news["alerts"]] == ["first"]
        assert news["running"] == [1]
        assert server.json(f"/api/news?since={news['last']}")["alerts"] == []
        run.alert("second", level="error", rule="r")
        (second,) = server.json(f"/api/news?since={news['last']}")["alerts"]
        assert (second["title"], second["rule"], second["run_id"]) == ("second", "r", 1)
        run.finish()
        assert server.json("/api/news")["running"] == []


def test_series_grow_without_being_read_anew_and_agree_with_the_store_whatever_is_written(tmp_path):
    with Store(tmp_path / "a.db") as store:
        run, cache = store.run(), SeriesCache(store)
        rng = np.random.default_rng(1)
        whole, part = [], []
        original = store.metrics
        store.metrics = lambda *a, since=None: (
            (part if since is not None else whole).append(1) or original(*a, since=since)
        )
        for _ in range(30):
            for step in rng.integers(0, 60, 5):  # new steps, old ones again, and steps between old ones
                run.log({"x": float(rng.choice([rng.normal(), math.nan, math.inf]))}, step=int(step))
            store.flush()
            extent = cache.extents(run.id, ["x"])["x"]
            found, expected = cache.read(run.id, "x", extent), original(run.id, "x")
            np.testing.assert_array_equal(found.steps, expected.steps)
            np.testing.assert_array_equal(found.values, expected.values)
        assert len(whole) == 1
        assert len(part) == 29


def test_the_regions_of_a_spectrum_are_counted_as_their_definition_says(server, path):
    answer = server.json("/api/spectrum?run=1&name=dynaxx/spectrum&threshold=0.01")
    assert answer["steps"] == [0, 500, 990]
    assert answer["step"] == 990
    with Store(path, readonly=True) as store:
        values = store.arrays(1, "dynaxx/spectrum", [990])[0].value
    facts = answer["facts"]
    assert facts["above the floor"] == int((values > 1e-6).sum())
    assert facts["stiff"] == int((values >= 0.1).sum())  # a hundredth of the largest, which is 10
    assert (facts["dimension"], facts["count"], facts["floor"]) == (1200, 70, 1e-6)
    assert [(one["label"], one["low"], one["high"]) for one in answer["regions"]] == [
        ("stiff", 0.1, None),
        ("sloppy", 1e-6, 0.1),
        ("rounding", None, 1e-6),
    ]
    first = server.json("/api/spectrum?run=1&name=dynaxx/spectrum&step=0&threshold=0.1")
    assert first["step"] == 0
    assert first["facts"]["stiff"] == int((10 * np.exp(-np.arange(60) / 6) >= 1).sum())


def test_the_heat_map_is_layers_by_steps_in_counting_order(server):
    answer = server.json("/api/heatmap?run=1&quantity=trace")
    assert answer["layers"] == [f"block.{i}.conv" for i in range(12)]
    assert answer["steps"] == list(range(0, 1000, 10))
    expected = [[10.0 ** (i / 3 - 1 - step / 900) for step in answer["steps"]] for i in range(12)]
    np.testing.assert_allclose(answer["values"], expected)
    assert answer["log"] is True


def test_curves_of_arrays_and_points_of_embeddings(server):
    (chart,) = server.json("/api/family?run=1&page=pruning")["charts"]
    assert [curve["name"] for curve in chart["curves"]] == ["magnitude", "obd"]
    assert (chart["xLabel"], chart["yLabel"]) == ("sparsity", "score")
    (chart,) = server.json("/api/family?run=1&page=reduction")["charts"]
    assert (chart["xLabel"], chart["yLabel"]) == ("directions", "accuracy")
    assert chart["curves"][0]["y"] == [0.2, 0.7, 0.97]
    points = server.json("/api/inpca?run=1&name=dynaxx/inpca")
    assert np.array(points["cloud"]["points"]).shape == (12, 3)
    assert points["cloud"]["groups"] == ["sgd", "adam"]
    assert points["cloud"]["group"] == [0] * 6 + [1] * 6
    assert points["cloud"]["connect"] is True
    assert (points["points"], points["explained_stress"], points["eigenvalues"]) == (12, 0.8, [3.0, 1.0, -0.5])


def test_runs_and_versions_are_compared_at_their_own_steps(server):
    answer = server.json("/api/compare?item=1&item=2:v1")
    assert answer["settings"] == [["lr", "0.1", "0.9"]]
    values = {one["name"]: one["values"] for one in answer["metrics"]}
    assert sorted(values) == ["dynaxx/effective_rank", "train/loss"]
    assert values["train/loss"][1] == {"first": 0, "step": 290, "value": "NaN", "stderr": None}
    assert answer["items"][1]["version"]["health"] == "bad"


def test_downloads_are_whole(server, path):
    _, headers, body = server.ask("/runs/1/data.csv")
    assert headers["content-disposition"] == 'attachment; filename="run-1.csv"'
    rows = list(csv.DictReader(io.StringIO(body.decode())))
    with Store(path, readonly=True) as store:
        metrics = store.metrics(1)
    assert len(rows) == sum(map(len, metrics.values()))
    loss = [float(row["value"]) for row in rows if row["metric"] == "train/loss"]
    assert loss == metrics["train/loss"].values.tolist()
    run = json.loads(server.ask("/runs/2/data.json")[2])
    assert run["metrics"]["train/loss"]["values"][-1] == "nan"
    report = server.ask("/runs/1/report.html")[2].decode()
    assert "cnn wide" in report
    assert "script-src 'sha256-" in report  # the report keeps its own policy
    assert "cnn narrow" in server.ask("/compare.html?run=1&run=2")[2].decode()
    assert server.ask("/runs/1/artifacts/notes.txt")[2] == b"hello"


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/api/runs/99", 404, "no run 99"),
        ("/api/lines?run=1&name=nothing", 404, "no.* 'nothing'|has a metric 'nothing'"),
        ("/api/lines?name=x", 400, "run was given 0 times"),
        ("/api/lines?run=x&name=x", 400, "not all whole numbers"),
        ("/api/lines?run=1&name=x&points=9999999", 400, "points=9999999 is not between"),
        ("/api/lines?run=1&name=x&from=a&to=b", 400, "are not numbers"),
        ("/api/spectrum?run=1", 400, "name is missing"),
        ("/api/spectrum?run=1&name=dynaxx/spectrum&threshold=2", 400, "between 0 and 1"),
        ("/api/spectrum?run=1&name=dynaxx/inpca", 404, "a spectrum is"),
        ("/api/heatmap?run=1&quantity=none", 404, "no quantity 'none'"),
        ("/api/inpca?run=1&name=dynaxx/spectrum", 404, "an embedding is"),
        ("/api/compare", 400, "0 items"),
        ("/api/compare?item=1:none", 404, "no model version 'none'; it has 'v1'"),
        ("/api/compare?item=one", 404, "neither a run"),
        ("/api/news?since=99999999999999999999", 400, "is not between"),
        ("/runs/1/artifacts/none", 404, "no artifact 'none'"),
    ],
)
def test_what_cannot_be_answered_is_told_with_the_reason(server, address, status, words):
    found, _, body = server.ask(address)
    assert found == status
    assert re.search(words, json.loads(body)["error"])


def test_a_file_that_a_foreign_store_points_to_stays_where_it_is(tmp_path):
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret")
    folder = tmp_path / "runs"
    with Store(folder / "a.db") as store, store.run() as run:
        (folder / "near.txt").write_text("near")
        run.artifact("near", folder / "near.txt")
        run.artifact("far", secret)
        (folder / "link").symlink_to(secret)
        run.artifact("link", folder / "link")
        run.flush()
        row = {"run_id": run.id, "wall": 0.0, "mime": "x", "data": b"x"}
        with store.database.writing() as connection:
            connection.execute(insert(schema.artifact).values(name='a"\n; x', path=None, **row))
            connection.execute(insert(schema.artifact).values(name='b"; x=1', path=None, **row))
            dots = {**row, "data": None}
            connection.execute(
                insert(schema.artifact).values(name="dots", path=f"{folder}/../elsewhere/secret", **dots)
            )
    with served(folder / "a.db") as server:
        assert server.ask("/runs/1/artifacts/near")[2] == b"near"
        for name in ("far", "link", "dots"):
            status, _, body = server.ask(f"/runs/1/artifacts/{name}")
            assert status == 404
            assert b"outside the store's folder" in body
        assert server.ask("/runs/1/artifacts/a%22%0A;%20x")[0] == 404
        status, headers, _ = server.ask("/runs/1/artifacts/b%22;%20x=1")
        assert (status, headers["content-disposition"]) == (200, 'attachment; filename="b_ x_1"')


def test_a_store_that_holds_nonsense_gives_an_error_and_not_a_broken_server(tmp_path):
    with Store(tmp_path / "a.db") as store, store.run() as run:
        run.log_array("dynaxx/spectrum", np.ones(3), step=0)
        run.flush()
        with store.database.writing() as connection:
            connection.execute(update(schema.array).values(dtype="|O8"))
    with served(tmp_path / "a.db") as server:
        assert server.ask("/api/spectrum?run=1&name=dynaxx/spectrum")[0] in (404, 500)
        assert server.ask("/api/runs")[0] == 200


@pytest.mark.parametrize("name", ["dynaxx/spectrum/floor", "dynaxx/spectrum_floor"])
def test_a_floor_may_stand_beside_the_spectrum_and_is_guessed_nowhere_else(tmp_path, name):
    with Store(tmp_path / "a.db") as store, store.run() as run:
        for step in (0, 10):
            run.log_array("dynaxx/spectrum", [1.0, 0.1, 1e-9], step=step)
        run.log({name: 1e-6}, step=10)
    with served(tmp_path / "a.db") as server:
        facts = [server.json(f"/api/spectrum?run=1&name=dynaxx/spectrum&step={step}")["facts"] for step in (0, 10)]
        assert [(one["floor"], one["above the floor"]) for one in facts] == [(None, 3), (1e-6, 2)]
        assert name not in [metric["name"] for metric in server.json("/api/runs/1")["metrics"]]
