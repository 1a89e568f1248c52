"""What the callbacks of all frameworks share: a monitor that is made when the training starts, and can go on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn

from dynaxx.errors import InputError, choose
from dynaxx.integrations import ranks
from dynaxx.monitor.journal import MonitorWarning
from dynaxx.monitor.monitor import Monitor
from dynaxx.monitor.snapshot import Probe


class Companion:
    """A monitor's arguments, before there is a model, and the monitor itself once the training runs.

    Args:
        probe: a Probe, or a batch; see ``dynaxx.Monitor``.
        module: name of the submodule to watch, such as "net"; default the whole model.
        options: keyword arguments of ``dynaxx.Monitor``.

    Raises:
        InputError: an option that the monitor does not have, or a probe that cannot be used.
    """

    def __init__(self, probe: Any, module: str | None, options: Mapping[str, Any]) -> None:
        known = [p.name for p in signature(Monitor).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
        for name in options:
            choose("option", name, known)
        self.options = dict(options)
        likelihood = self.options.pop("likelihood", None)
        if isinstance(probe, Probe) and likelihood is not None:
            raise InputError("likelihood= is for a probe given as a batch; this Probe carries its own")
        self.probe = probe if isinstance(probe, Probe) else Probe("probe", probe, likelihood or "categorical")
        self.module = module
        self.monitor: Monitor | None = None
        self._restored: dict[str, Any] | None = None

    def start(
        self,
        model: nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        *,
        config: Mapping[str, Any] | None = None,
        done: int = 0,
        preset: Callable[..., Any] | None = None,
    ) -> Monitor:
        """Make the monitor and let it look; an earlier one is closed.

        Args:
            model, optimizers: as they will train.
            config: of the run, unless the user gave one.
            done: optimizer steps behind a training that goes on.
            preset: in the place of the user's.

        Raises:
            InputError: as for ``dynaxx.Monitor``; no such submodule; or the training goes on with another probe.
        """
        self.close()
        options = {"config": dict(config or {}), **self.options} | ({} if preset is None else {"preset": preset})
        monitor = Monitor(self._watched(model), self.probe, **options)
        self.monitor = monitor
        if self._restored is not None:
            monitor.load_state_dict(self._restored)
        elif done:
            monitor.load_state_dict({"steps": done, "probe": self.probe.digest, "looks": {}})
            self.warn(f"the training goes on at step {done} without the monitor's state; that is its start now")
        self._restored = None
        for optimizer in optimizers:
            monitor.attach(optimizer)
        return monitor

    def state(self) -> dict[str, Any]:
        """What ``restore`` takes: numbers, text and tensors, so that ``torch.load(weights_only=True)`` reads it."""
        if self.monitor is not None:
            return self.monitor.state_dict()
        return self._restored or {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there at the next start."""
        self._restored = dict(state) or None

    def should_stop(self) -> bool:
        """Whether a signal's action asked for it; the same on every rank."""
        return self.monitor is not None and ranks.should_stop(self.monitor)

    def close(self, status: str = "finished") -> None:
        """Close the monitor, which stays there to be read."""
        if self.monitor is not None:
            self.monitor.close(status)

    def warn(self, text: str) -> None:
        """Say it once, on the first rank, without raising."""
        if self.monitor is None or self.monitor.active:
            with contextlib.suppress(Warning):  # a filter may make it an error, which must not reach a training loop
                warnings.warn(text, MonitorWarning, stacklevel=4)

    def _watched(self, model: nn.Module) -> nn.Module:
        if self.module is None:
            return model
        try:
            return model.get_submodule(self.module)
        except AttributeError as error:
            children = ", ".join(repr(name) for name, _ in model.named_children())
            raise InputError(f"module={self.module!r} is no submodule of the model; it has {children}") from error
