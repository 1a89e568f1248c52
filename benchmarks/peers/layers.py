"""Libraries of layer factors: asdfghjkl (imports as asdl), nngeometry, kronfluence, SINGD."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from ours import EVERY
from registry import DAMPING, Cell, cannot, cell
from torch import Tensor, nn
from workloads import Workload, gradient

# asdfghjkl, which imports as asdl


def asdl_fisher(kind: str, shape: str) -> Callable[[Workload], Cell]:
    asdl = importlib.import_module("asdl")

    def prepare(w: Workload) -> Cell:
        config = asdl.FisherConfig(
            fisher_type=getattr(asdl, kind), fisher_shapes=[getattr(asdl, shape)], loss_type=asdl.LOSS_CROSS_ENTROPY,
            data_size=w.count,
        )  # fmt: skip
        maker = asdl.get_fisher_maker(w.model, config)

        def run() -> None:
            dummy = maker.setup_model_call(w.model, w.x)
            maker.setup_loss_call(nn.functional.cross_entropy, dummy, w.y)
            maker.forward_and_backward()

        def diagonal(_: None) -> Tensor:
            found: list[Any] = [module.fisher for module in w.model.modules() if hasattr(module, "fisher")]
            return torch.cat([part.flatten() for held in found for part in (held.diag.weight, held.diag.bias)])

        exact = kind == "FISHER_EXACT" and shape == "SHAPE_DIAG"
        return Cell(run, answer=diagonal if exact else None)

    return prepare


NO_LANGUAGE_MODEL = "written for one output per example; not tried on token sequences"


@cell("diagonal_sampled", "asdl", lm=NO_LANGUAGE_MODEL)
def asdl_diagonal_sampled(w: Workload) -> Cell:
    return asdl_fisher("FISHER_MC", "SHAPE_DIAG")(w)


@cell("diagonal_exact", "asdl")
def asdl_diagonal_exact(w: Workload) -> Cell:
    return asdl_fisher("FISHER_EXACT", "SHAPE_DIAG")(w)


@cell("kfac_sampled", "asdl", lm=NO_LANGUAGE_MODEL)
def asdl_kfac_sampled(w: Workload) -> Cell:
    return asdl_fisher("FISHER_MC", "SHAPE_KRON")(w)


@cell("kfac_exact", "asdl")
def asdl_kfac_exact(w: Workload) -> Cell:
    return asdl_fisher("FISHER_EXACT", "SHAPE_KRON")(w)


def asdl_step(w: Workload, every: int) -> Cell:
    """Empirical Fisher, factors of every step, inverses every ``every`` steps."""
    asdl = importlib.import_module("asdl")
    # asdl marks ranges for NVIDIA's profiler even where there is no GPU, and a CPU build raises on that
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: None  # type: ignore[assignment]
    config = asdl.PreconditioningConfig(
        data_size=w.count, damping=DAMPING, preconditioner_upd_interval=every, curvature_upd_interval=1, ema_decay=1.0
    )
    maker = asdl.KfacGradientMaker(w.model, config)

    def run() -> None:
        for _ in range(every):
            w.model.zero_grad(set_to_none=True)
            dummy = maker.setup_model_call(w.model, w.x)
            maker.setup_loss_call(nn.functional.cross_entropy, dummy, w.y)
            maker.forward_and_backward()

    return Cell(run, every)


@cell("kfac_step", "asdl", lm=NO_LANGUAGE_MODEL)
def asdl_kfac_step(w: Workload) -> Cell:
    return asdl_step(w, 1)


@cell("kfac_step_10", "asdl", lm=NO_LANGUAGE_MODEL)
def asdl_kfac_step_10(w: Workload) -> Cell:
    return asdl_step(w, EVERY)


# nngeometry


class One(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The batch as a data set."""

    def __init__(self, w: Workload) -> None:
        self.x, self.y = w.x, w.y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.x, self.y


def loader(w: Workload) -> Any:
    """One batch; already collated, so that the loader costs nothing."""
    return torch.utils.data.DataLoader(One(w), batch_size=w.count, collate_fn=lambda batch: batch)


