"""One of every operator, each beside the dense matrix it stands for.

``MARKET`` maps a name to a ``Stall``; ``load(name)`` builds it once in float64, ``load(name, torch.float32)`` in single
precision. The dense matrix never comes from the operator: it is made of the brute-force Jacobians and factors of
``oracles``, of the metric written out, or of a closed form. Only the labels and signs of sampled operators are taken
from the estimator, since no other source can know them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import dynaxx
import oracles
from dynaxx import estimators, likelihoods
from dynaxx.model.network import Output
from dynaxx.operators.base import Operator
from dynaxx.operators.implicit import Implicit


@dataclass(frozen=True)
class Stall:
    """What is known of an operator beforehand.

    Args:
        make: (model, batch) -> operator.
        dense: (model, batch) -> the p x p matrix in float64.
        wide: 9 parameters under 16 Gram rows instead of 43 under 12.
        samples: draws per example; 0 where nothing is sampled.
        definite: whether the matrix is positive semi-definite.
        products: whether the operator can multiply; one that was loaded without its model cannot.
        storable: whether it holds numbers that can be saved.
    """

    make: Callable[[nn.Module, Any], Operator]
    dense: Callable[[nn.Module, Any], Tensor]
    wide: bool = False
    samples: int = 0
    definite: bool = True
    products: bool = True
    storable: bool = True


def problem(wide: bool, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A perceptron with 43 parameters and 6 examples, or a linear softmax with 9 parameters and 8 examples."""
    draw = torch.Generator().manual_seed(4)
    layers = [nn.Linear(2, 3)] if wide else [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)]
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.6 * torch.randn(value.shape, generator=draw, dtype=torch.float64))
    count, width = (8, 2) if wide else (6, 4)
    x = torch.randn(count, width, generator=draw, dtype=torch.float64)
    return model.to(dtype), (x.to(dtype), torch.randint(3, (count,), generator=draw))


# ---------------------------------------------------------------------------------------------------------------------
# The matrices


