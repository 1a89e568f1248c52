"""A report of whatever a run holds, also where it broke off."""

import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from dynaxx.estimate import Estimate
from dynaxx.report import Facts, Lines, Note, Spectra, Table, page, to_text
from dynaxx.report.run import document_from_run
from dynaxx.track import Store, StoreError


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "a.db") as opened:
        yield opened


def sections(store, run):
    document = document_from_run(store, run.id)
    page(document), to_text(document)  # whatever the document, both can be made
    return {section.title: section.blocks for section in document.sections}


def of_kind(blocks, kind):
    return [block for block in blocks if isinstance(block, kind)]


def test_metrics_stand_under_their_section_with_their_values(store):
    run = store.run("r", config={"optimizer": {"lr": 1e-3}, "seed": 1234567})
    for step in range(5):
        run.log({"train/loss": 10.0**-step, "dynaxx/trace": Estimate(step, 0.5, 3), "lonely": step}, step=10 * step)
    run.log({"dynaxx/once": 7.0}, step=3)
    run.finish()
    found = sections(store, run)
    assert list(found) == ["Overview", "dynaxx", "Metrics", "train", "Settings"]
    (loss,) = of_kind(found["train"], Lines)
    assert (loss.title, loss.log_y) == ("loss", True)
    assert loss.series[0].x.tolist() == [0, 10, 20, 30, 40]
    np.testing.assert_array_equal(loss.series[0].y, 10.0 ** -np.arange(5.0))
    (trace,) = of_kind(found["dynaxx"], Lines)
    assert not trace.log_y
    np.testing.assert_allclose(trace.series[0].high - trace.series[0].y, 1.0)  # two standard errors
    assert "two standard errors" in trace.note
    assert of_kind(found["dynaxx"], Facts)[0].items == (("once", 7.0, "step 3"),)
    (configuration, _) = of_kind(found["Settings"], Table)
    assert configuration.rows == (("optimizer.lr", "0.001"), ("seed", "1234567"))


def test_layers_are_drawn_by_quantity_and_none_is_left_out_of_the_table(store):
    run = store.run()
    for step in (0, 1):
        run.log({f"dynaxx/layer/b.{i}.weight/trace": float(i) for i in range(12)}, step=step)
    run.log({"dynaxx/layer/b.2.weight/trace": math.nan, "dynaxx/layer/b.0.weight/rank": 3.0}, step=2)
    run.finish()
    blocks = sections(store, run)["Layers"]
    (chart,) = of_kind(blocks, Lines)  # rank has one value: nothing to draw
    assert [series.name for series in chart.series] == [f"b.{i}.weight" for i in (10, 11, 2, 5, 6, 7, 8, 9)]
    assert chart.note.startswith("8 of 12 layers")
    (table,) = of_kind(blocks, Table)
    assert table.columns == ("layer", "rank", "trace")
    rows = {row[0]: row[1:] for row in table.rows}
    assert len(rows) == 12
    assert rows["b.0.weight"] == (3.0, 0.0)
    assert rows["b.7.weight"] == (None, 7.0)


def test_spectra_take_their_floor_from_the_metric_beside_them_and_guess_none(store):
    run = store.run()
    for step in range(10):
        run.log_array("dynaxx/spectrum", np.array([3.0, 2.0, 1e-9]), step=step)
        run.log_array("dynaxx/ntk", np.full((2, 3), step), step=step)
        if step != 9:
            run.log({"dynaxx/spectrum/floor": 1e-6}, step=step)
    run.finish()
    found = sections(store, run)
    (spectra,) = of_kind(found["Spectra"], Spectra)
    assert [item.name for item in spectra.spectra] == ["step 0", "step 3", "step 6", "step 9"]
    assert [item.floor for item in spectra.spectra] == [1e-6, 1e-6, 1e-6, None]
    assert spectra.note == "4 of 10 steps."
    assert "dynaxx/spectrum" not in found  # the floor is not drawn a second time
    (table,) = of_kind(found["Arrays"], Table)
    assert table.rows == (("dynaxx/ntk", 10, 9, "2 × 3", "int64", 9.0, 9.0, 9.0),)


def test_what_went_wrong_stands_first(store):
    run = store.run("broken")
    for step in range(4):
        run.log({"a": math.nan if step > 1 else 1.0, "b": math.inf if step else 1.0, "c": 1.0}, step=step)
    run.alert("collapse", "rank 1", level="error", step=2)
    run.finish("failed")
    blocks = sections(store, run)["Overview"]
    notes = [(note.level, note.text) for note in of_kind(blocks, Note)]
    assert notes[0][0] == "bad"
    assert ("bad", "collapse (step 2): rank 1") in notes
    (table,) = of_kind(blocks, Table)
    assert table.rows == (("b", 1, 3, 4, "∞"), ("a", 2, 2, 4, "NaN"))
    (chart, *_) = of_kind(sections(store, run)["Metrics"], Lines)
    assert [(marker.x, marker.label) for marker in chart.markers] == [(2, "collapse")]


def test_a_run_that_logged_nothing_and_one_that_is_not_there(store):
    run = store.run("empty")
    blocks = sections(store, run)["Overview"]
    assert "No metrics were logged." in [note.text for note in of_kind(blocks, Note)]
    with pytest.raises(StoreError, match="no run 99"):
        document_from_run(store, 99)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_run_gives_a_readable_report(tmp_path):
    code = (
        "import os, signal, sys; from dynaxx.track import Store\n"
        "run = Store(sys.argv[1]).run('doomed')\n"
        "for step in range(20): run.log({'train/loss': 1.0 / (step + 1)}, step=step)\n"
        "run.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "k.db")], check=False)
    with Store(tmp_path / "k.db", readonly=True) as store:
        document = document_from_run(store, 1)
    assert "doomed" in page(document)
    text = to_text(document)
    assert "interrupted" in text
    assert "broke off" in text
    assert document.sections[1].blocks[0].series[0].y.tolist() == [1.0 / (step + 1) for step in range(20)]
    assert os.path.exists(tmp_path / "k.db")
