"""What goes into the store comes out of it, and what cannot go in is refused with a reason."""

import math
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dynaxx.errors import InputError, SizeError
from dynaxx.estimate import Estimate
from dynaxx.track import Store, StoreError, clean_name, records
from dynaxx.track.liveness import actual_status, host


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "runs" / "dynaxx.db") as opened:
        yield opened


def test_numbers_that_sql_cannot_carry_come_back_bit_for_bit(store):
    run = store.run()
    values = [0.1, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308]
    for step, value in enumerate(values):
        run.log({"dynaxx/trace": value}, step=step)
    columns = store.metrics(run.id, "dynaxx/trace")
    np.testing.assert_array_equal(columns.values, values)
    assert columns.steps.tolist() == list(range(6))
    assert np.all(np.abs(columns.walls - time.time()) < 60)
    assert store.summary(run.id) == {"dynaxx/trace": values[-1]}


def test_a_number_that_is_not_finite_says_so_to_anybody_who_reads_the_file(store, tmp_path):
    run = store.run()
    run.log({"a": math.nan}, step=0)
    run.log({"a": -math.inf}, step=1)
    run.finish()
    with sqlite3.connect(tmp_path / "runs" / "dynaxx.db") as raw:
        assert raw.execute("SELECT value, kind FROM metric ORDER BY step").fetchall() == [(None, 1), (None, 3)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor(1.5, requires_grad=True), 1.5),
        (torch.tensor([2.5], dtype=torch.bfloat16), 2.5),
        (np.float32(0.5), 0.5),
        (np.array([[4.0]]), 4.0),
        (True, 1.0),
        (3, 3.0),
        (2**70, float(2**70)),
    ],
)
def test_whatever_is_one_number_is_taken_as_one(store, value, expected):
    run = store.run()
    run.log({"x": value})
    assert store.metrics(run.id, "x").values.tolist() == [expected]


def test_an_estimate_keeps_its_standard_error(store):
    run = store.run()
    run.log({"sampled": Estimate(3.0, 0.25, 10), "exact": Estimate(3.0), "plain": 3.0}, step=7)
    errors = {name: columns.stderrs[0] for name, columns in store.metrics(run.id).items()}
    assert errors["sampled"] == 0.25
    assert errors["exact"] == 0.0
    assert math.isnan(errors["plain"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layer[0]": 1.0}, r"'layer\[0\]' holds '\[', '\]'.*\[A-Za-z0-9_./ -\].*'layer_0_'"),
        ({"": 1.0}, "is empty"),
        ({"x" * 251: 1.0}, "251 characters"),
        ({3: 1.0}, "is a int"),
        ({"x": "0.5"}, "no number"),
        ({"x": None}, "no number"),
        ({"x": 1j}, "no number"),
        ({"x": torch.ones(3)}, r"shape \(3,\).*log_array"),
        ({"x": 10**400}, "no number"),
    ],
)
def test_what_cannot_be_stored_is_refused_at_once_and_nothing_of_it_is_kept(store, values, words):
    run = store.run()
    with pytest.raises(InputError, match=words):
        run.log({"fine": 1.0, **values}, step=0)
    assert store.metrics(run.id) == {}


def test_names_are_limited_everywhere_and_cleaning_makes_them_fit(store):
    run = store.run(name="x" * 250)
    for refused in (
        lambda: store.run(name="<b>"),
        lambda: store.run(project="a/b?"),
        lambda: run.log_array("a:b", [1.0]),
        lambda: run.artifact("a:b", b""),
        lambda: run.model_version("a:b"),
    ):
        with pytest.raises(InputError, match="250 characters"):
            refused()
    assert clean_name("net[0]:w" + "é") == "net_0_w_"
    run.log({clean_name("é" * 3 + "y" * 400): 1.0})
    assert store.metric_names(run.id) == ["y" * 250]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "bool", "complex64", ">f8", "uint8"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_arrays_come_back_with_shape_dtype_and_values(store, dtype, shape):
    run = store.run()
    value = np.asarray(np.random.default_rng(0).integers(0, 100, shape)).astype(dtype)
    run.log_array("s", value, step=3)
    (record,) = store.arrays(run.id, "s")
    np.testing.assert_array_equal(record.value, value)
    assert (record.step, record.value.shape) == (3, shape)
    assert record.value.dtype == value.dtype.newbyteorder("<")


