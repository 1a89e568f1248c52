"""``dynaxx.hessian``: the true Hessian of a mean loss, matrix-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.assembly.convolution import LeanConvolutions
from dynaxx.errors import InputError, choose
from dynaxx.fisher import module_groups
from dynaxx.model.data import Batch, Data
from dynaxx.model.linear_maps import FastLinear
from dynaxx.model.network import Network, Predict
from dynaxx.model.rehearsal import require_deterministic
from dynaxx.model.selection import Selector
from dynaxx.operators.base import Operator
from dynaxx.operators.block import BlockDiagonal
from dynaxx.operators.dense import Dense
from dynaxx.operators.diagonal import Diagonal

FORMS = ("implicit", "dense", "diagonal", "block")
Loss = Callable[..., Tensor]


@torch.inference_mode(False)  # a caller under inference_mode would get sums that cannot be added to
def hessian(
    model: nn.Module,
    data: Any,
    loss: Loss,
    *,
    form: str = "implicit",
    params: Selector = None,
    predict: Predict | None = None,
) -> Operator:
    """The Hessian of the mean loss, H = (1/N) sum_n d^2 loss_n / dw^2, as an operator with the same verbs as
    ``fisher``.

    H = Gauss-Newton + sum over outputs of residual times curvature of the model, so it is indefinite in general, and
    equals the Fisher information only where the model is linear in its parameters or fits perfectly.

    Args:
        model, data, params, predict: as for ``fisher``.
        loss: loss(output, targets), or loss(output) where the data has no targets. It may return the mean or the sum
            over a batch or one value per example; which one is found out by trying it on a doubled batch, so a loss's
            ``reduction`` changes nothing.
        form: "implicit" (products), or "dense", "diagonal", "block" (all three exact, from one product per parameter).

    Returns:
        An Operator with ``definite=False``. ``eigh(k)`` gives the k largest eigenvalues (not magnitudes).

    Raises:
        InputError: as for ``fisher``; or the loss is not finite, or neither a mean, a sum nor per-example values.

    Cost of a product: a forward pass, a reverse pass with graph (both kept while the data is one batch), and one
        second reverse pass. Double backward,
    not jvp of grad: forward mode through native layer_norm is wrong in torch 2.13 when taken the other way round.

    >>> import torch, dynaxx
    >>> x, y = torch.randn(8, 3).double(), torch.randn(8, 1).double()
    >>> H = dynaxx.hessian(torch.nn.Linear(3, 1, bias=False).double(), (x, y), torch.nn.MSELoss())
    >>> bool(torch.allclose(H.to_dense(), 2 * x.T @ x / 8))
    True
    """
    choose("form", form, FORMS)
    if not callable(loss):
        raise InputError(f"loss is a {type(loss).__name__}; expected a callable loss(output, targets)")
    network = Network(model, None, params, predict)
    stream = Data(data, network.device)
    stream.require_repeatable()
    operator = Hessian(network, stream, loss)
    if form == "implicit":
        return operator
    layout, count = network.layout, operator.count
    if form == "dense":
        return Dense(operator.to_dense(), layout, count, definite=False)
    if form == "diagonal":
        return Diagonal(operator.diagonal(), layout, count, definite=False)
    parts = [Hessian(Network(model, None, names, predict), stream, loss) for names in module_groups(network)]
    return BlockDiagonal([Dense(part.to_dense(), part.layout, count, definite=False) for part in parts], layout, count)


class Hessian(Operator):
    """The Hessian as products: v -> d/dw <grad L, v>."""

    form = "implicit"

    def __init__(self, network: Network, data: Data, loss: Loss) -> None:
        self.network, self.data, self.loss = network, data, loss
        self.parameters = list(network.parameters.values())
        self._versions = network.versions()
        self._kept: tuple[int, tuple[Tensor, ...]] | None = None
        self._ready: Tensor | None = None  # the loss of data that is one batch, with its graph: taken once
        self._sums: bool | None = None
        super().__init__(network.layout, self._count(), definite=False)

    def _count(self) -> int:
        total = 0
        with self.network.guarded(twice=True):
            for batch in self.data:
                if total == 0:
                    require_deterministic(self.network, batch)
                    loss = self._total(batch)
                total += batch.count
        if self.data.single:
            self._ready = loss
        return total

    def _total(self, batch: Batch) -> Tensor:
        """Sum over the batch's examples of the loss."""
        with LeanConvolutions(linear=False), FastLinear(linear=False):
            output = self.network.raw(batch)
        targets = () if batch.targets is None else (batch.targets,)
        try:
            value = self.loss(output, *targets)
        except TypeError as error:
            if targets:
                raise
            raise InputError(
                f"loss(output) failed: {error}. The data has no targets; give batches (x, y) for a loss(output, "
                f"targets)"
            ) from error
        if not isinstance(value, Tensor):
            raise InputError(f"loss returned a {type(value).__name__}; expected a tensor")
        if not torch.isfinite(value).all():
            raise InputError(f"batch {batch.index}: the loss is not finite ({float(value.flatten()[0])})")
        if value.dim() > 0:
            if len(value) != batch.count:
                raise InputError(
                    f"loss returned shape {tuple(value.shape)} for {batch.count} examples; expected a scalar or one "
                    f"value per example"
                )
            return value.sum()
        if self._sums is None:
            self._sums = self._is_sum(output.detach(), targets)
        return value if self._sums else value * batch.count

    def _is_sum(self, output: Tensor, targets: tuple[Tensor, ...]) -> bool:
        """Whether the scalar loss of a batch taken twice is twice the loss (a sum) or the same (a mean)."""
        with torch.no_grad():
            once = float(self.loss(output, *targets))
            if once == 0:  # a perfect fit tells nothing: ask beside it
                output = output + 1
                once = float(self.loss(output, *targets))
            twice = float(self.loss(torch.cat([output, output]), *(torch.cat([t, t]) for t in targets)))
        if abs(twice - once) <= 1e-3 * abs(once):
            return False
        if abs(twice - 2 * once) <= 1e-3 * abs(once):
            return True
        raise InputError(
            f"loss is neither a mean nor a sum over examples: a batch gives {once:.6g}, the same batch twice gives "
            f"{twice:.6g}; "
            f"give a loss with one value per example"
        )

    def _gradients(self) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        if self.network.versions() != self._versions:
            raise InputError("the model's parameters have changed since this Hessian was made; make a new one")
        if self._kept is not None:
            yield self._kept
            return
        for batch in self.data:
            loss, self._ready = self._total(batch) if self._ready is None else self._ready, None
            gradients = torch.autograd.grad(
                loss, self.parameters, create_graph=True, allow_unused=True, materialize_grads=True
            )
            if self.data.single:
                self._kept = (batch.count, gradients)
            yield batch.count, gradients

    def product(self, vectors: Tensor) -> Tensor:
        """H V for V (p, k)."""
        columns = [
            list(self.layout.unravel(v).values()) for v in vectors.T.contiguous()
        ]  # strided ones trip weight_norm's second derivative
        with self.network.guarded(twice=True):
            totals, started = (
                torch.empty(vectors.shape[1], self.layout.size, dtype=self.dtype, device=self.device),
                False,
            )
            for _, gradients in self._gradients():
                live = [i for i, g in enumerate(gradients) if g.requires_grad]
                if not live:  # a loss linear in the parameters
                    continue
                for row, v in zip(totals, columns, strict=True):
                    second = torch.autograd.grad(
                        [gradients[i] for i in live], self.parameters, [v[i] for i in live],
                        retain_graph=True, allow_unused=True, materialize_grads=True,
                    )  # fmt: skip
                    self.layout.add_into(row, second, started)
                started = True
        return (totals if started else totals.zero_()).div_(self.count).T
