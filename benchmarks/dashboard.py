"""How long it takes until the dashboard has drawn 100,000 points, by the wall clock, in Debian's Chromium.

    python benchmarks/dashboard.py               benchmarks/dashboard.json, and its table in the documentation
    python benchmarks/dashboard.py --page        the table alone, from the file
    python benchmarks/dashboard.py --quick       two visits each, nothing written

The server is the command as a user starts it. Each visit is a new one, with nothing cached. First draw is the time from
the start of navigation until the first chart is on the page, as the page's own clock has it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from page import DOCS, write

from dynaxx.track import Store

RESULT = Path(__file__).resolve().with_suffix(".json")
PAGE = DOCS / "dashboard.md"
GOAL = 1.0  # seconds
PAGES = {
    "100,000 values in 20 curves, a chart each": "#/run/1",
    "100,000 values in one curve": "#/run/2",
    "100,000 points in one chart (25 curves), not thinned": "#/run/3/pruning",
}
NOTE = """
  new MutationObserver(() => {
    if (!window.firstDraw && document.querySelector("[data-drawn=yes]")) window.firstDraw = performance.now();
  }).observe(document, {subtree: true, childList: true, attributes: true, attributeFilter: ["data-drawn"]});
"""


def fill(path: Path) -> None:
    """Random walks; the same ones always."""
    rng = np.random.default_rng(0)
    with Store(path) as store:
        for name, curves, length in (("twenty", 20, 5000), ("one", 1, 100_000)):
            walks = rng.normal(size=(curves, length)).cumsum(1)
            with store.run(name) as run:
                for step in range(length):
                    run.log({f"x{i:02d}": walks[i, step] for i in range(curves)}, step=step)
        with store.run("arrays") as run:
            for curve in range(25):
                rows = np.stack([np.linspace(0, 1, 4000), rng.normal(size=4000).cumsum()], axis=1)
                run.log_array(f"dynaxx/one_shot/c{curve:02d}", rows, step=0)


@contextmanager
def serving(path: Path) -> Iterator[tuple[str, int]]:
    """Address and process number of a server."""
    command = [sys.executable, "-m", "dynaxx.cli.main", "dashboard", str(path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"})
    try:
        assert process.stdout is not None
        yield next(found[0] for line in process.stdout if (found := re.search(r"http://\S+/", line))), process.pid
    finally:
        process.terminate()
        process.wait()


def processor_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def visit(browser: Any, server: tuple[str, int], address: str) -> tuple[float, float]:
    """Seconds to the first draw, and processor seconds of the server."""
    url, pid = server
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    tab.add_init_script(NOTE)
    before = processor_seconds(pid)
    tab.goto(url + address)
    tab.wait_for_selector("[data-drawn=yes]", timeout=60_000)
    found = tab.evaluate("window.firstDraw") / 1000, processor_seconds(pid) - before
    context.close()
    return found


def measure(visits: int) -> dict[str, Any]:
    """Page -> its first visit after the server's start, and the later ones."""
    from playwright.sync_api import sync_playwright

    out: dict[str, Any] = {}
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        fill(Path(folder, "runs.db"))
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        browser.new_page().goto("about:blank")  # what a browser does once is not the page's
        for name, address in PAGES.items():
            with serving(Path(folder, "runs.db")) as server:
                load = [os.getloadavg()[0]]
                (cold, _), *warm = [visit(browser, server, address) for _ in range(visits + 1)]
                load.append(os.getloadavg()[0])
            seconds = [wall for wall, _ in warm]
            out[name] = {
                "after_start": cold,
                "median": statistics.median(seconds),
                "low": min(seconds),
                "high": max(seconds),
                "visits": visits,
                "server_processor": statistics.median(used for _, used in warm),
                "load": load,
            }
        browser.close()
    return out


def table(result: dict[str, Any]) -> str:
    """The figures as the documentation has them."""
    head = [
        "| on the page | first draw, s | server just started, s | processor time of the server, s |",
        "|---|---|---|---|",
    ]
    for name, one in result["pages"].items():
        spread = f"{one['median']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
        head.append(f"| {name} | {spread} | {one['after_start']:.2f} | {one['server_processor']:.2f} |")
    load = [value for one in result["pages"].values() for value in one["load"]]
    visits = max(one["visits"] for one in result["pages"].values())
    return "\n".join(
        [
            *head,
            "",
            f"By the wall clock; median, lowest and highest of {visits} visits (`python benchmarks/dashboard.py`),\n"
            f"{result['machine']['cores']} cores, load average {min(load):.1f} to {max(load):.1f}.",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure; 1 if a first draw takes longer than a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args(arguments)
    if given.page:
        result = json.loads(RESULT.read_text(encoding="utf-8"))
    else:
        machine = {"cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}
        result = {"machine": machine, "goal": GOAL, "pages": measure(2 if given.quick else 7)}
    if not given.quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write(PAGE, "first draw", table(result))
    print(table(result))
    return int(any(one["median"] > GOAL for one in result["pages"].values()))


if __name__ == "__main__":
    sys.exit(main())
