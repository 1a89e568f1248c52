"""Make docs/performance.md and docs/images/performance.svg from the results files.

python benchmarks/table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from registry import PRODUCTS, QUANTITIES, WORKLOADS

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
HEADINGS = {"mlp": "MLP", "cnn": "CNN", "lm": "language model"}
BUSY = 3.0  # load average from which a figure is marked
SLACK = 0.25  # of the fastest peer's memory, that ours may lie above it

TEXT = """# Performance

Time is given as a multiple of q0, the time of one plain forward and backward pass of the mean loss over the same batch:
a figure of 2 means that the quantity costs as much as two gradients. Below is what was measured here, what the best
peer reached in a survey made before this library was written, and what it aims at.

```{{image}} images/performance.svg
:alt: Cost of each quantity in multiples of a gradient, dynaxx and its peers, one panel for each model
```

## How it is measured

* Three models after 25 steps of SGD on synthetic data, seed 0, float32: an MLP 784-1024-1024-10 with 512 examples
  (1.864 M parameters); a residual CNN without BatchNorm with 128 images of 3 x 32 x 32 (0.559 M); a transformer
  language model with 4 blocks of width 128 and a vocabulary of 1000, on 16 sequences of 64 tokens (1.059 M).
* Each case in processes of its own, three for dynaxx. A repetition stands between two measurements of q0 (each the
  median of three) on an untouched copy of the model in the same process. A figure is the median over processes of the
  median over repetitions of t / mean(q0 before, q0 after), then the range of all. Within a process repetitions hardly
  differ; between processes of the same code they do, with where memory comes to lie. Memory is the growth of the peak
  resident set above that of a process that has run q0, the median over processes.
* Before dynaxx is timed, its answer on a few examples is held against float64 brute force; a wrong answer is not timed.
* Products with a matrix are timed as one operator made and {products} products with it, divided by {products}.
* The row of the trace compares unlike things on purpose: peers take 50 probes over the parameters with one product each
  (or the exact diagonal), dynaxx draws one column per example in output space.{traces}
* "Multiply-adds" counts those of dynaxx's products and convolutions, over those of a gradient; in float64 one counts
  twice. At the rate of torch's own products a time near that has no overhead left, and a goal below it wants another
  algorithm or faster products. Factorisations, elementwise work and memory come on top.
* The unit depends on the processor. On one of AMD's with AVX-512 torch's convolutions run at twice the rate of its
  float32 products, which MKL makes with AVX2 kernels; dynaxx takes oneDNN for large products there
  ({{doc}}`architecture`), peers and q0 do not. On others products are torch's own, and what the MLP and the language
  model take is more gradients than on such a one: this version has been measured on the processor named below alone.
* A K-FAC step is the gradient, the factors of that batch, damped inverses, and the preconditioned gradient. Like the
  peers' optimisers it takes its factors from the observed labels' scores, which is not the Fisher information but
  shares the gradient's reverse pass; the last row draws labels instead. Damping differs between libraries, so these
  rows compare cost only.

{conditions}

