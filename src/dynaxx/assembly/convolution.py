"""Convolutions whose reverse pass costs what it should when it is differentiated.

J v is the derivative of g(u) = J^T u with respect to u. For a convolution that takes two convolutions, one of the
input with v's weight and one of v's input with the weight. torch's double backward also makes the derivatives with
respect to weight and input, which nobody asked for here, at the price of two more (torch 2.13: its output mask does
not save the work). A Hessian does ask for them; torch then makes the weight's as a forward convolution whose kernel
is the whole map, where the gradient that every training takes is faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SPACE = {functional.conv1d: 1, functional.conv2d: 2, functional.conv3d: 3}


class LeanConvolutions(TorchFunctionMode):
    """Convolutions called inside are replaced by ones of the same value and first derivative.

    Args:
        linear: the graph will be differentiated in the cotangent and in nothing else the second time; other
            derivatives of the reverse pass are then left out, and so would be missing.
    """

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.linear = linear

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        space = _SPACE.get(func)
        if space is not None and not torch.is_autocast_enabled(args[0].device.type if args else "cpu"):
            x, weight, bias, *sizes = _arguments(space, *args, **(kwargs or {}))
            if x.dim() == space + 2 and not isinstance(sizes[1], str):
                return _Forward.apply(x, weight, bias, self.linear, *sizes)
        return func(*args, **(kwargs or {}))


def _arguments(
    space: int, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> tuple[Any, ...]:  # fmt: skip
    """Of functional.conv, with one size per axis; a padding in words as it is."""
    stride, dilation = ([v] * space if isinstance(v, int) else list(v) for v in (stride, dilation))
    if not isinstance(padding, str):
        padding = [padding] * space if isinstance(padding, int) else list(padding)
    return input, weight, bias, stride, padding, dilation, groups


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: tuple[Any, ...]) -> Tensor:
    stride, padding, dilation, groups = sizes
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, linear: bool, *sizes: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.linear, ctx.sizes = linear, sizes
        return _convolve(x, weight, bias, sizes)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _Reverse.apply(g, *ctx.saved_tensors, ctx.needs_input_grad[:3], ctx.linear, *ctx.sizes)
        return *gradients, None, *(None for _ in ctx.sizes)


class _Reverse(torch.autograd.Function):
    """g -> its gradients in (x, weight, bias), linear in g, x and weight each."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, ...], linear: bool, *sizes: Any
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g if not linear else None, x, weight)
        ctx.sizes, ctx.shape = sizes, g.shape
        ctx.set_materialize_grads(False)
        return _gradients(g, x, weight, wanted, sizes)

    @staticmethod
    def backward(ctx: Any, *v: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        vx, vweight, vbias = v
        total: Tensor | None = None
        if vweight is not None:
            total = _convolve(x, vweight, vbias, ctx.sizes)
        elif vbias is not None:
            total = vbias.view(-1, *[1] * (x.dim() - 2)).expand(ctx.shape)
        if vx is not None:
            inside = _convolve(vx, weight, None, ctx.sizes)
            total = inside if total is None else inside.add_(total)
        of_x = of_weight = None
        if g is not None and vweight is not None and ctx.needs_input_grad[1]:
            of_x = _gradients(g, x, vweight, (True, False, False), ctx.sizes)[0]
        if g is not None and vx is not None and ctx.needs_input_grad[2]:
            of_weight = _gradients(g, vx, weight, (False, True, False), ctx.sizes)[1]
        return total, of_x, of_weight, None, None, *(None for _ in ctx.sizes)


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, ...], sizes: tuple[Any, ...]
) -> tuple[Tensor | None, ...]:
    stride, padding, dilation, groups = sizes
    none = [0] * len(stride)
    return tuple(
        torch.ops.aten.convolution_backward(
            g, x, weight, [len(weight)], stride, padding, dilation, False, none, groups, wanted
        )
    )
