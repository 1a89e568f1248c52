"""Sloppy models: five published statements about spectra, reduction, data, bounds and trajectories, measured anew.

    python studies/sloppiness.py                    every study; an interrupted run goes on where it stopped
    python studies/sloppiness.py --parts spectra    one of them
    python studies/sloppiness.py --quick            small sizes, in a temporary folder; fails if a result does
    python studies/sloppiness.py --full             published sizes as far as the data at hand go: hours
    python studies/sloppiness.py --figures          pictures for docs/studies and tables from the kept results

Each study is a module: ``Sizes``, ``QUICK`` and ``FULL``, ``cells`` that are computed once and kept, and
``check`` with what must hold at any size. docs/studies/sloppiness.md says what came out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import model_reduction
import pac_bayes
import spectra
import synthetic
import torch
import trajectories
from runs import CONFIDENCE, ROOT, Cells

STUDIES: dict[str, Any] = {
    "spectra": spectra,
    "reduction": model_reduction,
    "synthetic": synthetic,
    "pac_bayes": pac_bayes,
    "trajectories": trajectories,
}
RESULTS = Path(__file__).resolve().parent / "results" / "sloppiness"


def run(
    parts: list[str], mode: str, results: Path, cache: Path, data: Path | None, until: float = float("inf")
) -> tuple[int, list[str]]:
    """Compute what is not kept yet; returns the number of cells and what does not hold.

    Args:
        mode: "quick", "reduced" or "full".
        until: seconds since the epoch after which no cell is begun.
    """
    count, wrong = 0, []
    for part in parts:
        study = STUDIES[part]
        sizes = {"quick": study.QUICK, "reduced": study.Sizes(), "full": study.FULL}[mode]
        kept, found = Cells(results / part), {}
        for name, options, compute in study.cells(sizes, data, cache):
            if time.time() > until:
                print(f"{part}: {name} and what follows is left for another run", flush=True)
                break
            result = kept.get(name, options, compute)
            if result is not None:
                found[name] = result
        count += len(found)
        wrong += [f"{part}: {line}" for line in study.check(found)]
    return count, wrong


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes in a temporary folder, with checks")
    parser.add_argument("--full", action="store_true", help="published sizes, in folders of their own")
    parser.add_argument("--figures", action="store_true", help="only make figures and tables from kept results")
    parser.add_argument("--parts", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--data", type=Path, help="folder of the data sets; else DYNAXX_DATA or shared/data")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where cells are kept, a folder per study")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "dynaxx-studies")
    options = parser.parse_args(arguments)
    if options.figures:
        import sloppiness_figures

        sloppiness_figures.make(options.results, ROOT / "docs" / "studies" / "images")
        print(sloppiness_figures.tables(options.results))
        return 0
    if options.quick:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # so small, threads cost more than they give where the machine is shared
        try:
            with tempfile.TemporaryDirectory() as folder:
                count, wrong = run(options.parts, "quick", Path(folder), Path(folder), options.data)
        finally:
            torch.set_num_threads(threads)
    else:
        mode, results = ("full", options.results / "full") if options.full else ("reduced", options.results)
        print(f"intervals are {CONFIDENCE:.0%}; cells go to {results.name}/", flush=True)
        until = time.time() + 60 * options.minutes
        count, wrong = run(options.parts, mode, results, options.cache / mode, options.data, until)
    print("\n".join(wrong) or f"{count} cells, every check holds")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
