"""How many multiply-adds a call makes in products and convolutions: what its time could not be below at full speed.

Products in float64 count twice, since that is what they take. Factorisations, elementwise work and memory are left out,
so a figure is a lower bound of what the chosen algorithm costs, not of the quantity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# operation -> multiply-adds from its arguments and its answer
_COUNTS: dict[Any, Callable[[Any, Any], int]] = {
    _aten.mm: lambda args, out: args[0].numel() * args[1].shape[1],
    _aten.mv: lambda args, out: args[0].numel(),
    _aten.bmm: lambda args, out: args[0].numel() * args[1].shape[2],
    torch.ops.mkldnn._linear_pointwise: lambda args, out: args[0].numel() * len(args[1]),
    _aten.addmm: lambda args, out: args[1].numel() * args[2].shape[1],
    _aten.addmm_: lambda args, out: args[1].numel() * args[2].shape[1],
    _aten.baddbmm: lambda args, out: args[1].numel() * args[2].shape[2],
    _aten.convolution: lambda args, out: out.numel() * args[1][0].numel(),
    # as many for the inputs' gradient as for the weight's
    _aten.convolution_backward: lambda args, out: args[0].numel() * args[2][0].numel() * sum(args[10][:2]),
}


class _Work(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = _COUNTS.get(func.overloadpacket)
        if count is not None:
            first = args[0]
            double = isinstance(first, Tensor) and first.dtype == torch.float64
            self.total += count(args, out) * (2 if double else 1)
        return out


def multiply_adds(function: Callable[[], object]) -> int:
    """Of one call.

    >>> multiply_adds(lambda: torch.ones(2, 3) @ torch.ones(3, 5))
    30
    """
    with _Work() as work:
        function()
    return work.total