def pulled_back(columns: Callable[[int, Tensor], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """(1/N) sum_n J_n^T B_n B_n^T J_n for columns B_n = columns(n, z_n) of shape (C, r)."""

    def dense(model: nn.Module, batch: Any) -> Tensor:
        rows = oracles.examples(model, batch, "categorical")
        total = torch.zeros(rows[0].jacobian.shape[-1], rows[0].jacobian.shape[-1], dtype=torch.float64)
        for n, row in enumerate(rows):
            half = row.jacobian[0].T @ columns(n, row.outputs[0])
            total += half @ half.T
        return total / len(rows)

    return dense


def exact(model: nn.Module, batch: Any) -> Tensor:
    return oracles.exact_fisher(oracles.examples(model, batch, "categorical"), "categorical")


def empirical(model: nn.Module, batch: Any) -> Tensor:
    return oracles.empirical_fisher(oracles.examples(model, batch, "categorical"), "categorical")


def sampled(name: str, samples: int) -> Callable[[nn.Module, Any], Tensor]:
    def columns(n: int, z: Tensor) -> Tensor:
        estimator = estimators.resolve(name, likelihoods.resolve("categorical"), samples=samples, seed=3)
        u = estimator.cotangents(Output(z[None, None], None, None), torch.tensor([n]), 0, samples)
        return u[:, 0, 0].T

    return pulled_back(columns)


def top_eigenvector(n: int, z: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(oracles.metric("categorical", z))
    return vectors[:, -1:] * values[-1].sqrt()


def root_of_probabilities(n: int, z: Tensor) -> Tensor:
    return z.softmax(0).sqrt().diag()


def modules(model: nn.Module) -> list[tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name in oracles.parameters(model):
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return [tuple(names) for names in found.values()]


def blocks_of(dense: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, batch: oracles.keep_blocks(dense(model, batch), oracles.offsets(model), modules(model))


def diagonal_of(dense: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, batch: dense(model, batch).diagonal().diag()


def with_exact_head(dense: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """A sampled diagonal, but for the layer that makes the logits: its entries take their closed form."""

    def diagonal(model: nn.Module, batch: Any) -> Tensor:
        drawn, true = dense(model, batch).diagonal().clone(), exact(model, batch).diagonal()
        head = sum(value.numel() for value in layers_of(model)[-1].parameters())
        drawn[-head:] = true[-head:]
        return drawn.diag()

    return diagonal


def layers_of(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def kfac(model: nn.Module, batch: Any) -> Tensor:
    factors = [oracles.kfac_factors(model, layer, batch, "categorical", "expand") for layer in layers_of(model)]
    return torch.block_diag(*(factor.dense() for factor in factors))


def ekfac(model: nn.Module, batch: Any) -> Tensor:
    """The exact block's diagonal in the eigenbasis of the Kronecker product."""
    fisher, found, start = exact(model, batch), [], 0
    for layer in layers_of(model):
        factors = oracles.kfac_factors(model, layer, batch, "categorical", "expand")
        (_, left), (_, right) = (torch.linalg.eigh(factor) for factor in (factors.outputs, factors.inputs))
        basis = torch.kron(left, right)
        outputs, inputs = len(left), len(right)
        index = torch.arange(outputs * inputs).reshape(outputs, inputs)
        basis = basis[torch.cat([index[:, :-1].flatten(), index[:, -1]])]  # weight row by row, then bias
        stop = start + outputs * inputs
        scales = (basis.T @ fisher[start:stop, start:stop] @ basis).diagonal()
        found.append(basis @ scales.diag() @ basis.T)
        start = stop
    return torch.block_diag(*found)


def curvature(model: nn.Module, batch: Any) -> Tensor:
    return oracles.hessian(model, batch, functional.cross_entropy)


# ---------------------------------------------------------------------------------------------------------------------
# The operators


def fisher(**options: Any) -> Callable[[nn.Module, Any], Operator]:
    return lambda model, batch: dynaxx.fisher(model, batch, **options)


def hessian(form: str) -> Callable[[nn.Module, Any], Operator]:
    return lambda model, batch: dynaxx.hessian(model, batch, functional.cross_entropy, form=form)


def inside(make: Callable[[nn.Module, Any], Any]) -> Callable[[nn.Module, Any], Operator]:
    """The first layer's block of a block-diagonal operator: a Kronecker block by itself."""
    return lambda model, batch: make(model, batch).parts[0]


def first_layer(dense: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    def corner(model: nn.Module, batch: Any) -> Tensor:
        size = sum(value.numel() for value in layers_of(model)[0].parameters())
        return dense(model, batch)[:size, :size]

    return corner


def in_batches(make: Callable[[nn.Module, Any], Operator]) -> Callable[[nn.Module, Any], Operator]:
    return lambda model, batch: make(model, [oracles.part(batch, 0, 4), oracles.part(batch, 4, len(batch[0]))])


def from_disk(make: Callable[[nn.Module, Any], Operator]) -> Callable[[nn.Module, Any], Operator]:
    def loaded(model: nn.Module, batch: Any) -> Operator:
        with tempfile.TemporaryDirectory() as folder:
            return dynaxx.load(make(model, batch).save(f"{folder}/operator.safetensors"))

    return loaded


HUTCHINSON = {"estimator": "hutchinson", "samples": 2, "seed": 3}
MONTE_CARLO = {"estimator": "monte_carlo", "samples": 4, "seed": 3}

MARKET: dict[str, Stall] = {
    "implicit": Stall(fisher(), exact, storable=False),
    "implicit in batches": Stall(in_batches(fisher()), exact, storable=False),
    "implicit hutchinson": Stall(fisher(**HUTCHINSON), sampled("hutchinson", 2), samples=2, storable=False),
    "implicit monte carlo": Stall(fisher(**MONTE_CARLO), sampled("monte_carlo", 4), samples=4, storable=False),
    "implicit empirical": Stall(fisher(estimator="empirical"), empirical, storable=False),
    "implicit lower": Stall(fisher(estimator="lower"), pulled_back(top_eigenvector), storable=False),
    "implicit upper": Stall(fisher(estimator="upper"), pulled_back(root_of_probabilities), storable=False),
    "dense": Stall(fisher(form="dense"), exact),
    "dense lower": Stall(fisher(estimator="lower", form="dense"), pulled_back(top_eigenvector)),
    "dense upper": Stall(fisher(estimator="upper", form="dense"), pulled_back(root_of_probabilities)),
    "dense monte carlo": Stall(fisher(form="dense", **MONTE_CARLO), sampled("monte_carlo", 4), samples=4),
    "diagonal": Stall(fisher(form="diagonal"), diagonal_of(exact)),
    "diagonal hutchinson": Stall(
        fisher(form="diagonal", **HUTCHINSON), diagonal_of(sampled("hutchinson", 2)), samples=2
    ),
    "diagonal with an exact head": Stall(
        fisher(form="diagonal", head="exact", **HUTCHINSON), with_exact_head(sampled("hutchinson", 2)), samples=2
    ),
    "block": Stall(fisher(form="block"), blocks_of(exact)),
    "block empirical": Stall(fisher(estimator="empirical", form="block"), blocks_of(empirical)),
    "kfac": Stall(fisher(form="kfac"), kfac),
    "ekfac": Stall(fisher(form="ekfac"), ekfac),
    "kronecker": Stall(inside(fisher(form="kfac")), first_layer(kfac)),
    "eigen kronecker": Stall(inside(fisher(form="ekfac")), first_layer(ekfac)),
    "gram, p > M": Stall(fisher(form="gram"), exact),
    "gram, p < M": Stall(fisher(form="gram"), exact, wide=True),
    "gram in batches": Stall(in_batches(fisher(form="gram")), exact),
    "gram monte carlo": Stall(fisher(form="gram", **MONTE_CARLO), sampled("monte_carlo", 4), samples=4),
    "hessian": Stall(hessian("implicit"), curvature, definite=False, storable=False),
    "hessian dense": Stall(hessian("dense"), curvature, definite=False),
    "hessian diagonal": Stall(hessian("diagonal"), diagonal_of(curvature), definite=False),
    "hessian block": Stall(hessian("block"), blocks_of(curvature), definite=False),
}
for _name, _stall in list(MARKET.items()):
    if _stall.storable:
        MARKET[f"{_name}, from disk"] = Stall(
            from_disk(_stall.make), _stall.dense, _stall.wide, _stall.samples, _stall.definite,
            products="gram" not in _name,
        )  # fmt: skip
NAMES = tuple(MARKET)
WITH_PRODUCTS = tuple(name for name in NAMES if MARKET[name].products)


@cache
def load(name: str, dtype: torch.dtype = torch.float64) -> tuple[Operator, Tensor]:
    """The operator, and its matrix in float64 from the same model in float64."""
    stall = MARKET[name]
    model, batch = problem(stall.wide, dtype)
    twin, (x, y) = problem(stall.wide, torch.float64)
    if dtype != torch.float64:  # the very numbers that single precision holds
        twin.load_state_dict({key: value.double() for key, value in model.state_dict().items()})
        x = batch[0].double()
    return stall.make(model, batch), stall.dense(twin, (x, y))


def needs_model(operator: Operator) -> bool:
    """Whether it multiplies by running the model, so that its solves are iterations."""
    return isinstance(operator, Implicit) or type(operator).__name__ == "Hessian"
