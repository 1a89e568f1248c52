"""How sharp a loss an optimizer can stand: the curvature at which its step on a quadratic stops shrinking.

    gradient descent 2 / eta        heavy ball (2 + 2 beta) / eta        Nesterov (2 + 2 beta) / (eta (1 + 2 beta))
    Adam, for the curvature P^-1 H with P = sqrt(v) + eps:   (2 + 2 beta_1) / ((1 - beta_1) eta),  38 / eta at 0.9

These are full-batch results. With mini-batches a training settles below them, so a ratio under 1 is no guarantee.

Source: Cohen et al. 2021 (gradient descent), Cohen et al. 2022 (adaptive methods).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_adaptive(optimizer: Any) -> bool:
    """Whether the optimizer divides by the root of a second moment, as Adam does."""
    return "betas" in optimizer.defaults


def limit(group: dict[str, Any]) -> float:
    """The largest stable curvature of one parameter group, preconditioned where the optimizer is.

    >>> [round(limit({"lr": 0.1, **more})) for more in ({}, {"momentum": 0.9}, {"betas": (0.9, 0.999)})]
    [20, 38, 380]
    """
    rate = float(group["lr"])
    if rate <= 0:
        return float("inf")
    if "betas" in group:
        beta = float(group["betas"][0])
        return (2 + 2 * beta) / ((1 - beta) * rate)
    beta = float(group.get("momentum", 0.0))
    if group.get("nesterov"):
        return (2 + 2 * beta) / (rate * (1 + 2 * beta))
    return (2 + 2 * beta) / rate


def least_limit(optimizer: Any) -> float:
    """That of the group that stands the least."""
    return min(limit(group) for group in optimizer.param_groups)


def preconditioner(optimizer: Any, model: nn.Module) -> dict[str, Tensor] | None:
    """P = sqrt(v / (1 - beta_2^t)) + eps by name, for an optimizer of Adam's kind that has stepped; else None."""
    if not is_adaptive(optimizer):
        return None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    out = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if id(parameter) not in names or "exp_avg_sq" not in state:
                continue
            steps = float(state["step"])
            corrected = state["exp_avg_sq"].detach() / (1 - group["betas"][1] ** steps)
            out[names[id(parameter)]] = corrected.sqrt() + group["eps"]
    return out or None


class Steps:
    """Counts the steps that optimizers really take, by their own hooks.

    Backward calls, accumulated gradients among them, do not count, nor do steps that a GradScaler skips. Fused
    optimizers are called even then and told so by ``found_inf``, a tensor on the device: it is added up there and read
    only when the count is asked for exactly.

    Args:
        done: steps already behind, for a training that goes on.
    """

    def __init__(self, done: int = 0) -> None:
        self.calls = done
        self._skipped: Tensor | None = None

    def add(self, optimizer: Any = None) -> None:
        """One step was taken, or skipped by a fused optimizer."""
        self.calls += 1
        found = getattr(optimizer, "found_inf", None)
        if isinstance(found, Tensor):
            skipped = (found.detach() > 0).to(torch.int64).reshape(())
            self._skipped = skipped if self._skipped is None else self._skipped + skipped

    @property
    def done(self) -> int:
        """Steps taken; waits for the device where a fused optimizer works with a GradScaler."""
        if self._skipped is not None:
            self.calls -= int(self._skipped)
            self._skipped = None
        return self.calls
