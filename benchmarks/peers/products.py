"""Libraries of matrix-vector products: curvlinops (also K-FAC), hessian-eigenthings, PyHessian."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from ours import vectors
from registry import PRODUCTS, TOP, Cell, cannot, cell
from torch import Tensor, nn
from workloads import Workload

HUTCHINSON = 50
TOLERANCE = 1e-3

# curvlinops


class Flat(nn.Module):
    """Positions first merged with examples, because CrossEntropyLoss wants classes on axis 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).flatten(0, -2)


def tokens(w: Workload) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], dict[str, Any]]:
    """Model, data and options of curvlinops for any workload."""
    options = {"check_deterministic": False, "num_data": w.count, "progressbar": False}
    if w.y.dim() == 1:
        return w.model, [(w.x, w.y)], options
    return Flat(w.model), [(w.x, w.y.flatten())], options | {"batch_size_fn": len}


def curvlinops_operator(w: Workload, name: str) -> Any:
    model, data, options = tokens(w)
    module = importlib.import_module("curvlinops")
    return getattr(module, name)(model, nn.CrossEntropyLoss(), list(model.parameters()), data, **options)


def curvlinops_products(w: Workload, name: str) -> Cell:
    given = vectors(w)
    terms = w.y.numel() / w.count  # the loss is a mean over tokens, our Fisher matrix a sum over an example's

    def run() -> list[Tensor]:
        operator = curvlinops_operator(w, name)
        return [operator @ vector for vector in given]

    scale = terms if name.startswith("GGN") else 1.0
    return Cell(run, PRODUCTS, lambda products: scale * products[0])


@cell("fisher_product", "curvlinops")
def curvlinops_fisher_product(w: Workload) -> Cell:
    return curvlinops_products(w, "GGNLinearOperator")


@cell("hessian_product", "curvlinops")
def curvlinops_hessian_product(w: Workload) -> Cell:
    return curvlinops_products(w, "HessianLinearOperator")


def curvlinops_kfac(w: Workload, kind: str) -> Cell:
    """Factors of linear and convolutional layers; curvlinops supports no other parameters."""
    module = importlib.import_module("curvlinops")
    model, data, options = tokens(w)
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    selected = [parameter for layer in layers for parameter in layer.parameters()]
    if w.y.dim() == 2:
        options["num_per_example_loss_terms"] = w.y.shape[1]

    def run() -> Any:
        operator = module.KFACLinearOperator(
            model, nn.CrossEntropyLoss(), selected, data, fisher_type=kind, separate_weight_and_bias=False, **options
        )
        operator.compute_kronecker_factors()
        return operator

    return Cell(run)


@cell("kfac_sampled", "curvlinops")
def curvlinops_kfac_sampled(w: Workload) -> Cell:
    return curvlinops_kfac(w, "mc")


@cell("kfac_exact", "curvlinops")
def curvlinops_kfac_exact(w: Workload) -> Cell:
    return curvlinops_kfac(w, "type-2")


@cell("trace", "curvlinops")
def curvlinops_trace(w: Workload) -> Cell:
    module = importlib.import_module("curvlinops")
    return Cell(lambda: float(module.hutchinson_trace(curvlinops_operator(w, "GGNLinearOperator"), HUTCHINSON)))


@cell("top_eigenvalues", "curvlinops")
def curvlinops_top(w: Workload) -> Cell:
    """SciPy's implicitly restarted Lanczos method on the exported operator."""
    sparse = importlib.import_module("scipy.sparse.linalg")

    def run() -> Any:
        operator = curvlinops_operator(w, "GGNLinearOperator").to_scipy()
        return sparse.eigsh(operator, k=TOP, tol=TOLERANCE, return_eigenvectors=False)

    return Cell(run, answer=lambda values: torch.as_tensor(sorted(values, reverse=True)))


cannot("diagonal_exact", "curvlinops", "version 3.0.1 has estimators of the diagonal only")


# hessian-eigenthings


def eigenthings(w: Workload, hessian: bool = False) -> Any:
    operators = importlib.import_module("hessian_eigenthings.operators.hessian" if hessian else
                                        "hessian_eigenthings.operators.ggn")  # fmt: skip
    losses = importlib.import_module("hessian_eigenthings.loss_fns.standard")

    def criterion(z: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z.flatten(0, -2), y.flatten())

    data = [(w.x, w.y)]
    if hessian:
        return operators.HessianOperator(w.model, data, losses.supervised_loss(criterion))
    return operators.GGNOperator(
        w.model, data, losses.supervised_forward, losses.supervised_loss_of_output(criterion)
    )  # fmt: skip


@cell("fisher_product", "hessian-eigenthings")
def eigenthings_fisher_product(w: Workload) -> Cell:
    given, terms = vectors(w), w.y.numel() / w.count

    def run() -> list[Tensor]:
        operator = eigenthings(w)
        return [operator.matvec(vector) for vector in given]

    return Cell(run, PRODUCTS, lambda products: terms * products[0])


@cell("hessian_product", "hessian-eigenthings")
def eigenthings_hessian_product(w: Workload) -> Cell:
    given = vectors(w)

    def run() -> list[Tensor]:
        operator = eigenthings(w, hessian=True)
        return [operator.matvec(vector) for vector in given]

    return Cell(run, PRODUCTS, lambda products: products[0])


@cell("trace", "hessian-eigenthings")
def eigenthings_trace(w: Workload) -> Cell:
    module = importlib.import_module("hessian_eigenthings.algorithms.trace")
    return Cell(lambda: module.hutchinson(eigenthings(w), num_samples=HUTCHINSON, seed=0).estimate)


@cell("top_eigenvalues", "hessian-eigenthings")
def eigenthings_top(w: Workload) -> Cell:
    module = importlib.import_module("hessian_eigenthings.algorithms.lanczos")

    def run() -> Any:
        return module.lanczos(eigenthings(w), k=TOP, max_iter=40, tol=TOLERANCE, seed=0)

    return Cell(run, answer=lambda found: torch.as_tensor(found.eigenvalues).flatten().sort(descending=True).values)


# PyHessian


@cell("hessian_product", "pyhessian")
def pyhessian_product(w: Workload) -> Cell:
    """The gradient's graph is made once and kept, as the library does for a single batch."""
    package, utils = importlib.import_module("pyhessian"), importlib.import_module("pyhessian.utils")
    given = vectors(w)

    def criterion(z: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z.flatten(0, -2), y.flatten())

    def pieces(vector: Tensor) -> Iterator[Tensor]:
        start = 0
        for parameter in w.model.parameters():
            yield vector[start : start + parameter.numel()].reshape(parameter.shape)
            start += parameter.numel()

    def run() -> list[Any]:
        w.model.zero_grad(set_to_none=True)
        made = package.hessian(w.model, criterion, data=(w.x, w.y), cuda=False)
        return [utils.hessian_vector_product(made.gradsH, made.params, list(pieces(vector))) for vector in given]

    return Cell(run, PRODUCTS, lambda products: torch.cat([part.flatten() for part in products[0]]))
