"""Linear maps at the speed of the processor, also in reverse and differentiated twice.

``dynaxx.matmul`` says when torch's own products are slow. A forward pass that is taken inside ``FastLinear`` makes
them, and those of every reverse pass through it, the faster way; numbers may differ in their last digit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dynaxx.matmul import has_faster_products, is_fast, matmul

LEAST = 2**26  # multiply-adds: a function written in Python takes longer to begin than a product alone
LARGE = 2**19  # entries of a weight from which on it pays to watch every call of torch for one reverse pass


class FastLinear(TorchFunctionMode):
    """Calls of ``functional.linear`` inside are replaced by ones of the same value and first derivative, where that is
    faster. What is checkpointed is left alone: it is run again outside, and would not find what it saved.

    Args:
        linear: the graph will be differentiated in the cotangent and in nothing else the second time.
        active: False for a mode that does nothing.

    Attributes:
        leaves: whether the gradients of weights and biases are wanted of the reverse pass. A Python function cannot
            ask autograd for that, and they are a third of the work.
        used: whether anything was replaced.
    """

    def __init__(self, linear: bool = True, active: bool = True) -> None:
        super().__init__()
        self.linear, self.leaves, self.used = linear, True, False
        self.active = active and has_faster_products()

    def __enter__(self) -> FastLinear:
        return super().__enter__() if self.active else self

    def __exit__(self, *raised: Any) -> None:
        if self.active:
            super().__exit__(*raised)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear:
            x, weight, bias = _arguments(*args, **(kwargs or {}))
            if _is_plain(x, weight, bias) and x.shape[:-1].numel() * weight.numel() >= LEAST and is_fast(x, weight):
                self.used = True
                return _Forward.apply(x, weight, bias, self)
        return func(*args, **(kwargs or {}))


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """A matrix and rows, of parameters themselves: what made a computed weight may be wanted of a reverse pass."""
    return (
        weight.dim() == 2
        and x.dim() > 1
        and weight.is_leaf
        and (bias is None or bias.is_leaf)
        and not torch.is_autocast_enabled(x.device.type)
        and not _saves_elsewhere()
    )


def _arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _saves_elsewhere() -> bool:
    """Whether somebody (torch.utils.checkpoint, for one) takes care of what is saved for the reverse pass; true also
    where this torch does not tell."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is None or hooks(False) is not None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mode: FastLinear) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.mode = mode
        out = matmul(_rows(x), weight.T)
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [needed and (i == 0 or ctx.mode.leaves) for i, needed in enumerate(ctx.needs_input_grad[:3])]
        return *_Reverse.apply(g, *ctx.saved_tensors, wanted, ctx.mode.linear), None


class _Reverse(torch.autograd.Function):
    """g -> its gradients in (x, weight, bias), linear in g, x and weight each."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, wanted: list[bool], linear: bool
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g if not linear else None, x, weight)
        ctx.set_materialize_grads(False)
        rows = _rows(g)
        of_x = matmul(rows, weight).view(x.shape) if wanted[0] else None
        return of_x, matmul(rows.T, _rows(x)) if wanted[1] else None, rows.sum(0) if wanted[2] else None

    @staticmethod
    def backward(ctx: Any, *v: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        vx, vweight, vbias = v
        terms = [] if vx is None else [matmul(_rows(vx), weight.T)]
        if vweight is not None:
            terms.append(matmul(_rows(x), vweight.T))
        if vbias is not None:
            terms.append(vbias.expand(x.shape[:-1].numel(), -1))
        total = sum(terms[1:], terms[0]).reshape(*x.shape[:-1], -1) if terms else None
        of_x = of_weight = None
        if g is not None and vweight is not None and ctx.needs_input_grad[1]:
            of_x = matmul(_rows(g), vweight).view(x.shape)
        if g is not None and vx is not None and ctx.needs_input_grad[2]:
            of_weight = matmul(_rows(g).T, _rows(vx))
        return total, of_x, of_weight, None, None