`make bench` measures what is missing and makes this page anew; `make bench-env` sets up the peers.
"""


def load() -> dict[tuple[str, str, str], dict[str, Any]]:
    """(quantity, workload, library) -> record, CPU results of single libraries."""
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("machine", {}).get("device", "cpu") == "cpu" and "+" not in record["libraries"]:
            found[record["quantity"], record["workload"], record["libraries"]] = record
    return found


def figure_of(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """The figure of a record that has one."""
    return None if record is None else record.get("figures", {}).get(record["libraries"])


def text_of(record: dict[str, Any] | None) -> str:
    """1.31 (1.17-1.47), +54 MB; a double dagger where the machine was busy; the reason where there is no figure."""
    if record is None:
        return "not measured"
    figure = figure_of(record)
    if figure is None:
        return str(record.get("cannot") or record.get("failed") or "no figure").replace("|", "/")
    digits = 2 if figure["median"] < 10 else 1
    median, low, high = (f"{figure[key]:.{digits}f}" for key in ("median", "low", "high"))
    few = " †" if figure.get("processes", 1) == 1 else ""
    busy = " ‡" if figure["load"][1] > BUSY else ""
    return f"{median} ({low}-{high}), +{figure['growth'] / 1e6:.0f} MB{few}{busy}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def goals(records: dict[tuple[str, str, str], dict[str, Any]], workload: str) -> list[str]:
    """Quantity, published best, goal, ours, best peer here."""
    lines = [
        "| quantity | best peer, published | goal | multiply-adds | dynaxx | best peer measured here |",
        "|---|---|---|---|---|---|",
    ]
    for key, quantity in QUANTITIES.items():
        if workload not in quantity.workloads:
            continue
        peers = {
            library: figure
            for (q, w, library), record in records.items()
            if (q, w) == (key, workload) and library != "dynaxx" and (figure := figure_of(record))
        }
        best = min(peers, key=lambda library: peers[library]["median"], default=None)
        shown = "" if best is None else f"{best}: {text_of(records[key, workload, best])}"
        mine = records.get((key, workload, "dynaxx"))
        work = (figure_of(mine) or {}).get("work")
        lines.append(
            f"| {quantity.title} | {number(quantity.best.get(workload))} | {number(quantity.goal.get(workload))} | "
            f"{number(work and round(work, 2))} | {text_of(mine)} | {shown} |"
        )
    return lines


def standing(records: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    """Which goals are met, which are missed, and which of those lie below the multiply-adds; where a peer is ahead."""
    met, missed, below, behind, larger, turns = [], [], [], [], [], shared()
    for key, quantity in QUANTITIES.items():
        for workload in quantity.workloads:
            mine = figure_of(records.get((key, workload, "dynaxx")))
            if mine is None:
                continue
            goal, name = quantity.goal.get(workload), f"{quantity.title} ({HEADINGS[workload]})"
            if goal is not None:
                reached = met if round(mine["median"], 2) <= goal else missed
                reached.append(f"{name} {mine['median']:.3g}, goal {goal:g}")
            if goal is not None and mine.get("work", 0.0) > goal:
                below.append(f"{name} {mine['work']:.3g}, goal {goal:g}")
            peers = [l for q, w, l in records if (q, w) == (key, workload) and l != "dynaxx"]
            known = {library: figure for library in peers if (figure := figure_of(records[key, workload, library]))}
            if known:
                fastest = min(known, key=lambda library: known[library]["median"])
                least = known[fastest]["growth"]
                if mine["growth"] > (1 + SLACK) * least:
                    larger.append(f"{name} {mine['growth'] / 1e6:.0f} MB, {fastest} {least / 1e6:.0f} MB")
            for library in peers:
                turn = turns.get((key, workload, library), {})
                peer = turn.get(library) or figure_of(records[key, workload, library])
                own = turn.get("dynaxx", mine)
                if peer and peer["median"] < own["median"]:
                    verdict = "ranges apart" if peer["high"] < own["low"] else "ranges overlap"
                    behind.append(f"{name}: {library} {peer['median']:.3g} against {own['median']:.3g}, {verdict}")
    parts = [
        (f"**Goals met**, {len(met)} of {len(met) + len(missed)}", met), ("**Missed**", missed),
        ("**Goals below the multiply-adds** that the algorithm makes, in reach of faster products alone", below),
        ("**A peer is ahead** (taking turns in one process where that was measured)", behind),
        (f"**More memory than the fastest peer**, by over {SLACK:.0%}", larger),
    ]  # fmt: skip
    return "\n\n".join(f"{head}: {'; '.join(items) or 'none'}." for head, items in parts)


def shared() -> dict[tuple[str, str, str], dict[str, Any]]:
    """(quantity, workload, peer) -> figures by library, of dynaxx and a peer taking turns in one process."""
    found = {}
    for path in sorted(RESULTS.glob("*+*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "figures" in record and record["machine"]["device"] == "cpu":
            peer = next(library for library in record["figures"] if library != "dynaxx")
            found[record["quantity"], record["workload"], peer] = record["figures"]
    return found


def in_turns() -> list[str]:
    """What two processes cannot settle."""
    lines = ["| quantity | model | dynaxx | peer |", "|---|---|---|---|"]
    for (quantity, workload, peer), figures in shared().items():
        ours, theirs = (
            f"{f['median']:.2f} ({f['low']:.2f}-{f['high']:.2f})" + " †" * (f.get("processes", 1) == 1)
            for f in (figures["dynaxx"], figures[peer])
        )
        lines.append(f"| {QUANTITIES[quantity].title} | {HEADINGS[workload]} | {ours} | {peer}: {theirs} |")
    return lines if len(lines) > 2 else []


def every_peer(records: dict[tuple[str, str, str], dict[str, Any]]) -> list[str]:
    """All peers' cells, with the difference from float64 where it can be compared, or the reason there is none."""
    lines = ["| quantity | model | library | cost | relative difference |", "|---|---|---|---|---|"]
    for key, quantity in QUANTITIES.items():
        for workload in quantity.workloads:
            for (q, w, library), record in records.items():
                if (q, w) == (key, workload) and library != "dynaxx":
                    found = (record.get("check") or {}).get(library) or {}
                    difference = f"{found['difference']:.1e}" if "difference" in found else ""
                    figure = figure_of(record) or {}
                    name = " ".join(filter(None, [library, figure.get("version", "")]))
                    lines.append(f"| {quantity.title} | {HEADINGS[w]} | {name} | {text_of(record)} | {difference} |")
    return lines


