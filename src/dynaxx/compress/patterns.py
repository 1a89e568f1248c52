"""Patterns that hardware is fast on: the n best of every m inputs, and blocks that go as a whole."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynaxx.errors import InputError


@dataclass(frozen=True)
class Pattern:
    """Blocks of ``rows`` outputs by ``columns`` inputs; for "n:m" one output by m inputs, of which ``of`` = n stay.

    A weight (O, I, ...) is taken as a matrix of outputs by inputs at each position of a kernel.
    """

    rows: int
    columns: int
    of: int = 0

    @property
    def text(self) -> str:
        """As it was given."""
        return f"{self.of}:{self.columns}" if self.of else f"{self.rows}x{self.columns}"

    @property
    def sparsity(self) -> float | None:
        """Of the tensors it fits, for "n:m"."""
        return 1 - self.of / self.columns if self.of else None

    def fits(self, weight: Tensor) -> bool:
        """Whether outputs and inputs are divided evenly."""
        return weight.dim() >= 2 and weight.shape[0] % self.rows == 0 and weight.shape[1] % self.columns == 0

    def best(self, scores: Tensor, ties: Tensor) -> Tensor:
        """Mask of the n best of every m inputs, by score, then tie, then position."""
        groups, second = grouped(scores, self), grouped(ties, self)
        order = torch.argsort(second, dim=-1, stable=True)
        order = order.gather(-1, torch.argsort(groups.gather(-1, order), dim=-1, stable=True))
        kept = torch.zeros_like(groups, dtype=torch.bool)
        kept.scatter_(-1, order[..., -self.of :], torch.ones_like(kept))
        return _whole(kept, scores, self)


def parse(given: str | tuple[int, int] | Pattern | None) -> Pattern | None:
    """A pattern from "n:m", or from (rows, columns) or "rowsxcolumns".

    Raises:
        InputError: it is none of them.

    >>> parse("2:4"), parse((4, 1)).text, parse("4x1") == parse((4, 1))
    (Pattern(rows=1, columns=4, of=2), '4x1', True)
    """
    if given is None or isinstance(given, Pattern):
        return given
    if isinstance(given, str) and (found := re.fullmatch(r"(\d+):(\d+)", given)):
        n, m = int(found[1]), int(found[2])
        if 0 < n < m:
            return Pattern(1, m, n)
    if isinstance(given, str) and (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", given)):
        return Pattern(int(found[1]), int(found[2]))
    whole = isinstance(given, (tuple, list)) and len(given) == 2
    if whole and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in given):
        return Pattern(int(given[0]), int(given[1]))
    raise InputError(
        f"pattern={given!r} is not known; give 'n:m' with 0 < n < m such as '2:4', or a block (outputs, inputs) such "
        f"as (4, 1) or '4x1'"
    )


def agreed(sparsity: float | None, pattern: Pattern | None, default: float | None = None) -> float:
    """The sparsity to prune to: as given, else what "n:m" implies, else the default.

    Raises:
        InputError: nothing says it, or "n:m" implies another one.

    >>> agreed(None, parse("1:4"), 0.8), agreed(None, parse("4x1"), 0.8)
    (0.75, 0.8)
    """
    implied = None if pattern is None else pattern.sparsity
    if sparsity is None:
        sparsity = default if implied is None else implied
    if sparsity is None:
        raise InputError("sparsity is missing; give the share of weights to drop, such as sparsity=0.8")
    if pattern is not None and implied is not None and abs(implied - sparsity) > 1e-9:
        raise InputError(
            f"pattern={pattern.text!r} drops {implied:.3g} of the weights, not sparsity={sparsity}; leave it out"
        )
    return sparsity


def grouped(weight: Tensor, pattern: Pattern) -> Tensor:
    """(O/r, I/c, kernel, r c): the last axis holds a block."""
    outputs, inputs = weight.shape[:2]
    split = weight.reshape(outputs // pattern.rows, pattern.rows, inputs // pattern.columns, pattern.columns, -1)
    return split.permute(0, 2, 4, 1, 3).flatten(3)


def spread(kept: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
    """A mask of blocks (O/r, I/c, kernel) as a mask of the weight."""
    return _whole(kept[..., None].expand(*kept.shape, pattern.rows * pattern.columns), weight, pattern)


def _whole(kept: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
    split = kept.unflatten(3, (pattern.rows, pattern.columns)).permute(0, 3, 1, 4, 2)
    return split.reshape(weight.shape).contiguous()


def to_semi_structured(model: nn.Module) -> list[str]:
    """Store every Linear weight that is 2:4 sparse in the compressed form that sparse tensor cores multiply by.

    Args:
        model: pruned with pattern="2:4" and ``apply(mode="zero")``, on a CUDA device, in half precision. Changed in
            place; for inference only.

    Returns:
        Names of the weights that were converted.

    Raises:
        InputError: the device has no sparse tensor cores, or no weight is 2:4 sparse; nothing is changed then.
    """
    fitting = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.shape[1] % 4 == 0 and _two_of_four(module.weight)
    ]
    if not fitting:
        raise InputError("no Linear weight of this model is 2:4 sparse; prune with pattern='2:4' and apply the result")
    device = fitting[0][1].weight.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise InputError(
            f"2:4 sparse kernels need a CUDA device of compute capability 8.0 or higher; the model is on {device}. The "
            f"masks hold on any device: keep the model dense here, and convert it where it will run"
        )
    for _, module in fitting:
        module.weight = nn.Parameter(
            torch.sparse.to_sparse_semi_structured(module.weight.detach()), requires_grad=False
        )
    return [f"{name}.weight" if name else "weight" for name, _ in fitting]


def _two_of_four(weight: Tensor) -> bool:
    return bool(((weight.detach().reshape(-1, 4) != 0).sum(1) <= 2).all())