def test_tensors_are_copied_when_logged_and_bfloat16_loses_nothing(store):
    run = store.run()
    tensor = torch.arange(6.0).view(2, 3).T  # not contiguous
    expected = tensor.clone().numpy()
    run.log_array("t", tensor, step=0)
    tensor.zero_()
    half = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    run.log_array("half", half.requires_grad_(), step=0)
    np.testing.assert_array_equal(store.arrays(run.id, "t")[0].value, expected)
    np.testing.assert_array_equal(store.arrays(run.id, "half")[0].value, half.detach().double().numpy())
    assert store.array_names(run.id) == ["half", "t"]


def test_arrays_of_chosen_steps_only(store):
    run = store.run()
    for step in range(5):
        run.log_array("s", np.full(2, step), step=step * 10)
    assert store.array_steps(run.id, "s") == [0, 10, 20, 30, 40]
    assert [record.value[0] for record in store.arrays(run.id, "s", steps=[40, 10])] == [1, 4]
    assert store.arrays(run.id, "s", steps=[5]) == []


def test_arrays_that_are_no_numbers_or_too_large_are_refused(store, monkeypatch):
    run = store.run()
    with pytest.raises(InputError, match="not numeric"):
        run.log_array("s", np.array(["a"]))
    monkeypatch.setattr(records, "LARGEST_BLOB", 100)
    with pytest.raises(SizeError, match=r"run\.artifact"):
        run.log_array("s", np.zeros(100))


def test_the_last_value_of_a_step_counts_and_steps_count_themselves(store):
    run = store.run()
    run.log({"a": 1.0}, step=5)
    run.log({"a": 2.0}, step=5)
    store.flush()
    run.log({"a": 3.0}, step=5)
    run.log({"a": 4.0})
    run.log({"b": 9.0}, step=2)
    run.log({"a": 5.0})
    columns = store.metrics(run.id, "a")
    assert (columns.steps.tolist(), columns.values.tolist()) == ([5, 6, 7], [3.0, 4.0, 5.0])
    assert store.summary(run.id) == {"a": 5.0, "b": 9.0}
    with pytest.raises(InputError, match="step='x'"):
        run.log({"a": 1.0}, step="x")


def test_alerts_artifacts_and_model_versions(store, tmp_path):
    run = store.run()
    run.alert("collapse", "rank fell\0 to 1 <b>", level="error", step=4)
    run.alert("note", level="info")
    run.artifact("report.html", b"old", "text/html")
    run.artifact("report.html", b"new", "text/html")
    file = tmp_path / "mask.bin"
    file.write_bytes(b"\x00\x01")
    run.artifact("mask", file)
    run.model_version("pruned", digest="ab", step=3, details={"sparsity": 0.5})
    first, second = store.alerts(run.id)
    assert (first.level, first.title, first.text, first.step) == ("error", "collapse", "rank fell to 1 <b>", 4)
    assert (second.level, second.text, second.step) == ("info", "", None)
    mask, report = store.artifacts(run.id)
    assert (mask.name, mask.path, mask.size) == ("mask", str(file), None)
    assert (report.mime, report.path, report.size) == ("text/html", None, 3)
    assert store.artifact(run.id, "report.html") == b"new"
    assert store.artifact(run.id, "mask") == b"\x00\x01"
    (version,) = store.model_versions(run.id)
    assert (version.name, version.digest, version.step, version.details) == ("pruned", "ab", 3, {"sparsity": 0.5})
    file.unlink()
    with pytest.raises(StoreError, match="put it back"):
        store.artifact(run.id, "mask")
    with pytest.raises(InputError, match="no file"):
        run.artifact("gone", file)
    with pytest.raises(InputError, match=r"level='loud'.*'info', 'warning', 'error'"):
        run.alert("x", level="loud")


