"""``dynaxx inspect``: one model's geometry on one set of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynaxx.cli.options import Debug, Likelihood, ModelArgument, Seed


def inspect(
    model: ModelArgument,
    data: Annotated[
        str,
        typer.Option(
            help="package.module:factory; returns a loader, a batch, or a tuple whose first is the one to look at."
        ),
    ],
    likelihood: Likelihood = "categorical",
    estimator: Annotated[str, typer.Option(help="exact, hutchinson, monte_carlo or empirical.")] = "exact",
    examples: Annotated[int, typer.Option(help="How many examples to look at.")] = 200,
    prior_precision: Annotated[
        float, typer.Option(help="Of the Gaussian prior behind effective dimension and posterior entropy.")
    ] = 1.0,
    top: Annotated[int, typer.Option(help="How many of the largest eigenvalues to list.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page here too.")] = None,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Show the geometry of a model: spectrum, effective dimension, entropies, sloppiness."""
    import torch

    from dynaxx.cli import imports
    from dynaxx.cli.geometry import document
    from dynaxx.report import render, write

    torch.manual_seed(seed)
    module = imports.model(model).eval()
    found = imports.data("--data", data)[0]
    page = document(
        module,
        found,
        name=model,
        likelihood=likelihood,
        estimator=estimator,
        examples=examples,
        prior_precision=prior_precision,
        top=top,
        seed=seed,
    )
    render(page)
    if out is not None:
        typer.echo(f"report: {write(page, out)}")
