"""Sloppy models: five published statements about spectra, reduction, data, bounds and trajectories, measured anew.

    python studies/sloppiness.py                    every study; an interrupted run goes on where it stopped
    python studies/sloppiness.py --parts spectra    one of them
    python studies/sloppiness.py --quick            small sizes, in a temporary folder; fails if a result does
    python studies/sloppiness.py --figures          pictures and tables of docs/studies from the kept results

Each study is a module: ``Sizes``, ``QUICK``, ``cells`` that are computed once and kept, and ``check`` with what must
hold at any size. docs/studies/sloppiness.md says what came out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import model_reduction
import pac_bayes
import runs
import spectra
import synthetic
import trajectories
from runs import ROOT, Cells

STUDIES: dict[str, Any] = {
    "spectra": spectra,
    "reduction": model_reduction,
    "synthetic": synthetic,
    "pac_bayes": pac_bayes,
    "trajectories": trajectories,
}
RESULTS = Path(__file__).resolve().parent / "results" / "sloppiness"
PAGE = ROOT / "docs" / "studies" / "sloppiness.md"


def compute(options: argparse.Namespace) -> tuple[int, list[str]]:
    """Compute what is not kept yet; returns the number of cells and what does not hold."""
    count, wrong = 0, []
    for part in options.parts:
        study = STUDIES[part]
        kept, found = Cells(options.results / part, options.until), {}
        cache = options.cache / ("quick" if options.quick else "reduced")
        for name, about, make in study.cells(study.QUICK if options.quick else study.Sizes(), options.data, cache):
            result = kept.get(name, about, make)
            if result is not None:
                found[name] = result
        count += len(found)
        wrong += [f"{part}: {line}" for line in study.check(found)]
    return count, wrong


def show(results: Path) -> str:
    """Figures and tables of the page."""
    import sloppiness_figures
    import sloppiness_tables

    sloppiness_figures.make(results, PAGE.parent / "images")
    tables = sloppiness_tables.tables(results)
    PAGE.write_text(sloppiness_tables.placed(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    return "\n\n".join(tables.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; returns the exit status."""
    return runs.main(arguments, about=__doc__, parts=list(STUDIES), results=RESULTS, compute=compute, show=show)


if __name__ == "__main__":
    raise SystemExit(main())
