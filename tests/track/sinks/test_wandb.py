"""The Weights & Biases sink against the library itself, offline; its file is read back."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.monitor.outlets import Outlet
from dynaxx.track.records import Alert
from dynaxx.track.sinks import Record, WandB

wandb = pytest.importorskip("wandb", reason="pip install wandb (extra: wandb)")

BLOCK, HEADER = 32768, 7


def stored(run_folder):
    """Records of an offline run: a file in LevelDB's log format that holds protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    (path,) = Path(run_folder).glob("*.wandb")
    data, at, parts = path.read_bytes(), HEADER, []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        parts.append(data[at + HEADER : at + HEADER + length])
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def rows(records):
    """Rows as they were logged; an object is spread over several items, whose keys say where they belong."""
    found = []
    for record in records:
        if record.HasField("history"):
            row = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                inner = row
                for key in outer:
                    inner = inner.setdefault(key, {})
                inner[last] = json.loads(item.value_json)
            found.append(row)
    return found


@pytest.fixture
def offline(tmp_path, monkeypatch):
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": tmp_path,
        "WANDB_SILENT": "true",
        "WANDB_CACHE_DIR": tmp_path / "cache",
        "WANDB_CONFIG_DIR": tmp_path / "config",
        "WANDB_DATA_DIR": tmp_path / "data",
    }.items():
        monkeypatch.setenv(name, str(value))
    yield tmp_path
    wandb.teardown()


def test_a_run_of_its_own(offline):
    sink, said = WandB(project="p", name="alone"), []
    folder = Path(sink.run.dir).parent
    outlet = Outlet(sink, said.append)  # in another thread, as beside a training
    values = {"dynaxx/trace": Estimate(2.0, 0.5, 8, False), "dynaxx/layer/a[0]/trace": 1.0}
    outlet.put(Record(40, 10.0, values))
    outlet.put(Record(80, 11.0, {"dynaxx/trace": math.nan}, {"dynaxx/spectrum": np.array([1e4, 1.0, 0.0])}))
    outlet.put(Alert("error", "t" * 80, "rising", 80, 12.0))
    outlet.close(timeout=60)
    assert said == []
    assert wandb.run is None
    wandb.teardown()  # its own process has then written everything
    records = list(stored(folder))
    first, second = [{k: v for k, v in row.items() if k[0] != "_"} for row in rows(records)]
    assert first == {
        "dynaxx/step": 40,
        "dynaxx/trace": 2.0,
        "dynaxx/trace_stderr": 0.5,
        "dynaxx/layer/a_0_/trace": 1.0,
    }
    histogram = second.pop("dynaxx/spectrum_log10")
    assert (histogram["_type"], sum(histogram["values"])) == ("histogram", 2)
    assert (histogram["bins"][0], histogram["bins"][-1]) == (0.0, 4.0)
    assert second["dynaxx/step"] == 80
    assert second["dynaxx/trace"] in ("NaN", None) or math.isnan(second["dynaxx/trace"])
    (alert,) = [record.alert for record in records if record.HasField("alert")]
    assert (alert.title, alert.text, alert.level) == ("t" * 63, "step 80: rising", "ERROR")
    metrics = {m.glob_name or m.name: m for m in (r.metric for r in records if r.HasField("metric"))}
    assert metrics["dynaxx/*"].step_metric == "dynaxx/step"
    assert next(record.run.display_name for record in records if record.HasField("run")) == "alone"


def test_the_run_that_is_open_is_shared(offline):
    """Rows of the user with and without ``step=`` stay, and so do ours."""
    theirs = wandb.init(project="p")
    folder = Path(theirs.dir).parent
    sink = WandB()
    assert (sink.run is theirs, sink.owned) == (True, False)
    with pytest.raises(InputError, match="project would name a new run"):
        WandB(project="other")
    for step in range(3):
        theirs.log({"loss": float(step)})
        sink.write([Record(step, 1.0, {"dynaxx/trace": float(step)})])
    report = offline / "report.html"
    report.write_text("<p>all is well</p>")
    sink.report(report)
    with pytest.raises(InputError, match="there is no file"):
        sink.report(offline / "none.html")
    sink.close()
    assert wandb.run is theirs
    theirs.finish()
    wandb.teardown()  # its own process has then written everything
    found = rows(stored(folder))
    assert [row["loss"] for row in found if "loss" in row] == [0.0, 1.0, 2.0]
    assert [(row["dynaxx/step"], row["dynaxx/trace"]) for row in found if "dynaxx/trace" in row] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
    ]
    (shown,) = [row["dynaxx/report"] for row in found if "dynaxx/report" in row]
    assert shown["_type"] == "html-file"
