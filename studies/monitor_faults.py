"""A recorded training with faults injected into it: every one must be seen, nothing lost, and the training untouched.

    python studies/monitor_faults.py --quick          a minute; fails if a fault is missed or a training disturbed
    python studies/monitor_faults.py                  everything, into studies/results/monitor

Faults: a weight turns NaN; a learning rate far too high; labels turn to noise in mid-training; a sink that raises, and
one that hangs; a store that cannot be written for a while. (A killed process and a full disk are in tests/track.) And
the other side: how often each rule fires on healthy trainings, seed by seed.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from runs import ROOT, Cells, proportion
from torch import Tensor, nn
from torch.nn import functional

from dynaxx.cli.digits import digits, mlp
from dynaxx.monitor import Monitor, Probe
from dynaxx.monitor.actions import Stop
from dynaxx.monitor.signals import (
    DeadLayers,
    Divergence,
    LossShift,
    LossSpike,
    NotFinite,
    RankCollapse,
    Signal,
    ValidationSlope,
    drop_by_a_fifth,
    overfitting,
)
from dynaxx.track import Store, database

OUT = ROOT / "studies" / "results" / "monitor"
PROBE, EVERY, BATCH = 40, 20, 50


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    seeds: int
    epochs: int
    fault_epochs: int


FULL, QUICK = Sizes(20, 40, 10), Sizes(2, 8, 6)

Fault = Callable[[int, nn.Module, Tensor], Tensor]
"""fault(step, model, labels of the batch) -> labels; called before each step."""


def healthy(step: int, model: nn.Module, labels: Tensor) -> Tensor:
    """Nothing happens."""
    return labels


def nan_weight(at: int) -> Fault:
    """One weight becomes NaN."""

    def fault(step: int, model: nn.Module, labels: Tensor) -> Tensor:
        if step == at:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] = torch.nan
        return labels

    return fault


def label_noise(at: int) -> Fault:
    """From a step on, labels are drawn at random."""

    def fault(step: int, model: nn.Module, labels: Tensor) -> Tensor:
        return labels if step < at else torch.randint(10, labels.shape)

    return fault


def every_signal() -> dict[str, Signal]:
    """Every rule there is, by the name the results carry."""
    return {
        "not finite (default)": NotFinite(),
        "divergence (default)": Divergence(),
        "loss spike": LossSpike(),
        "loss shift": LossShift(),
        "validation slope": ValidationSlope(),
        "dead layers": DeadLayers(),
        "rank collapse": RankCollapse(),
        "over-fitting: 4 errors, 3 looks, validation rises": overfitting(),
        "drop by a fifth, effective rank": drop_by_a_fifth("dynaxx/effective_rank"),
        "drop by a fifth, effective dimension": drop_by_a_fifth("dynaxx/effective_dimension"),
        "drop by a fifth, trace": drop_by_a_fifth("dynaxx/trace"),
    }


def train(
    seed: int,
    epochs: int,
    *,
    fault: Fault = healthy,
    lr: float = 0.05,
    watch: Callable[[nn.Module, Probe], Monitor] | None = None,
) -> tuple[dict[str, Tensor], Monitor | None, float]:
    """(weights at the end, the monitor, test accuracy) of one training of the demo's perceptron."""
    torch.manual_seed(seed)
    parts, model = digits(seed, batch_size=BATCH), mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    x, y = parts.validation
    monitor = watch(model, Probe(f"digits validation, first {PROBE}", (x[:PROBE], y[:PROBE]))) if watch else None
    if monitor is not None:
        monitor.attach(optimizer)
    step = 0
    for _ in range(epochs):
        for images, given in parts.train:
            labels = fault(step, model, given)
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            if monitor is not None:
                monitor.observe(loss=loss)
            optimizer.step()
            step += 1
    accuracy = float((model(parts.test[0]).argmax(1) == parts.test[1]).float().mean())
    return model.state_dict(), monitor, accuracy


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit, NaN included."""
    return all(torch.equal(value.view(torch.int32), other[name].view(torch.int32)) for name, value in one.items())


class DeadSink:
    """Raises whatever it is given."""

    def write(self, records: Any) -> None:
        """Fail."""
        raise ConnectionError("nobody there")

    event = write

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class HangingSink(DeadSink):
    """Takes the first record and never comes back."""

    def write(self, records: Any) -> None:
        """Wait."""
        threading.Event().wait()

    event = write


class Locked:
    """Another program holds the store for some seconds, from a given step on, so that nothing can be written."""

    def __init__(self, path: Path, at: int, seconds: float) -> None:
        self.path, self.at, self.seconds = path, at, seconds

    def __call__(self, step: int, model: nn.Module, labels: Tensor) -> Tensor:
        """As a fault."""
        if step == self.at:
            self.held = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self.held.execute("BEGIN EXCLUSIVE")
            threading.Timer(self.seconds, self.held.close).start()
        return labels


def scenario(name: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """One fault: what was seen and when, whether all was kept, whether the training was what it is without monitor."""
    at = sizes.fault_epochs * (1000 // BATCH) // 2
    path = folder / f"{name}.db"
    faults: dict[str, dict[str, Any]] = {
        "nan": {"fault": nan_weight(at)},
        "learning rate": {"lr": 5.0},
        "label noise": {"fault": label_noise(at)},
        "dead sink": {},
        "hanging sink": {},
        "unwritable store": {"fault": Locked(path, at, database.BUSY_SECONDS + 2)},
    }
    options = faults[name]
    sinks = {"dead sink": [DeadSink()], "hanging sink": [HangingSink()]}.get(name, [])

    def watch(model: nn.Module, probe: Probe) -> Monitor:
        signals = [NotFinite(actions=[Stop()]), Divergence(), LossShift()]
        return Monitor(model, probe, every=EVERY, preset="standard", store=path, sinks=sinks, signals=signals)

    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        weights, monitor, _ = train(0, sizes.fault_epochs, watch=watch, **options)
        seconds = time.perf_counter() - started
        assert monitor is not None
        monitor.close()
    plain, _, _ = train(0, sizes.fault_epochs, **({} if name == "unwritable store" else options))
    with Store(path, readonly=True) as store:
        run = store.runs()[0]
        kept = len(store.metrics(run.id, "dynaxx/look_seconds"))
        alerts = [alert.title for alert in store.alerts(run.id)]
    events = [{"step": event.step, "title": event.title, "text": event.text} for event in monitor.events]
    return {
        "injected_at": {"nan": at, "learning rate": 0, "label noise": at, "unwritable store": at}.get(name),
        "events": events,
        "warnings": sorted({warning.category.__name__ for warning in given}),
        "looks": len(monitor.history),
        "looks_in_store": kept,
        "events_in_store": len(alerts),
        "bit_equal": same(weights, plain),
        "asked_to_stop": monitor.should_stop,
        "seconds": round(seconds, 1),
    }


EXPECTED = {
    "nan": "not finite",
    "learning rate": ("not finite", "divergence"),
    "label noise": ("loss shift", "divergence"),
    "dead sink": "sink",
    "hanging sink": "sink",
    "unwritable store": "StoreWarning",  # what is logged waits in memory; the store itself warns
}


def false_alarms(sizes: Sizes) -> dict[str, Any]:
    """On healthy trainings: how many of them each rule fires on, with Wilson's 95 % interval."""
    fired: dict[str, list[list[int]]] = {name: [] for name in every_signal()}
    accuracies = []
    for seed in range(sizes.seeds):
        signals = every_signal()
        for name, signal in signals.items():
            signal.name = name  # type: ignore[misc]  # so that events tell rules of one class apart

        def watch(model: nn.Module, probe: Probe, signals: dict[str, Signal] = signals) -> Monitor:
            return Monitor(model, probe, every=EVERY, preset="standard", signals=list(signals.values()))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, monitor, accuracy = train(seed, sizes.epochs, watch=watch)
        assert monitor is not None
        accuracies.append(accuracy)
        for name, steps in fired.items():
            steps.append([event.step or 0 for event in monitor.events if event.title == name])
    return {
        "accuracy": {"least": min(accuracies), "mean": sum(accuracies) / len(accuracies)},
        "rules": {
            name: {"share": proportion(sum(map(bool, steps)), sizes.seeds), "steps": steps}
            for name, steps in fired.items()
        },
    }


