"""Cost and peak memory against size: examples, outputs, parameters, sequence length, depth, and one large model.

    python benchmarks/scale.py                     every cell that is not there yet, one process each, then the figure
    python benchmarks/scale.py --only sequence     cells whose name contains all of the given texts
    python benchmarks/scale.py --again             measure anew
    python benchmarks/scale.py --processes 3       growth in three processes: how a heap is used again is chance in part
    python benchmarks/scale.py --figure            the figure alone

An interrupted run loses the cell it was at. Cost is process time in multiples of q0, one plain forward and backward
pass; memory is the growth of the peak, beside what ``dynaxx.estimate_memory`` said before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from scale_models import AXES, PRODUCTS, QUANTITIES

from dynaxx.memory.estimate import estimate_memory
from dynaxx.memory.peak import measured

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "scale" / "cells.json"
PAGE = HERE.parent / "docs" / "scale-limits.md"
MARKS = ("<!-- measured: benchmarks/scale.py -->", "<!-- end -->")
FIGURE = HERE.parent / "docs" / "images" / "scale.svg"
REPEATS, SECONDS = 3, 3.0  # stop repeating after this long
SINGLE = ["large", "images", "vocabulary"]  # axes of one value
SEEN = 5.0  # MB of growth, below which a page more or less decides
LIMIT = 2400  # seconds for one cell
MEMORY = 14e9  # bytes of growth, predicted, beyond which a cell is not run
LABELS = {
    "diagonal": "diagonal, sampled",
    "trace": "trace, sampled",
    "kfac": "K-FAC factors, sampled",
    "diagonal_exact": "diagonal, exact",
    "snapshot": f"snapshot, {PRODUCTS} of its 512 products",
    "economy": "monitor, economy",
    "gram": "spectrum, sampled",
    "magnitude": "prune 90 %, magnitude",
    "obd": "prune 90 %, OBD, sampled",
    "obs32": "prune 90 %, OBS in blocks of 32",
}


def spent(function: Callable[[], Any]) -> float:
    """Process time of one call, which other work on the machine stretches less than the clock's."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(axis: str, value: int, quantity: str) -> dict[str, Any]:
    """In the process of the cell: predict, measure memory on the first call, then time."""
    torch.manual_seed(0)
    model, x = AXES[axis].make(value)
    call = QUANTITIES[quantity]
    facts = {"parameters": sum(p.numel() for p in model.parameters()), "examples": len(x)}
    start = time.process_time()
    predicted = estimate_memory(model, x, call=call, seconds=LIMIT / 4)  # of a machine that has other work too
    record: dict[str, Any] = facts | {
        "predicted": predicted.growth, "live": predicted.live, "stopped": predicted.stopped,
        "largest": predicted.largest[:3],
        "parts": {k: getattr(predicted, k) for k in ("activations", "cotangents", "result", "workspace", "holes")},
        "prediction_seconds": time.process_time() - start,
    }  # fmt: skip
    if predicted.growth > MEMORY:
        return record | {"skipped": f"predicted growth of {predicted.growth / 1e9:.1f} GB"}
    call(*AXES[axis].make(AXES[axis].warm))  # libraries load what they load when first used

    def gradient() -> None:
        model.zero_grad(set_to_none=True)
        z = model(x).flatten(0, -2)
        torch.nn.functional.cross_entropy(z, torch.zeros(len(z), dtype=torch.int64)).backward()
        model.zero_grad(set_to_none=True)

    with measured() as seen:
        start = time.process_time()
        answer = call(model, x)
        first = time.process_time() - start
    if hasattr(answer, "sparsity"):
        record["sparsity"] = answer.sparsity
    del answer
    gradient()
    ratios, units = [], []
    for _ in range(REPEATS):
        before = spent(gradient)
        after = first if first > SECONDS else spent(lambda: call(model, x))
        unit = statistics.mean([before, spent(gradient)])
        ratios.append(after / unit)
        units.append(unit)
        if sum(ratios) * unit > SECONDS:
            break
    return record | {
        "growth": seen.growth, "cost": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
        "repeats": len(ratios), "q0": statistics.median(units), "load": os.getloadavg()[0],
    }  # fmt: skip


