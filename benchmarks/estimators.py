"""Which estimator of the Fisher diagonal and trace is the most accurate for the same number of passes?

    python benchmarks/estimators.py            measures, and writes estimators.json
    python benchmarks/estimators.py --table    prints the kept results

A unit is one reverse pass over all examples (or one forward-mode product, which costs about the same). An estimator is
given a budget of units and takes as many draws as fit: signs and sampled labels one unit each, a product with F two, a
deflated sketch of k columns with S signs 3 k + S. Errors are root mean squares over independent runs, with 95 %
bootstrap intervals; of a diagonal, the median over entries of the relative error. What is exact needs C - 1 = 9 units.

The model is a two-layer classifier of scikit-learn's digits, before training and after, in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dynaxx
from dynaxx.linalg.diagonal import hutchinson_diagonal, xdiag
from dynaxx.linalg.trace import hutch_plus_plus, hutchinson, xnystrace, xtrace

KEPT = Path(__file__).resolve().with_suffix(".json")
BUDGETS = (2, 8, 32, 128)
RUNS = 20
EXAMPLES = 64
RESAMPLES = 500

Answer = tuple[Tensor | None, float]
Contestant = Callable[[int], Answer]  # seed -> (diagonal, or None where only the trace is estimated; trace)


def workload(trained: bool) -> tuple[nn.Module, Tensor]:
    """A digit classifier and the examples that it is measured on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16.0), torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10)).double()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200 if trained else 0):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[:1000]), y[:1000]).backward()
        optimiser.step()
    return model.eval(), x[1000 : 1000 + EXAMPLES]


def contestants(model: nn.Module, x: Tensor, budget: int) -> Iterator[tuple[str, int, Contestant]]:
    """(name, units it takes, how to run it) of what fits the budget."""
    F = dynaxx.fisher(model, x)

    def draws(**options: Any) -> Contestant:
        def run(seed: int) -> Answer:
            found = dynaxx.fisher(model, x, form="diagonal", samples=budget, seed=seed, **options)
            return found.diagonal(), float(found.trace())

        return run

    def products(method: Callable[..., Any], number: int) -> Contestant:
        def run(seed: int) -> Answer:
            found = method(F, samples=number, seed=seed)
            if isinstance(found, float):
                return None, float(found)
            return found.diagonal, float(found.diagonal.sum())

        return run

    def deflation(sketch: int) -> Contestant:
        def run(seed: int) -> Answer:
            found = dynaxx.deflated(F, sketch=sketch, samples=budget - 3 * sketch, seed=seed)
            return found.diagonal, float(found.trace)

        return run

    for factor in ("symmetric", "cholesky", "eigen"):
        yield f"signs, {factor} root", budget, draws(estimator="hutchinson", factor=factor)
    yield "signs, head exact", budget, draws(estimator="hutchinson", head="exact")
    yield "signs, one sum a batch", budget, draws(estimator="hutchinson", group="batch")
    if 1 < budget <= 16:  # 16 orthogonal sign vectors exist for 10 columns
        yield "signs, orthogonal", budget, draws(estimator="hutchinson", probes="hadamard")
    yield "labels", budget, draws(estimator="monte_carlo")
    yield "labels, one sum a batch", budget, draws(estimator="monte_carlo", group="batch")
    if budget >= 5:
        sketch = max(1, (budget - 2) // 4)
        yield f"deflated, sketch {sketch}", budget, deflation(sketch)
    for name, method, least in (
        ("products, diagonal (Bekas)", hutchinson_diagonal, 2),
        ("products, XDiag", xdiag, 4),
        ("products, trace (Hutchinson)", hutchinson, 2),
        ("products, Hutch++", hutch_plus_plus, 6),
        ("products, XTrace", xtrace, 4),
        ("products, XNysTrace", xnystrace, 2),
    ):
        if budget // 2 >= least:
            yield name, budget, products(method, budget // 2)


def interval(errors: Tensor, statistic: Callable[[Tensor], float]) -> dict[str, float]:
    """A statistic of independent runs (R, ...), and 1.96 times its spread over resampled runs on either side."""
    generator = torch.Generator().manual_seed(0)
    again = [
        statistic(errors[torch.randint(len(errors), (len(errors),), generator=generator)]) for _ in range(RESAMPLES)
    ]
    value, half = statistic(errors), 1.96 * statistics.stdev(again)
    return {"value": value, "low": value - half, "high": value + half}


def measure(runs: int = RUNS, budgets: tuple[int, ...] = BUDGETS) -> dict[str, Any]:
    """Errors by stage, budget and estimator."""
    results: dict[str, Any] = {}
    for stage in ("before", "after"):
        model, x = workload(stage == "after")
        truth = dynaxx.fisher(model, x, form="diagonal")
        diagonal, trace = truth.diagonal(), float(truth.trace())
        keep = diagonal > 1e-9 * diagonal.max()
        rank = dynaxx.fisher(model, x, form="gram").spectrum()
        rows: dict[str, Any] = {}
        for budget in budgets:
            for name, units, run in contestants(model, x, budget):
                answers = [run(seed) for seed in range(runs)]
                traces = torch.tensor([total for _, total in answers], dtype=torch.float64) / trace - 1
                row = {"units": units, "trace": interval(traces, lambda e: float(e.square().mean().sqrt()))}
                found = [entries[keep] for entries, _ in answers if entries is not None]
                if found:
                    errors = torch.stack(found) / diagonal[keep] - 1
                    row["diagonal"] = interval(errors, lambda e: float(e.square().mean(0).sqrt().median()))
                rows.setdefault(name.split(", sketch")[0], {})[str(budget)] = row
        results[stage] = {
            "examples": EXAMPLES,
            "parameters": len(diagonal),
            "trace": trace,
            "effective_rank": rank.effective_rank(),
            "confidence": float(model(x).detach().softmax(-1).amax(-1).mean()),
            "estimators": rows,
        }
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"runs": runs, "seeds": f"0 to {runs - 1}", "versions": versions, "results": results}


def table(kept: dict[str, Any]) -> str:
    """Markdown: error of the diagonal / of the trace, in per cent, by budget."""
    lines = []
    for stage in ("before", "after"):
        found = kept["results"][stage]
        rank, sure = float(found["effective_rank"]), found["confidence"]
        lines += [f"{stage} training (mean confidence {sure:.2f}, effective rank {rank:.1f}):", ""]
        budgets = sorted({b for rows in found["estimators"].values() for b in rows}, key=int)
        lines += ["| estimator | " + " | ".join(f"{b} units" for b in budgets) + " |"]
        lines += ["|---" * (len(budgets) + 1) + "|"]
        for name, rows in found["estimators"].items():
            cells = [" / ".join(_percent(rows.get(b, {}).get(k)) for k in ("diagonal", "trace")) for b in budgets]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _percent(error: dict[str, float] | None) -> str:
    if error is None:
        return "–"
    value = 100 * error["value"]
    return f"{value:.1e}" if 0 < value < 0.01 else f"{value:.{max(0, 1 - math.floor(math.log10(max(value, 1e-9))))}f}"


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the kept results")
    if not parser.parse_args().table:
        KEPT.write_text(json.dumps(measure(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(table(json.loads(KEPT.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
