"""benchmarks/measure.py: what several processes of one case come to."""

import importlib.util
import sys
from pathlib import Path

SPEC = importlib.util.spec_from_file_location(
    "measure_of_benchmarks", Path(__file__).parents[1] / "benchmarks" / "measure.py"
)


def test_processes_are_told_by_their_median_and_whole_range(monkeypatch):
    measure = importlib.util.module_from_spec(SPEC)
    monkeypatch.setitem(sys.modules, SPEC.name, measure)
    SPEC.loader.exec_module(measure)
    one = measure.Figure(3.0, 2.9, 3.4, 3, 0.08, 100, (1.0, 1.5)).as_dict() | {"version": "1", "work": 2.0}
    others = [
        one | {"median": m, "low": m - 0.2, "high": m + 0.1, "growth": g, "load": (0.5, 2.0)}
        for m, g in ((2.0, 90), (3.8, 140))
    ]
    found = measure.merged([one, *others])
    assert (found["median"], found["low"], found["high"]) == (3.0, 1.8, 3.9)
    assert (found["growth"], found["repetitions"], found["processes"], found["load"]) == (100, 9, 3, (0.5, 2.0))
    assert (found["version"], found["work"]) == ("1", 2.0)
    assert measure.merged([one]) == one
