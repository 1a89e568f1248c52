"""What the documentation says a monitor costs is what was measured."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    import importlib.util

    spec = importlib.util.spec_from_file_location("benchmark_of_the_monitor", ROOT / "benchmarks" / "monitor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


def test_the_page_has_the_figures_of_the_file(benchmark):
    from page import placed

    result = json.loads(benchmark.RESULT.read_text())
    page = benchmark.PAGE.read_text()
    assert benchmark.table(result) in page
    figure = result["shares"]["economy"]
    assert f"{100 * figure['median']:.2f} % ({100 * figure['low']:.2f} to" in page
    figure["median"] = 0.5
    changed = placed(page, "monitor", benchmark.table(result))
    assert changed != page
    assert "| 50.00 % (" in changed
    assert placed(changed, "monitor", benchmark.table(result)) == changed
