"""One long training with a fault of every kind in it, one after another, in one run of a store.

    python studies/monitor_long.py --quick      a tenth of the steps; fails if a fault is missed or training disturbed
    python studies/monitor_long.py              12,000 steps, into studies/results/monitor

12,000 steps are twenty minutes at a tenth of a second each. A sink is dead throughout. Labels turn to noise for a
while; the learning rate is far too high for a while; a weight becomes NaN; the disk is full for a while; the process is
killed. After a fault in the training the weights are put back as they were before it, as a user would. Held against:
the same training with the same faults, neither watched nor killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monitor_faults import OUT, PROBE, DeadSink, same
from runs import Cells
from sqlalchemy import event
from torch import Tensor
from torch.nn import functional

from dynaxx.cli.digits import digits, mlp
from dynaxx.monitor import Monitor, Probe
from dynaxx.monitor.signals import Divergence, LossShift, NotFinite
from dynaxx.track import Store

BATCH, RATE, TOO_HIGH = 50, 0.01, 5.0


@dataclass(frozen=True)
class Plan:
    """When what happens, in steps; pairs are from and to."""

    steps: int
    every: int
    noise: tuple[int, int]
    rate: tuple[int, int]
    nan: tuple[int, int]
    disk: tuple[int, int]
    saved: int
    killed: int


def plan(steps: int) -> Plan:
    """The faults at tenths of the training."""

    def span(begin: float, end: float) -> tuple[int, int]:
        return int(steps * begin), int(steps * end)

    spans = (span(0.2, 0.25), span(0.35, 0.4), span(0.5, 0.51), span(0.6, 0.65), span(0.75, 0.8))
    return Plan(steps, steps // 120, *spans[:4], *spans[4])


def full_disk(store: Store) -> Callable[[], None]:
    """SQLite may add no page to the file, and answers as on a full disk; call the answer to give room again."""
    with store.database.engine().connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

    def apply(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    engine = store.database.engine()
    event.listen(engine, "connect", apply)
    engine.dispose()

    def lift() -> None:
        event.remove(engine, "connect", apply)
        engine.dispose()

    return lift


def train(kind: str, folder: Path, steps: int) -> None:
    """One process's part: "plain", "watched" until it is killed, or "resumed" from the checkpoint to the end."""
    p = plan(steps)
    torch.manual_seed(0)
    parts, model = digits(0), mlp()
    (x, y), (vx, vy) = parts.train.dataset.tensors, parts.validation
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    monitor, store, begin, lift, before = None, None, 0, None, None
    if kind != "plain":
        store = Store(folder / "runs.db", interval=0.1)
        run = store.run("long") if kind == "watched" else store.resume(1)
        signals = [NotFinite(), Divergence(), LossShift()]
        probe = Probe(f"digits validation, first {PROBE}", (vx[:PROBE], vy[:PROBE]))
        monitor = Monitor(
            model, probe, every=p.every, preset="standard", store=run, sinks=[DeadSink()], signals=signals
        )
    if kind == "resumed":
        kept = torch.load(folder / "checkpoint.pt", weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        monitor.load_state_dict(kept["monitor"])
        begin = p.saved
    if monitor is not None:
        monitor.attach(optimizer)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for step in range(begin, steps):
            if step in (p.noise[0], p.rate[0], p.nan[0]):
                before = _copied([model.state_dict(), optimizer.state_dict()])
            if step in (p.noise[1], p.rate[1], p.nan[1]):
                model.load_state_dict(before[0])
                optimizer.load_state_dict(before[1])
            torch.manual_seed(step)
            rows = torch.randperm(len(x))[:BATCH]
            labels = torch.randint(10, (BATCH,)) if p.noise[0] <= step < p.noise[1] else y[rows]
            optimizer.param_groups[0]["lr"] = TOO_HIGH if p.rate[0] <= step < p.rate[1] else RATE
            if step == p.nan[0]:
                with torch.no_grad():
                    next(model.parameters()).view(-1)[0] = torch.nan
            loss = functional.cross_entropy(model(x[rows]), labels)
            optimizer.zero_grad()
            loss.backward()
            if monitor is not None:
                monitor.observe(loss=loss)
            optimizer.step()
            if kind == "watched":
                if step == p.disk[0]:
                    run.flush()
                    lift = full_disk(store)
                if step == p.disk[1]:
                    lift()
                if step + 1 == p.saved:
                    states = {"model": model, "optimizer": optimizer, "monitor": monitor}
                    torch.save({name: each.state_dict() for name, each in states.items()}, folder / "checkpoint.pt")
                    said = {"warnings": sorted({warning.category.__name__ for warning in given})}
                    (folder / "watched.json").write_text(json.dumps(said))
                if step + 1 == p.killed:
                    os.kill(os.getpid(), signal.SIGKILL)
    if monitor is not None:
        monitor.close()
        run.finish()
        store.close()
    torch.save(model.state_dict(), folder / f"{kind}.pt")


def _copied(state: Any) -> Any:
    """Tensors of nested lists and dicts, copied."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(each) for each in state] if isinstance(state, list) else state


def process(kind: str, folder: Path, steps: int) -> int:
    """A part in a process of its own; how it ended."""
    command = [sys.executable, __file__, "--part", kind, str(folder), str(steps)]
    return subprocess.run(command, check=False).returncode


def recorded(steps: int, folder: Path) -> dict[str, Any]:
    """What was seen, kept, and left as it was."""
    p = plan(steps)
    ends = {"plain": process("plain", folder, steps), "watched": process("watched", folder, steps)}
    with Store(folder / "runs.db", readonly=True) as store:
        status = store.info(1).status
    ends["resumed"] = process("resumed", folder, steps)
    with Store(folder / "runs.db", readonly=True) as store:
        runs = [info.status for info in store.runs()]
        looks = store.metrics(1, "dynaxx/look_seconds").steps.tolist()
        alerts = [[alert.step, alert.title] for alert in store.alerts(1)]
    weights = [torch.load(folder / f"{kind}.pt", weights_only=True) for kind in ("plain", "resumed")]
    return {
        "plan": asdict(p),
        "ends": ends,
        "after the kill": status,
        "runs": runs,
        "alerts": alerts,
        "warnings": json.loads((folder / "watched.json").read_text())["warnings"],
        "looks": len(looks),
        "looks missing": sorted(set(range(0, steps + 1, p.every)) - set(looks)),
        "bit_equal": same(*weights),
    }


def check(found: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    p, wrong = found["plan"], []
    expected = {
        "noise": {"loss shift", "divergence"},
        "rate": {"not finite", "divergence", "loss shift"},
        "nan": {"not finite"},
    }
    inside = set()
    for name, titles in expected.items():
        first, last = p[name]
        seen = [(step, title) for step, title in map(tuple, found["alerts"]) if step and first <= step <= last + 1]
        inside |= set(seen)
        if not titles & {title for _, title in seen}:
            wrong.append(f"{name}: not seen; alerts were {found['alerts']}")
    others = [each for each in map(tuple, found["alerts"]) if each[1] != "sink" and each not in inside]
    if others:
        wrong.append(f"alarms where all was well: {others}")
    truths = {
        "the dead sink was not seen": any(title == "sink" for _, title in found["alerts"]),
        "the full disk was not seen": "StoreWarning" in found["warnings"],
        "the kill was not seen": found["ends"]["watched"] == -signal.SIGKILL
        and found["after the kill"] == "interrupted",
        "it did not go on in its run": found["runs"] == ["finished"] and found["ends"]["resumed"] == 0,
        f"looks are missing: {found['looks missing']}": not found["looks missing"],
        "the training is not what it is without monitor": found["bit_equal"],
    }
    return wrong + [text for text, holds in truths.items() if not holds]


def main(arguments: list[str] | None = None) -> int:
    """Run, or read what is kept, and check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,200 steps, into a temporary folder")
    parser.add_argument("--part", nargs=3, metavar=("KIND", "FOLDER", "STEPS"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        train(given.part[0], Path(given.part[1]), int(given.part[2]))
        return 0
    steps = 1_200 if given.quick else 12_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cells = Cells(folder / "cells" if given.quick else OUT)
        found = cells.get("long", {"steps": steps}, lambda: recorded(steps, folder))
    assert found is not None
    for step, title in found["alerts"]:
        print(f"{step if step is not None else '-':>6} {title}")
    wrong = check(found)
    print("\n".join(wrong) if wrong else f"every check holds; {found['looks']} looks, bit-equal {found['bit_equal']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