def nngeometry_matrix(w: Workload, representation: str, sampled: bool = False) -> Any:
    metrics, objects = importlib.import_module("nngeometry.metrics"), importlib.import_module("nngeometry.object")
    make = metrics.FIM_MonteCarlo if sampled else metrics.FIM
    return make(w.model, loader(w), getattr(objects, representation), variant="classif_logits")


NO_INTEGERS = "sets requires_grad on the input, and token numbers are integers"


def nngeometry_diagonal(matrix: Any) -> Tensor:
    return matrix.get_diag()


@cell("diagonal_sampled", "nngeometry", lm=NO_INTEGERS)
def nngeometry_diagonal_sampled(w: Workload) -> Cell:
    return Cell(lambda: nngeometry_matrix(w, "PMatDiag", sampled=True))


@cell("diagonal_exact", "nngeometry")
def nngeometry_diagonal_exact(w: Workload) -> Cell:
    return Cell(lambda: nngeometry_matrix(w, "PMatDiag"), answer=nngeometry_diagonal)


@cell("kfac_sampled", "nngeometry", lm=NO_INTEGERS)
def nngeometry_kfac_sampled(w: Workload) -> Cell:
    return Cell(lambda: nngeometry_matrix(w, "PMatKFAC", sampled=True))


@cell("kfac_exact", "nngeometry")
def nngeometry_kfac_exact(w: Workload) -> Cell:
    return Cell(lambda: nngeometry_matrix(w, "PMatKFAC"))


@cell("trace", "nngeometry", lm=NO_INTEGERS)
def nngeometry_trace(w: Workload) -> Cell:
    """Exact."""
    return Cell(lambda: float(nngeometry_matrix(w, "PMatImplicit").trace()))


cannot("spectrum", "nngeometry", "no public route to the Gram matrix of the Fisher information", "mlp", "cnn")


# Kronfluence


@cell("kfac_sampled", "kronfluence")
def kronfluence_factors(w: Workload) -> Cell:
    """Covariances of linear and convolutional layers, with labels drawn from the model."""
    package, task = importlib.import_module("kronfluence.analyzer"), importlib.import_module("kronfluence.task")
    arguments = importlib.import_module("kronfluence.arguments").FactorArguments(use_empirical_fisher=False)
    covariance = importlib.import_module("kronfluence.factor.covariance")
    state = importlib.import_module("kronfluence.utils.state").State(cpu=w.x.device.type == "cpu")

    class Classification(task.Task):  # type: ignore[name-defined]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            z = model(batch[0]).flatten(0, -2)
            y = torch.distributions.Categorical(logits=z.detach()).sample() if sample else batch[1].flatten()
            return nn.functional.cross_entropy(z, y, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    chosen = Classification()
    model = package.prepare_model(w.model, chosen)

    def run() -> Any:
        return covariance.fit_covariance_matrices_with_loader(
            model=model, state=state, task=chosen, loader=loader(w), factor_args=arguments, disable_tqdm=True
        )

    return Cell(run)


# SINGD


cannot("kfac_step_10", "singd", "cannot take factors every step and inverses every 10: see the row of both every 10")


@cell("kfac_step", "singd")
def singd_step(w: Workload) -> Cell:
    """IKFAC: inverse-free, dense structures, every step."""
    return singd_steps(w, 1)


@cell("kfac_step_spaced", "singd")
def singd_step_spaced(w: Workload) -> Cell:
    """T spaces its factors as well as its inverses."""
    return singd_steps(w, EVERY)


def singd_steps(w: Workload, every: int) -> Cell:
    optimizer_class = importlib.import_module("singd.optim.optimizer").SINGD
    optimizer = optimizer_class(
        w.model, lr=1e-6, damping=DAMPING, T=every, kfac_like=True, loss_average="batch", warn_unsupported=False
    )

    def run() -> None:
        for _ in range(every):
            gradient(w)
            optimizer.step()

    return Cell(run, every)