def conditions(records: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    """Machine, versions and dates of what is shown."""
    timed = [record for record in records.values() if "machine" in record]
    if not timed:
        return "Nothing has been measured yet."
    machine = timed[0]["machine"]
    dates = sorted(record["date"] for record in timed)
    loads = [figure["load"][1] for record in timed if (figure := figure_of(record))]
    return (
        f"Measured from {dates[0]} to {dates[-1]} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}, torch {machine['torch']} "
        f"({machine.get('capability', 'capability not noted')}), "
        f"{machine['threads']} threads. One-minute load averages while measuring: {min(loads):.1f} to {max(loads):.1f} "
        f"(the benchmark itself counts for {machine['threads']}). † marks a single process, ‡ a load above {BUSY:g}: "
        f"other work ran beside, and such figures do not even settle an order."
    )


def traces(records: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    """What the sampled trace and 50 probes are worth, where it was measured."""
    parts = []
    for workload in WORKLOADS:
        found = (records.get(("trace", workload, "dynaxx"), {}).get("check") or {}).get("dynaxx") or {}
        if "sampled" in found:
            parts.append(f"{HEADINGS[workload]} {found['sampled']:.1%} and {found['probes']:.1%}")
    if not parts:
        return ""
    return " Relative standard deviations measured, of one column and of 50 probes: " + "; ".join(parts) + "."


def draw(records: dict[tuple[str, str, str], dict[str, Any]], path: Path) -> None:
    """One panel per model, one row per quantity: ours, peers measured here, the published best, the goal."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "dynaxx"  # the same results make the same file
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, len(WORKLOADS), figsize=(12, 4.6), sharey=True, layout="constrained")
    names = list(QUANTITIES)
    for ax, workload in zip(axes, WORKLOADS, strict=True):
        for (q, w, library), record in records.items():
            figure = figure_of(record)
            if w != workload or figure is None:
                continue
            y, mine = -names.index(q), library == "dynaxx"
            spread = [[figure["median"] - figure["low"]], [figure["high"] - figure["median"]]]
            ax.errorbar(
                figure["median"], y, xerr=spread, fmt="o" if mine else "x", color="C0" if mine else "0.55",
                markersize=6 if mine else 5, linewidth=1, zorder=3 if mine else 2,
                label="dynaxx" if mine else "peers, measured here",
            )  # fmt: skip
        for row, quantity in enumerate(QUANTITIES.values()):
            if workload in quantity.best:
                ax.plot(quantity.best[workload], -row, "D", mfc="none", color="C1", label="best peer, published")
            if workload in quantity.goal:
                ax.plot(quantity.goal[workload], -row, "|", markersize=14, color="C2", label="goal")
        ax.set_xscale("log")
        ax.set_title(HEADINGS[workload])
        ax.set_xlabel("multiples of one gradient")
        ax.grid(axis="x", color="0.9", zorder=0)
    axes[0].set_yticks([-i for i in range(len(names))], [quantity.title for quantity in QUANTITIES.values()])
    labels = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def page(records: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    """The whole document."""
    parts = [TEXT.format(products=PRODUCTS, conditions=conditions(records), traces=traces(records))]
    for workload in WORKLOADS:
        heading = HEADINGS[workload][0].upper() + HEADINGS[workload][1:]
        parts += [f"## {heading}\n", *goals(records, workload), ""]
    parts += ["## Where it stands\n", standing(records), ""]
    if turns := in_turns():
        parts += ["Taking turns in one process:\n", *turns, ""]
    parts += ["## All peers\n", *every_peer(records), ""]
    return "\n".join(parts)


def main() -> None:
    records = load()
    (DOCS / "performance.md").write_text(page(records), encoding="utf-8")
    draw(records, DOCS / "images" / "performance.svg")


if __name__ == "__main__":
    main()