def check(results: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    wrong = []
    for name, expected in EXPECTED.items():
        found = results.get(f"fault-{name.replace(' ', '-')}")
        if found is None:
            continue
        titles = {event["title"] for event in found["events"]} | set(found["warnings"])
        if not titles & ({expected} if isinstance(expected, str) else set(expected)):
            wrong.append(f"{name}: not seen; events were {sorted(titles)}")
        if not found["bit_equal"]:
            wrong.append(f"{name}: the training is not what it is without monitor")
        if found["looks"] != found["looks_in_store"] or found["events_in_store"] < len(found["events"]):
            wrong.append(f"{name}: the store has {found['looks_in_store']} of {found['looks']} looks")
    alarms = results.get("false-alarms")
    for name, rule in (alarms or {"rules": {}})["rules"].items():
        if name.endswith("(default)") and any(rule["steps"]):
            wrong.append(f"{name} fired on a healthy training")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Run, or read what is kept, and check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, into a temporary folder")
    given = parser.parse_args(arguments)
    sizes = QUICK if given.quick else FULL
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cells, results = Cells(folder / "cells" if given.quick else OUT), {}
        for name in EXPECTED:
            label = f"fault-{name.replace(' ', '-')}"
            results[label] = cells.get(label, asdict(sizes), lambda name=name: scenario(name, sizes, folder))
        results["false-alarms"] = cells.get("false-alarms", asdict(sizes), lambda: false_alarms(sizes))
    for label, found in results.items():
        if label.startswith("fault"):
            seen = "; ".join(f"{event['title']} at {event['step']}" for event in found["events"][:4])
            seen = seen or ", ".join(found["warnings"]) or "-"
            print(f"{label:24s} injected at {found['injected_at']}, seen: {seen}; bit-equal {found['bit_equal']}")
    for name, rule in results["false-alarms"]["rules"].items():
        share = rule["share"]
        print(f"{name:52s} {share['value']:.0%} of {sizes.seeds} ({share['low']:.0%} to {share['high']:.0%})")
    wrong = check(results)
    print("\n".join(wrong) if wrong else "every check holds")
    return 1 if wrong else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