def look(axis: str, value: int, quantity: str) -> dict[str, Any]:
    """In a process of its own: the growth once more, for how well a heap is used again depends on chance."""
    torch.manual_seed(0)
    model, x = AXES[axis].make(value)
    QUANTITIES[quantity](*AXES[axis].make(AXES[axis].warm))
    with measured() as seen:
        QUANTITIES[quantity](model, x)
    return {"growth": seen.growth}


def repeated(cell: tuple[str, int, str], processes: int = 1) -> dict[str, Any]:
    """The record of a cell: of several processes, the median growth, and all of them."""
    record = spawn(measure, cell)
    if "growth" in record and processes > 1:
        others = [spawn(look, cell) for _ in range(processes - 1)]
        record["growths"] = sorted([record["growth"], *(other["growth"] for other in others if "growth" in other)])
        record["growth"] = statistics.median_low(record["growths"])
    return record


def cells() -> list[tuple[str, int, str]]:
    return [(a, v, q) for a, axis in AXES.items() for q in axis.quantities for v in axis.values_of(q)]


def answer(function: Callable[..., dict[str, Any]], cell: tuple[str, int, str], end: Any) -> None:
    """In the process of the cell."""
    try:
        end.send(function(*cell))
    except Exception as error:
        end.send({"failed": f"{type(error).__name__}: {error}"[:300]})


def spawn(function: Callable[..., dict[str, Any]], cell: tuple[str, int, str]) -> dict[str, Any]:
    """A process of its own, forked from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(function, cell, theirs))
    process.start()
    theirs.close()
    try:
        return mine.recv() if mine.poll(LIMIT) else {"failed": f"took longer than {LIMIT} s"}
    except EOFError:
        return {"failed": "the process was ended, out of memory perhaps"}
    finally:
        process.kill()
        process.join()


def load() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"conditions": {}, "cells": {}}


def store(results: dict[str, Any]) -> None:
    """Whole or not at all."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    partial.replace(RESULTS)


