"""benchmarks/scale.py: one small cell, and the words made of it."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("scale", "scale_models", "workloads"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import scale

    yield scale
    for name in ("scale", "scale_models", "workloads"):
        sys.modules.pop(name, None)


def test_a_cell_says_what_was_measured_and_what_was_predicted(scale, monkeypatch, tmp_path):
    monkeypatch.setattr(scale, "SECONDS", 0.0)
    cell = {"axis": "depth", "value": 1, "quantity": "diagonal"} | scale.measure("depth", 1, "diagonal")
    assert cell["cost"] > 0
    assert cell["examples"] == 8
    assert 0 < cell["live"] <= cell["predicted"]
    results = {"conditions": {}, "cells": {"depth-1-diagonal": cell}}
    assert f"{cell['predicted'] / 1e6:,.0f} MB" in scale.rows(results, ["depth"])[-1]
    monkeypatch.setattr(scale, "FIGURE", tmp_path / "scale.svg")
    scale.draw(results)
    assert "<svg" in (tmp_path / "scale.svg").read_text()


def test_a_summary_counts_what_is_near(scale):
    sizes = [(100, 100), (100, 119), (100, 121), (10, 10)]
    cells = {
        str(i): {"growth": growth * 1e7, "predicted": predicted * 1e7, "stopped": ""}
        for i, (growth, predicted) in enumerate(sizes)
    }
    text = scale.summary({"cells": cells})
    assert "200 MB or more: 2 of 3 within 20 %, ratios 1.00 to 1.21" in text
    assert "50 to 200 MB: 1 of 1" in text


def test_growth_is_the_middle_one_of_several_processes(scale, monkeypatch):
    """Each of them its own; a process that fails leaves the others."""
    growths = iter([3e8, {"failed": "out of memory"}, 4e8])

    def spawn(function, cell):
        growth = next(growths)
        if isinstance(growth, dict):
            return growth
        rest = {"cost": 2.0, "q0": 1.0, "predicted": 3.3e8, "live": 2e8, "stopped": "", "parameters": 10**6}
        return {"growth": growth} | (rest if function is scale.measure else {})

    monkeypatch.setattr(scale, "spawn", spawn)
    cell = ("large", 110, "diagonal")
    record = {"axis": "large", "value": 110, "quantity": "diagonal"} | scale.repeated(cell, 3)
    assert (record["growth"], record["growths"]) == (3e8, [3e8, 4e8])
    assert "| 300 MB (300 to 400) | 330 MB | 1.10 |" in scale.rows({"cells": {"": record}}, ["large"])[-1]


def test_pruning_of_the_large_model_is_a_cell(scale):
    from scale_models import QUANTITIES, large

    result = QUANTITIES["obs32"](*large(1))
    assert result.sparsity == pytest.approx(0.9, abs=1e-3)
    assert result.weights is not None
    assert {("large", 110, quantity) for quantity in ("magnitude", "obd", "obs32")} <= set(scale.cells())


def test_cells_stay_within_what_each_quantity_allows(scale):
    cells = scale.cells()
    assert len(cells) == len(set(cells))
    assert ("outputs", 50_000, "diagonal") in cells
    assert ("outputs", 50_000, "kfac") not in cells  # a factor of 50,000 x 50,000
