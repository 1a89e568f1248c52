"""The training loss of every step, read without waiting for the device at every step."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KEPT = 10_000  # losses that stay in memory
LATE = 50  # losses that may wait on a device


class Losses:
    """Losses by step; those on a device wait there until some have gathered or somebody asks.

    Args:
        kept: how many stay.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.values: deque[tuple[int, float]] = deque(maxlen=kept)
        self._waiting: list[tuple[int, Tensor, Any]] = []
        self._sum, self._count = 0.0, 0

    def add(self, step: int, loss: Any, note: Any = None) -> list[tuple[int, float, Any]]:
        """Take one loss in; returns (step, loss, note) of those that are known now."""
        if not isinstance(loss, Tensor):
            return self._known([(step, float(loss), note)])
        value = loss.detach()
        if value.numel() != 1:
            value = value.mean()
        if value.device.type == "cpu":
            return self.read() + self._known([(step, float(value), note)])
        # a copy, because a captured graph writes its next loss into the same place
        self._waiting.append((step, value.reshape(()).to(torch.float32, copy=True), note))
        return self.read() if len(self._waiting) >= LATE else []

    def read(self) -> list[tuple[int, float, Any]]:
        """Those that waited; one wait for the device."""
        if not self._waiting:
            return []
        waiting, self._waiting = self._waiting, []
        numbers = torch.stack([value for _, value, _ in waiting]).tolist()
        return self._known([(step, number, note) for (step, _, note), number in zip(waiting, numbers, strict=True)])

    def mean(self) -> float | None:
        """Of the losses since the last call; None if there were none."""
        mean = self._sum / self._count if self._count else None
        self._sum, self._count = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """What ``mean`` goes by; losses that wait on a device are read before."""
        return {"sum": self._sum, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it."""
        self._sum, self._count = float(state.get("sum", 0.0)), int(state.get("count", 0))

    def _known(self, found: list[tuple[int, float, Any]]) -> list[tuple[int, float, Any]]:
        for step, value, _ in found:
            self.values.append((step, value))
            self._sum += value
            self._count += 1
        return found
