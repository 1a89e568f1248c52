"""``dynaxx demo``: the workflow on real data, twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from dynaxx.cli.options import Debug, Seed, folder, interruptible

TITLE = "Entropy-aware compression of two digit classifiers"
FULL: dict[str, Any] = {"epochs": 20, "fine_tune_epochs": 8, "probe_size": 200, "trials": 3}
QUICK: dict[str, Any] = {"epochs": 4, "fine_tune_epochs": 2, "probe_size": 40, "trials": 1, "sparsities": (0.5, 0.9)}


def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html, the pruned models and the run store.")] = Path(
        "dynaxx-runs/demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer epochs and examples: a look at the workflow, not at its results.")
    ] = False,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Compress a perceptron and a small convolutional net on handwritten digits, and write one report."""
    folder(out)
    import torch

    from dynaxx.cli import digits
    from dynaxx.cli.finish import finish
    from dynaxx.compress.journal import Journal
    from dynaxx.compress.pages import document
    from dynaxx.compress.progress import Bars
    from dynaxx.compress.workflow import CompressionResult, compress
    from dynaxx.report import Document, write
    from dynaxx.track import Store

    with one_thread(), interruptible(), Store(out / "dynaxx.db") as store, Bars() as bars:
        results: list[CompressionResult] = []
        journals: list[Journal] = []
        subtitle = f"scikit-learn digits, {digits.TRAIN} to train, {digits.VALIDATION} to validate, the rest to test"

        # obs needs p x p matrices: half a minute for the perceptron's 6570 parameters, a few seconds for the other's
        plans = (
            ("MLP", digits.mlp, 0.9, ("magnitude", "obd", "random")),
            ("CNN", digits.cnn, 0.7, ("magnitude", "obd", "obs", "random")),
        )

        def page() -> Document:
            return document(journals, TITLE, f"{subtitle}; seed {seed}")

        def publish(journal: Journal) -> None:
            if journal not in journals:
                journals.append(journal)
            write(page(), out / "report.html")

        for name, make, sparsity, criteria in plans:
            bars.label = f"{name} "
            parts = digits.digits(seed)
            data: dict[str, Any] = {
                "train": parts.train,
                "validation": parts.validation,
                "test": parts.test,
                "criteria": criteria,
            }
            records: dict[str, Any] = {
                "name": name,
                "project": "demo",
                "store": store,
                "report": publish,
                "progress": bars,
            }
            torch.manual_seed(seed)
            results.append(
                compress(make(), sparsity=sparsity, seed=seed, **data, **records, **(QUICK if quick else FULL))
            )
        final = page()
    finish(results, final, out)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch inside: these matrices are so small that several spend their time waiting for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
