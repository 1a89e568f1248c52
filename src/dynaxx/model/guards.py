"""The user's model is looked at, never changed.

What a call needs set differently is set inside a context and put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from dynaxx.errors import InputError


@contextlib.contextmanager
def untouched(model: nn.Module, selected: Iterable[nn.Parameter], twice: bool = False) -> Iterator[None]:
    """Only ``selected`` require grad inside; flags, buffers, random state, grad mode and backends are restored at the
    end.

    Args:
        twice: the caller differentiates twice, so fused attention (which has no second derivative) is replaced by its
            plain form.
    """
    chosen = {id(parameter) for parameter in selected}
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer._version, buffer.detach().clone()) for buffer in model.buffers()]
    cuda = sorted({p.device.index for p, _ in flags if p.device.type == "cuda"})
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if twice:
            stack.enter_context(twice_differentiable())
        try:
            for parameter, flag in flags:
                if flag != (id(parameter) in chosen):
                    parameter.requires_grad_(id(parameter) in chosen)
            yield
        finally:
            for parameter, flag in flags:
                if parameter.requires_grad != flag:
                    parameter.requires_grad_(flag)
            with torch.no_grad():
                for buffer, version, value in buffers:
                    if buffer._version != version:
                        buffer.copy_(value)


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Fused operations without a (right) second derivative are replaced by their plain forms inside."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _SoundSecondDerivatives():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _SoundSecondDerivatives(TorchFunctionMode):
    """Replaces torch._weight_norm by its definition.

    The fused form's second derivative is wrong (torch 2.13: a Hessian that is not symmetric).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._weight_norm:
            v, g, dim = (*args, 0)[:3]
            return v * (g / torch.norm_except_dim(v, 2, dim))
        return func(*args, **(kwargs or {}))


def require_eval(model: nn.Module) -> None:
    """Refuse modules that make an example's output random or dependent on its batch.

    Raises:
        InputError: naming the modules and the remedy.
    """
    random, coupled = [], []
    for name, module in model.named_modules():
        label = f"{name or 'model'} ({type(module).__name__})"
        norm = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm))
        if norm and not isinstance(module, nn.modules.instancenorm._InstanceNorm):
            if module.training:
                coupled.append(label)
            elif not module.track_running_stats:
                raise InputError(
                    f"{label} has track_running_stats=False and so uses batch statistics in evaluation mode too: "
                    f"an example's output depends on its batch. Give it running statistics, or another normalisation"
                )
        dropout = (
            getattr(module, "dropout", 0.0)
            if isinstance(module, (nn.RNNBase, nn.MultiheadAttention))
            else getattr(module, "p", 0.0)
        )
        is_dropout = isinstance(module, (nn.modules.dropout._DropoutNd, nn.RNNBase, nn.MultiheadAttention))
        if module.training and is_dropout and isinstance(dropout, (int, float)) and dropout > 0:
            random.append(label)
    if coupled:
        raise InputError(
            f"BatchNorm in training mode: {_some(coupled)}. Each example's output then depends on the whole batch and "
            f"has no Fisher "
            f"of its own; call model.eval() first"
        )
    if random:
        raise InputError(f"dropout in training mode: {_some(random)}. The output is random; call model.eval() first")


def _some(labels: list[str]) -> str:
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
