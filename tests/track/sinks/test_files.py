"""Sinks of files and functions: what was written is read back, by other code."""

import json
import math

import numpy as np
import pytest

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.monitor.outlets import require_sinks
from dynaxx.track.records import Alert
from dynaxx.track.sinks import Callback, JsonLines, Record, Selected, TensorBoard

RECORDS = [
    Record(0, 10.0, {"dynaxx/trace": Estimate(2.0, 0.5, 8, False), "dynaxx/layer/0/trace": 1.0, "blocks[0]": 3}),
    Record(5, 11.0, {"dynaxx/trace": math.nan}, {"dynaxx/spectrum": np.array([1e4, 1.0, 1e-3, 0.0])}),
]
EVENT = Alert("warning", "divergence", "loss <3> & rising", 5, 12.0)


def fill(sink):
    require_sinks([sink])
    for record in RECORDS:
        sink.write([record])
    sink.event(EVENT)
    sink.flush()
    sink.close()


def lines(path):
    strict = lambda constant: pytest.fail(f"{constant} is no JSON")
    return [json.loads(line, parse_constant=strict) for line in path.read_text().splitlines()]


def test_json_lines(tmp_path):
    path = tmp_path / "deep" / "run.jsonl"
    fill(JsonLines(path))
    first, second, event = lines(path)
    assert first == {
        "kind": "record",
        "step": 0,
        "wall": 10.0,
        "values": {"dynaxx/trace": 2.0, "dynaxx/layer/0/trace": 1.0, "blocks[0]": 3.0},
        "stderrs": {"dynaxx/trace": 0.5},
    }
    assert second["values"] == {"dynaxx/trace": "nan"}
    assert second["arrays"] == {"dynaxx/spectrum": [1e4, 1.0, 1e-3, 0.0]}
    assert event == {
        "kind": "event",
        "level": "warning",
        "title": "divergence",
        "text": "loss <3> & rising",
        "step": 5,
        "wall": 12.0,
    }


def test_json_lines_go_on_after_a_torn_line(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('{"kind": "record"}\n{"kind": "rec')
    sink = JsonLines(path, arrays=False)
    sink.write(RECORDS[1:])
    # without flush or close: what was taken is with the operating system
    *_, torn, last = path.read_text().splitlines()
    assert torn == '{"kind": "rec'
    assert json.loads(last) == {"kind": "record", "step": 5, "wall": 11.0, "values": {"dynaxx/trace": "nan"}}
    sink.close()


def test_json_lines_say_at_once_that_a_file_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot append to"):
        JsonLines(tmp_path / "file" / "run.jsonl")


def test_callback():
    records, events = [], []
    fill(Callback(record=records.append, event=events.append))
    assert (records, events) == (RECORDS, [EVENT])
    fill(Callback(event=events.append))
    assert len(events) == 2
    for arguments in ({}, {"record": 3}):
        with pytest.raises(InputError):
            Callback(**arguments)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, 3, 0), (5, 1, 1)]),
        ({"but": ["dynaxx/layer/*"]}, [(0, 2, 0), (5, 1, 1)]),
        ({"names": ["dynaxx/layer/*"]}, [(0, 1, 0)]),
        ({"names": "*spectrum"}, [(5, 0, 1)]),
        ({"names": lambda name: name == "dynaxx/trace"}, [(0, 1, 0), (5, 1, 0)]),
    ],
)
def test_selected(options, expected):
    records, events = [], []
    fill(Selected(Callback(records.append, events.append), **options))
    assert [(record.step, len(record.values), len(record.arrays)) for record in records] == expected
    assert events == [EVENT]


def test_selected_refuses_what_it_cannot_use():
    with pytest.raises(InputError, match="takes a sink"):
        Selected(print)
    with pytest.raises(InputError, match="patterns"):
        Selected(Callback(print), names=[3])


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="reads the files back with TensorBoard (extra: tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, TENSORS, EventAccumulator

    fill(TensorBoard(tmp_path / "run"))
    read = EventAccumulator(str(tmp_path / "run"), size_guidance={HISTOGRAMS: 0, TENSORS: 0})
    read.Reload()
    found = {
        tag: [(event.step, event.wall_time, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }
    assert set(found) == {"dynaxx/trace", "dynaxx/trace_stderr", "dynaxx/layer/0/trace", "blocks_0_"}
    assert found["dynaxx/trace"][0] == (0, 10.0, 2.0)
    assert found["dynaxx/trace"][1][0] == 5
    assert math.isnan(found["dynaxx/trace"][1][2])
    assert found["dynaxx/trace_stderr"] == [(0, 10.0, 0.5)]
    (histogram,) = read.Histograms("dynaxx/spectrum_log10")
    value = histogram.histogram_value
    assert (value.num, value.min, value.max, sum(value.bucket)) == (3, -3.0, 4.0, 3)
    assert (value.sum, value.sum_squares) == pytest.approx((1.0, 25.0))
    assert len(value.bucket) == len(value.bucket_limit) == 60
    (text,) = read.Tensors("dynaxx/events")
    assert text.tensor_proto.string_val[0].decode() == "**warning: divergence**\n\nloss <3> & rising"
    assert read.SummaryMetadata("dynaxx/events").plugin_data.plugin_name == "text"


def test_tensorboard_leaves_torch_alone(tmp_path):
    pytest.importorskip("tensorboard", reason="writes with TensorBoard (extra: tensorboard)")
    import subprocess
    import sys

    code = "import sys; from dynaxx.track.sinks import *; TensorBoard(sys.argv[1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
