"""``dynaxx estimate-memory``: what a call will take, before it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynaxx.cli.options import Debug, Likelihood, ModelArgument
from dynaxx.errors import InputError, bytes_as_text

if TYPE_CHECKING:
    from dynaxx.memory.estimate import MemoryEstimate

USES = ("trace", "product", "snapshot")
PARTS = {
    "model": "parameters and buffers, held already",
    "data": "the batch, held already",
    "activations": "kept by the forward pass",
    "cotangents": "drawn, and pulled back to layer outputs",
    "result": "kept by the answer",
    "workspace": "chunks and copies on the way",
    "holes": "freed, and kept by the C library",
}


def estimate_memory(
    model: ModelArgument,
    data: Annotated[
        str, typer.Option(help="package.module:factory; returns a loader, a batch, or a tuple whose first is meant.")
    ],
    form: Annotated[
        list[str] | None,
        typer.Option(help=f"A form of dynaxx.fisher, or one of {', '.join(USES)}; give it again for several."),
    ] = None,
    estimator: Annotated[str, typer.Option(help="As for dynaxx.fisher.")] = "exact",
    samples: Annotated[int, typer.Option(help="Draws per example of a random estimator.")] = 1,
    likelihood: Likelihood = "categorical",
    batch_size: Annotated[int | None, typer.Option(help="Examples in a batch, if not as many as data gives.")] = None,
    debug: Debug = False,
) -> None:
    """Predict the peak memory of a call without running it: no numbers are computed."""
    from dynaxx.cli import imports
    from dynaxx.errors import choose
    from dynaxx.fisher import FORMS
    from dynaxx.memory.estimate import estimate_memory as estimate

    forms = form or ["diagonal", "kfac", "trace"]
    for name in forms:
        choose("--form", name, (*FORMS, *USES))
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size {batch_size}; expected at least 1")
    module = imports.model(model).eval()
    found = imports.data("--data", data)[0]
    options: dict[str, Any] = {"estimator": estimator, "samples": samples, "likelihood": likelihood}
    _render(
        {name: estimate(module, found, call=_call(name, options), batch_size=batch_size) for name in forms},
        f"{model}: {sum(p.numel() for p in module.parameters()):,} parameters, estimator {estimator}",
    )


def _call(name: str, options: dict[str, Any]) -> Callable[[Any, Any], Any]:
    """What the name stands for, as a function of model and data."""
    import torch

    from dynaxx.fisher import fisher

    def trace(model: Any, data: Any) -> Any:
        return fisher(model, data, **options).trace()

    def product(model: Any, data: Any) -> Any:
        operator = fisher(model, data, **options)
        return operator, operator @ torch.ones(operator.shape[0], dtype=operator.dtype, device=operator.device)

    def snapshot(model: Any, data: Any) -> Any:
        from dynaxx.monitor.snapshot import Probe
        from dynaxx.monitor.snapshot import snapshot as look

        return look(model, Probe("data", data, likelihood=options["likelihood"]))

    named = {"trace": trace, "product": product, "snapshot": snapshot}
    return named.get(name) or (lambda model, data: fisher(model, data, form=name, **options))


def _render(estimates: dict[str, MemoryEstimate], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("bytes at the peak")
    for name in estimates:
        table.add_column(name, justify="right")
    for part, meaning in PARTS.items():
        row = [bytes_as_text(getattr(estimate, part)) for estimate in estimates.values()]
        table.add_row(f"{part}: {meaning}", *row)
    table.add_section()
    table.add_row("total", *[bytes_as_text(estimate.total) for estimate in estimates.values()], style="bold")
    table.add_row("the call adds", *[bytes_as_text(estimate.growth) for estimate in estimates.values()])
    console = Console()
    console.print(table)
    for name, estimate in estimates.items():
        most = ", ".join(f"{where} ({bytes_as_text(size)})" for where, size in estimate.largest[:3])
        console.print(f"{name}: most is held by {most}")
        if estimate.stopped:
            console.print(f"{name}: at least this much; {estimate.stopped}")
    console.print("Not in it: Python and torch themselves (about 0.4 GB), and what libraries take inside an operation.")
