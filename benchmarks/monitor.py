"""What a monitor costs beside the training of the benchmark's CNN, as a share of training time.

    python benchmarks/monitor.py                 benchmarks/monitor.json, and its table in the documentation
    python benchmarks/monitor.py --page          the table alone, from the file
    python benchmarks/monitor.py --quick         fewer repetitions, nothing written

A look takes turns with training steps (forward, backward, momentum SGD on 128 images) in one process, so that a busy
machine slows both. The share at one look every 100 steps is look / (100 steps). The same is then seen from a training:
a monitor attached to the optimizer, its looks' time over all the time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import compare
from page import DOCS, write
from torch import nn
from torch.nn import functional
from workloads import make

from dynaxx.monitor import Monitor, Probe
from dynaxx.monitor.presets import PRESETS
from dynaxx.monitor.subject import Subject

RESULT = Path(__file__).resolve().with_suffix(".json")
EVERY = 100
PAGE = DOCS / "concepts" / "monitoring.md"
PRESET = {"economy": "economy", "economy 64": "economy", "standard": "standard"}
EXAMPLES = {"economy": 32, "economy 64": 64, "standard": 16}  # images in the probe
BUDGET = {"economy": 0.01, "standard": 0.10}
ROWS = 9  # of the Gram matrix for each image: ten classes less one


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    """One training step."""
    optimizer.zero_grad(set_to_none=True)
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def shares(repeats: int) -> dict[str, Any]:
    """Preset -> look / (100 steps), median, lowest and highest."""
    w = make("cnn")
    model = w.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    contestants = {}
    for name, count in EXAMPLES.items():
        subject = Subject(model, Probe(f"first {count}", (w.x[:count], w.y[:count])))
        contestants[name] = (lambda name=name, subject=subject: PRESETS[PRESET[name]](subject), EVERY)
    found = compare(contestants, lambda: step(model, optimizer, w.x, w.y), repeats=repeats, seconds=90.0)
    return {name: figure.as_dict() for name, figure in found.items()}


def training(preset: str, looks: int) -> dict[str, float]:
    """A training with a monitor attached: its looks' time over everything else's; the one before step 1, which pays
    for first calls, stands apart."""
    w = make("cnn")
    model, count = w.model.train(), EXAMPLES[preset]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    probe = Probe(f"first {count}", (w.x[:count], w.y[:count]))
    with Monitor(model, probe, preset=preset, every=EVERY) as monitor:
        monitor.attach(optimizer)
        started = time.perf_counter()
        for _ in range(EVERY * looks):
            step(model, optimizer, w.x, w.y)
        seconds = time.perf_counter() - started
    first, *later = (record.values["dynaxx/look_seconds"] for record in monitor.history)
    trained = seconds - sum(later)
    return {
        "share": sum(later) / trained,
        "first_look_in_steps": first / trained * EVERY * looks,
        "steps": EVERY * looks,
    }


def table(result: dict[str, Any]) -> str:
    """The figures as the documentation has them."""
    lines = ["| preset | probe | share of training time, a look every 100 steps |", "|---|---|---|"]
    for name, figure in result["shares"].items():
        preset, count = PRESET[name], result["probe_examples"][name]
        probe = f"{count} images" + (f", {ROWS * count} Gram rows" if preset == "standard" else "")
        median, low, high = (f"{100 * figure[key]:.2f}" for key in ("median", "low", "high"))
        lines.append(f"| `{preset}` | {probe} | {median} % ({low} to {high}) |")
    load = [value for figure in result["shares"].values() for value in figure["load"]]
    lines += [
        "",
        f"Load average of the {result['machine']['cores']} cores meanwhile: {min(load):.1f} to {max(load):.1f}.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure; 1 if a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args(arguments)
    from run import machine

    if given.page:
        result = json.loads(RESULT.read_text(encoding="utf-8"))
    else:
        result = {
            "machine": machine("cpu", torch.get_num_threads()),
            "training_batch": 128,
            "every": EVERY,
            "probe_examples": EXAMPLES,
            "budget": BUDGET,
            "shares": shares(3 if given.quick else 7),
        }
    if not (given.quick or given.page):
        result["trainings"] = {"economy": training("economy", 1)}
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not given.quick:
        write(PAGE, "monitor", table(result))
    over = 0
    for name, figure in result["shares"].items():
        budget = BUDGET[PRESET[name]]
        held = figure["median"] <= budget
        over += not held
        spread = f"{figure['median']:.2%} of training time ({figure['low']:.2%} to {figure['high']:.2%})"
        print(
            f"{PRESET[name]:9s} {spread}, probe of {result['probe_examples'][name]} images every {EVERY} steps; "
            f"budget {budget:.0%}: {'held' if held else 'EXCEEDED'}"
        )
    return int(over > 0)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(main())