def draw(results: dict[str, Any]) -> None:
    """A column per axis; cost above, memory below, measured (points) and predicted (lines)."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "dynaxx"  # the same results make the same file
    from matplotlib import pyplot as plt

    names = [name for name, axis in AXES.items() if len(axis.values) > 1]
    fig, rows = plt.subplots(2, len(names), figsize=(13, 5.2), sharey="row", layout="constrained", squeeze=False)
    for column, name in enumerate(names):
        upper, lower = rows[0][column], rows[1][column]
        for quantity in AXES[name].quantities:
            found = [results["cells"].get(f"{name}-{value}-{quantity}", {}) for value in AXES[name].values]
            done = [cell for cell in found if "growth" in cell]
            x = [cell["value"] if name != "parameters" else cell["parameters"] for cell in done]
            look = {"color": f"C{list(LABELS).index(quantity)}"}
            upper.plot(x, [cell["cost"] for cell in done], "o-", markersize=4, label=LABELS[quantity], **look)
            lower.plot(x, [cell["growth"] / 1e6 for cell in done], "o", markersize=4, label="measured", **look)
            lower.plot(x, [cell["predicted"] / 1e6 for cell in done], "-", linewidth=1, label="predicted", **look)
        for ax in (upper, lower):
            ax.set_xscale("log", base=2 if name != "outputs" and name != "parameters" else 10)
            ax.set_yscale("log")
            ax.grid(color="0.92")
        lower.set_xlabel(AXES[name].title)
    rows[0][0].set_ylabel("multiples of one gradient")
    rows[1][0].set_ylabel("peak growth, MB\n(points measured, lines predicted)")
    shown = {text: h for ax in rows[0] for h, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5, frameon=False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(FIGURE, metadata={"Date": None})
    plt.close(fig)


def rows(results: dict[str, Any], names: list[str]) -> list[str]:
    """A table of the cells of some axes."""
    out = ["| model | p | quantity | cost, q0 | growth measured | predicted | ratio | tensors alone |",
           "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    order = ["-".join(map(str, cell)) for cell in cells()]
    for name in sorted(results["cells"], key=lambda name: order.index(name) if name in order else -1):
        cell = results["cells"][name]
        if cell["axis"] not in names:
            continue
        head = f"| {cell['axis']} {cell['value']:,} | "
        head += f"{cell['parameters'] / 1e6:.3g} M | " if "parameters" in cell else "| "
        head += f"{LABELS[cell['quantity']]} | "
        if "growth" not in cell:
            foot = f" {cell['predicted'] / 1e6:,.0f} MB | | |" if "predicted" in cell else " | | |"
            out.append(head + f"| {cell.get('failed') or cell.get('skipped')} |" + foot)
            continue
        measured_, predicted = cell["growth"] / 1e6, cell["predicted"] / 1e6
        sign = "≥ " if cell["stopped"] else ""
        spread = [f"{growth / 1e6:,.0f}" for growth in cell.get("growths", [])]
        among = f" ({spread[0]} to {spread[-1]})" if len(spread) > 1 else ""
        out.append(
            head + f"{cell['cost']:.3g} | {measured_:,.0f} MB{among} | {sign}{predicted:,.0f} MB | "
            f"{f'{predicted / measured_:.2f}' if measured_ > SEEN else 'too small'} | {cell['live'] / 1e6:,.0f} MB |"
        )
    return out


def summary(results: dict[str, Any]) -> str:
    """How far predictions were from what was measured, by size."""
    done = [cell for cell in results["cells"].values() if "growth" in cell and not cell["stopped"]]
    parts = []
    for low, high, what in (
        (200e6, 1e15, "200 MB or more"),
        (50e6, 200e6, "50 to 200 MB"),
        (SEEN * 1e6, 50e6, "5 to 50 MB"),
    ):
        ratios = sorted(cell["predicted"] / max(cell["growth"], 1) for cell in done if low <= cell["growth"] < high)
        if ratios:
            near = sum(abs(ratio - 1) <= 0.2 for ratio in ratios)
            parts.append(
                f"growth of {what}: {near} of {len(ratios)} within 20 %, ratios {ratios[0]:.2f} to {ratios[-1]:.2f}"
            )
    return "Predicted over measured, " + "; ".join(parts) + "."


def fill(results: dict[str, Any]) -> None:
    """Put the measured part into its page."""
    dates = sorted(cell["date"] for cell in results["cells"].values())
    where = results["conditions"]
    text = PAGE.read_text(encoding="utf-8")
    begin, end = (text.index(mark) for mark in MARKS)
    small = [name for name in AXES if name not in SINGLE]
    measured_part = "\n".join(
        [
            MARKS[0], "", summary(results), "", *rows(results, SINGLE), "",
            *rows(results, small), "",
            f"Measured from {dates[0]} to {dates[-1]} on {where['processor']}, {where['cores']} cores, "
            f"{where['memory_gb']} GB, torch {where['torch']}, one thread. Beside it ran {where['beside']}.", "",
        ]
    )  # fmt: skip
    PAGE.write_text(text[:begin] + measured_part + text[end:], encoding="utf-8")


def line(name: str, record: dict[str, Any]) -> str:
    if "growth" not in record:
        return f"{name:40s} {record.get('failed') or record.get('skipped')}"
    return (
        f"{name:40s} {record['cost']:8.2f} q0  {record['growth'] / 1e6:8.0f} MB, predicted "
        f"{record['predicted'] / 1e6:8.0f} ({record['predicted'] / max(1, record['growth']):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--processes", type=int, default=1, help="how many measure a cell's growth")
    parser.add_argument("--figure", action="store_true")
    parser.add_argument("--beside", default="", help="what ran on the machine at the same time, for the record")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for cell in [] if given.figure else cells():
        name = "-".join(map(str, cell))
        results = load()
        if not all(text in name for text in given.only) or (name in results["cells"] and not given.again):
            continue
        record = {"axis": cell[0], "value": cell[1], "quantity": cell[2]} | repeated(cell, given.processes)
        record["date"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        results = load()
        results["conditions"] = conditions(given.beside or results["conditions"].get("beside", ""))
        results["cells"][name] = record
        store(results)
        print(line(name, record), flush=True)
    draw(load())
    fill(load())


def conditions(beside: str) -> dict[str, Any]:
    from run import machine

    return machine("cpu", 1) | {"beside": beside, "clock": "process time", "seed": 0}


if __name__ == "__main__":
    main()