def test_runs_are_listed_with_config_and_environment(store):
    first = store.run("a", project="p", config={"lr": 0.1, "limit": math.inf, "where": Path("x"), "n": np.int64(3)})
    second = store.run("b", project="q")
    assert [info.name for info in store.runs()] == ["b", "a"]
    assert [info.id for info in store.runs("p")] == [first.id]
    assert store.runs("none") == []
    assert store.projects() == ["p", "q"]
    info = store.info(first.id)
    assert info.config == {"lr": 0.1, "limit": "inf", "where": "x", "n": 3}
    assert info.environment["torch"] == torch.__version__
    assert (info.status, info.ended, info.project) == ("running", None, "p")
    second.finish("failed")
    info = store.info(second.id)
    assert info.status == "failed"
    assert info.ended >= info.started


@pytest.mark.parametrize(
    ("error", "status", "alerts"),
    [
        (None, "finished", []),
        (ValueError("boom"), "failed", [("ValueError", "boom")]),
        (KeyboardInterrupt(), "interrupted", []),
        (SystemExit(0), "finished", []),
        (SystemExit(2), "failed", [("SystemExit", "2")]),
    ],
)
def test_a_run_ends_as_its_block_did(store, error, status, alerts):
    try:
        with store.run() as run:
            run.log({"a": 1.0}, step=0)
            if error is not None:
                raise error
    except type(error or ValueError()):
        pass
    assert store.info(run.id).status == status
    assert store.summary(run.id) == {"a": 1.0}
    assert [(alert.title, alert.text) for alert in store.alerts(run.id)] == alerts


def test_a_run_that_ended_takes_nothing_more(store):
    run = store.run(name="done")
    run.finish()
    run.finish("failed")
    assert store.info(run.id).status == "finished"
    with pytest.raises(InputError, match=r"'done'.*store\.run"):
        run.log({"a": 1.0})
    with pytest.raises(InputError, match="status='paused'"):
        run.finish("paused")


def test_closing_the_store_ends_its_runs(tmp_path):
    store = Store(tmp_path / "a.db")
    run = store.run()
    run.log({"a": 1.0})
    with pytest.raises(ZeroDivisionError), store:
        raise ZeroDivisionError
    with Store(tmp_path / "a.db", readonly=True) as store:
        assert store.info(run.id).status == "failed"
        assert store.summary(run.id) == {"a": 1.0}


def test_what_is_not_there_is_named(store):
    with pytest.raises(StoreError, match="no run 1 in this store; it holds no runs yet"):
        store.info(1)
    run = store.run()
    run.log({"loss": 1.0})
    for call, words in [
        (lambda: store.metrics(run.id, "lost"), "no metric 'lost'; it has 'loss'"),
        (lambda: store.arrays(run.id, "s"), "no array 's'; it has none"),
        (lambda: store.artifact(run.id, "f"), "no artifact 'f'"),
        (lambda: store.metrics(9), "no run 9.*the newest is 1"),
        (lambda: store.alerts(9), "no run 9"),
        (lambda: store.summary(9), "no run 9"),
    ]:
        with pytest.raises(StoreError, match=words):
            call()


def test_rows_are_written_without_being_asked(tmp_path):
    with Store(tmp_path / "a.db", interval=0.05) as store, Store(tmp_path / "a.db", readonly=True) as reader:
        run = store.run()
        run.log({"a": 1.0}, step=0)
        deadline = time.monotonic() + 10
        while not reader.metrics(run.id) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert reader.summary(run.id) == {"a": 1.0}


def test_who_is_gone_is_reported_as_interrupted():
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    now = time.time()
    assert actual_status("running", host(), int(ended.stdout), now) == "interrupted"
    assert actual_status("finished", host(), int(ended.stdout), now) == "finished"
    import os

    assert actual_status("running", host(), os.getpid(), now) == "running"
    assert actual_status("running", host(), os.getpid(), now - 1e4) == "interrupted"  # the number is another's by now
    assert actual_status("running", "other", 1, now) == "running"


def test_reading_does_not_import_torch(tmp_path):
    with Store(tmp_path / "a.db") as store:
        store.run("x").finish()
    code = (
        "import sys; from dynaxx.track import Store; import dynaxx.report.run, dynaxx.report.text\n"
        "print([info.name for info in Store(sys.argv[1], readonly=True).runs()], 'torch' in sys.modules)"
    )
    assert (
        subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "a.db")], text=True).strip()
        == "['x'] False"
    )
