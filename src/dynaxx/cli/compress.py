"""``dynaxx compress``: the workflow on the user's own model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynaxx.cli.options import Debug, Likelihood, ModelArgument, Seed, folder, interruptible


def compress(
    model: ModelArgument,
    data: Annotated[
        str,
        typer.Option(
            help="package.module:factory; returns (train, validation) or (train, validation, test), or train alone."
        ),
    ],
    validation: Annotated[
        str | None,
        typer.Option(help="package.module:factory of the validation data, where --data returns train alone."),
    ] = None,
    likelihood: Likelihood = "categorical",
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="Share of the weights to drop, in [0, 1); default 0.8, or what --pattern n:m implies.",
            show_default=False,
        ),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="Who goes: magnitude, obd or obs; controls: fisher, random; with --epochs 0, for a model that has not "
            "been trained: snip, grasp, synflow."
        ),
    ] = "obd",
    scope: Annotated[
        str, typer.Option(help="What is ranked together: global, layer, or erk (large tensors lose more).")
    ] = "global",
    pattern: Annotated[
        str | None,
        typer.Option(help="2:4 keeps the 2 best of every 4 inputs; 4x1 drops blocks of 4 outputs by 1 input."),
    ] = None,
    curvature: Annotated[
        str | None,
        typer.Option(
            help="How weights make up for each other, for obs: diagonal, dense, rows, block, kfac or ekfac; default "
            "dense up to 4096 parameters, kfac beyond."
        ),
    ] = None,
    compensation: Annotated[
        str | None,
        typer.Option(help="obs moves the weights that stay, none leaves them; default obs for --criterion obs."),
    ] = None,
    damping: Annotated[
        str | None,
        typer.Option(
            help="Added to the curvature's diagonal: a number, or auto (chosen on training data that the curvature has "
            "not seen); default 0.1 times its mean eigenvalue, for obs."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Looks at the curvature along a cubic schedule; default 1, and 100 for synflow."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Prune and fine-tune so many times over on the way.")] = 1,
    tolerance: Annotated[
        float, typer.Option(help="Fall of the validation accuracy that is allowed (0.01: one point).")
    ] = 0.01,
    target_accuracy: Annotated[
        float | None,
        typer.Option(help="Look for the sparsest model with this validation accuracy, in place of --tolerance."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Training epochs; 0 takes the model as trained.")] = 20,
    fine_tune_epochs: Annotated[int, typer.Option(help="Epochs after pruning, per sparsity tried.")] = 10,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate; default 0.1 or half the ceiling found at initialisation.")
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="c of the penalty c/2 |w|^2.")] = 0.0,
    prior_precision: Annotated[
        float | None, typer.Option(help="Of the Gaussian prior; default weight decay times examples, or 1.")
    ] = None,
    probe_size: Annotated[int, typer.Option(help="Training examples on which geometry is measured.")] = 200,
    trials: Annotated[int, typer.Option(help="Sparsities to try after the first has failed.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder for report.html, pruning.safetensors and the run store.")] = Path(
        "dynaxx-runs/compress"
    ),
    store: Annotated[str | None, typer.Option(help="Run store; default dynaxx.db in --out.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which finished epochs and trials are kept; the same command goes on there after any end."
        ),
    ] = None,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Train, prune by curvature, fine-tune, and prune less where that costs too much.

    Example: dynaxx compress mypackage.models:make --data mypackage.data:loaders --sparsity 0.9 --tolerance 0.01
    """
    from dynaxx.cli import imports, options

    folder(out)
    strength = options.damping(damping)
    import torch

    from dynaxx.cli.finish import finish
    from dynaxx.compress.progress import Bars
    from dynaxx.compress.workflow import compress as run
    from dynaxx.errors import InputError
    from dynaxx.likelihoods import resolve

    resolve(likelihood)
    torch.manual_seed(seed)
    module = imports.model(model)
    parts = imports.data("--data", data)
    if validation is not None:
        parts = (parts[0], imports.data("--validation", validation)[0], *parts[2:])
    if len(parts) < 2:
        raise InputError(
            f"--data {data!r} returned training data alone; return (train, validation), or name --validation too"
        )
    with interruptible(), Bars() as bars:
        result = run(
            module,
            parts[0],
            parts[1],
            test=parts[2] if len(parts) > 2 else None,
            likelihood=likelihood,
            sparsity=sparsity,
            criterion=criterion,
            scope=scope,
            pattern=pattern,
            curvature=curvature,
            compensation=compensation,
            damping=strength,
            steps=steps,
            rounds=rounds,
            tolerance=tolerance,
            target_accuracy=target_accuracy,
            epochs=epochs,
            fine_tune_epochs=fine_tune_epochs,
            lr=lr,
            weight_decay=weight_decay,
            prior_precision=prior_precision,
            probe_size=probe_size,
            trials=trials,
            store=store or str(out / "dynaxx.db"),
            report=out / "report.html",
            name=_name(model),
            progress=bars,
            resume=resume,
            seed=seed,
        )
    finish([result], result.document(), out)


def _name(text: str) -> str:
    from dynaxx.track import clean_name

    return clean_name(text)
