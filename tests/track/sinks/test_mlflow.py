"""The MLflow sink against the library itself, with a SQLite store."""

import math
import threading

import pytest

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.monitor.outlets import Outlet
from dynaxx.track.records import Alert
from dynaxx.track.sinks import MLflow, Record

mlflow = pytest.importorskip("mlflow", reason="pip install mlflow (extra: mlflow)")

EVENT = Alert("warning", "divergence", "rising", 5, 12.0)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A store of its own, made once, because making the tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    address = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(address)
    mlflow.create_experiment("dynaxx", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("dynaxx")
    yield address
    mlflow.set_tracking_uri(before)


def history(sink, name):
    return [(m.step, m.timestamp, m.value) for m in sink.client.get_metric_history(sink.run_id, name)]


def test_a_run_of_its_own(uri, tmp_path):
    sink, said = MLflow(name="alone"), []
    outlet = Outlet(sink, said.append)  # in another thread, as beside a training
    values = {"dynaxx/trace": Estimate(2.0, 0.5, 8, False), "dynaxx/layer/a[0]/trace": 1.0}
    outlet.put(Record(0, 10.0, values))
    outlet.put(Record(5, 11.5, {"dynaxx/trace": math.nan, "dynaxx/top_eigenvalue": math.inf}))
    outlet.put(EVENT)
    outlet.close(timeout=60)
    assert said == []
    assert history(sink, "dynaxx/trace")[0] == (0, 10_000, 2.0)
    step, wall, value = history(sink, "dynaxx/trace")[1]
    assert (step, wall, math.isnan(value)) == (5, 11_500, True)
    assert history(sink, "dynaxx/trace_stderr") == [(0, 10_000, 0.5)]
    assert history(sink, "dynaxx/layer/a_0_/trace") == [(0, 10_000, 1.0)]
    assert history(sink, "dynaxx/top_eigenvalue")[0][2] > 1e300
    run = sink.client.get_run(sink.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "alone")
    assert run.data.tags["dynaxx.alert"] == "warning: divergence (step 5): rising"
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/dynaxx/events.jsonl")
    assert text == '{"level": "warning", "title": "divergence", "text": "rising", "step": 5, "wall": 12.0}\n'
    report = tmp_path / "report.html"
    report.write_text("<p>all is well</p>")
    sink.report(report)
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/dynaxx/report.html") == "<p>all is well</p>"
    with pytest.raises(InputError, match="there is no file"):
        sink.report(tmp_path / "none.html")


def test_the_run_that_is_open_stays_open(uri):
    with mlflow.start_run(run_name="theirs") as run:
        sink = MLflow()
        assert (sink.run_id, sink.owned) == (run.info.run_id, False)
        # MLflow's active run belongs to a thread: the sink must not look for it in its own
        thread = threading.Thread(target=sink.write, args=([Record(1, 1.0, {"dynaxx/trace": 3.0})],))
        thread.start()
        thread.join()
        sink.close()
        assert sink.client.get_run(sink.run_id).info.status == "RUNNING"
        with pytest.raises(InputError, match="name would name a new run"):
            MLflow(name="other")
    assert history(sink, "dynaxx/trace") == [(1, 1000, 3.0)]


def test_more_metrics_than_one_request_takes(uri):
    sink = MLflow()
    sink.write([Record(2, 1.0, {f"dynaxx/layer/{i}/trace": float(i) for i in range(1001)})])
    sink.event(Alert("error", "not finite", "", None, 0.0))
    sink.close()
    run = sink.client.get_run(sink.run_id)
    assert len(run.data.metrics) == 1001
    assert run.data.metrics["dynaxx/layer/1000/trace"] == 1000.0
    assert run.info.status == "FAILED"


def test_the_same_record_twice_is_one_point(uri):
    """A request that was cut off is sent again."""
    sink = MLflow()
    for _ in range(2):
        sink.write([Record(2, 1.0, {"dynaxx/trace": 3.0})])
    sink.close()
    assert history(sink, "dynaxx/trace") == [(2, 1000, 3.0)]
