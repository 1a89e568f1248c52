"""Libraries of per-example gradients: torch.func alone, BackPACK, and ViViT and Laplace on top of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from registry import Cell, cell
from torch import Tensor, nn
from workloads import Workload

# torch alone


def parameters(w: Workload) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in w.model.named_parameters()}


def example_loss(w: Workload) -> Callable[..., Tensor]:
    """Loss of one example as a function of the parameters."""

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        z = torch.func.functional_call(w.model, values, (x[None],))[0]
        return nn.functional.cross_entropy(z.reshape(-1, z.shape[-1]), y.reshape(-1), reduction="sum")

    return loss


@cell("diagonal_sampled", "torch.func")
def functional_diagonal(w: Workload) -> Cell:
    """vmap of grad, 64 examples at a time, with labels drawn from the model."""
    per_example = torch.func.vmap(torch.func.grad(example_loss(w)), (None, 0, 0), chunk_size=64)

    def run() -> dict[str, Tensor]:
        with torch.no_grad():
            y = torch.distributions.Categorical(logits=w.model(w.x)).sample()
        gradients = per_example(parameters(w), w.x, y)
        return {name: g.square().mean(0) for name, g in gradients.items()}

    return Cell(run)


# BackPACK


def backpack_quantity(w: Workload, extension: str, attribute: str) -> Cell:
    backpack, extensions = importlib.import_module("backpack"), importlib.import_module("backpack.extensions")
    residual = any(type(module).__name__ == "Residual" for module in w.model.modules())
    model = backpack.extend(w.model, use_converter=residual)
    loss = backpack.extend(nn.CrossEntropyLoss())

    def run() -> list[Tensor]:
        model.zero_grad()
        with backpack.backpack(getattr(extensions, extension)()):
            loss(model(w.x), w.y).backward()
        return [getattr(parameter, attribute) for parameter in model.parameters()]

    def diagonal(values: list[Tensor]) -> Tensor:
        return torch.cat([value.flatten() for value in values])

    return Cell(run, answer=diagonal if extension == "DiagGGNExact" else None)


NO_TOKENS = "no extension for LayerNorm, and none for a parameter used outside of a layer"


@cell("diagonal_sampled", "backpack", lm=NO_TOKENS)
def backpack_diagonal_sampled(w: Workload) -> Cell:
    return backpack_quantity(w, "DiagGGNMC", "diag_ggn_mc")


@cell("diagonal_exact", "backpack")
def backpack_diagonal_exact(w: Workload) -> Cell:
    return backpack_quantity(w, "DiagGGNExact", "diag_ggn_exact")


@cell("kfac_sampled", "backpack", lm=NO_TOKENS)
def backpack_kfac_sampled(w: Workload) -> Cell:
    return backpack_quantity(w, "KFAC", "kfac")


@cell("kfac_exact", "backpack", cnn="KFLR has no rule for the sum at a skip connection")
def backpack_kfac_exact(w: Workload) -> Cell:
    return backpack_quantity(w, "KFLR", "kflr")


@cell("trace", "backpack", lm=NO_TOKENS)
def backpack_trace(w: Workload) -> Cell:
    """The sum of the exact diagonal."""
    inner = backpack_quantity(w, "DiagGGNExact", "diag_ggn_exact")
    return Cell(lambda: sum(float(value.sum()) for value in inner.run()))


# ViViT


@cell("spectrum", "vivit", cnn="the accumulation at a skip connection takes 6.8 GB; see the published table")
def vivit_spectrum(w: Workload) -> Cell:
    def symeig(matrix: Tensor, eigenvectors: bool = False) -> Any:
        return torch.linalg.eigh(matrix) if eigenvectors else (torch.linalg.eigvalsh(matrix), matrix.new_empty(0))

    Tensor.symeig = symeig  # type: ignore[method-assign]  # torch removed what vivit still calls
    backpack, vivit = importlib.import_module("backpack"), importlib.import_module("vivit")
    model, loss = backpack.extend(w.model), backpack.extend(nn.CrossEntropyLoss())

    def run() -> Tensor:
        computation = vivit.EigvalshComputation()
        group = {"params": list(model.parameters())}
        model.zero_grad()
        with backpack.backpack(computation.get_extension(), extension_hook=computation.get_extension_hook([group])):
            loss(model(w.x), w.y).backward()
        return computation.get_result(group)

    return Cell(run, answer=lambda values: values.sort(descending=True).values)


# Laplace


@cell("diagonal_exact", "laplace", cnn="BackPACK's converter fails on it inside of laplace; see the published table")
def laplace_diagonal(w: Workload) -> Cell:
    backend = importlib.import_module("laplace.curvature.backpack").BackPackGGN

    def run() -> Tensor:
        _, diagonal = backend(w.model, "classification").diag(w.x, w.y)
        return diagonal

    return Cell(run, answer=lambda diagonal: diagonal / w.count)
