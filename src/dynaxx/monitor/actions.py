"""What may be done when a signal fires. Nothing is done unless asked for: ``Divergence(actions=[Stop()])``.

An action is called as action(monitor, alarm), in the training's own thread, between two steps; any callable is one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dynaxx.errors import InputError
from dynaxx.monitor.signals.base import Alarm

if TYPE_CHECKING:
    from dynaxx.monitor.monitor import Monitor


class Stop:
    """Sets ``monitor.should_stop``, which the training loop reads; the monitor itself ends nothing."""

    def __call__(self, monitor: Monitor, alarm: Alarm) -> None:
        """Say so."""
        monitor.should_stop = True


class RaiseWeightDecay:
    """Multiplies the weight decay of every parameter group that has one.

    Args:
        factor: above 0; below 1 it lowers.
        most: never above.
    """

    def __init__(self, factor: float = 2.0, most: float = 0.1) -> None:
        if not factor > 0 or not most >= 0:
            raise InputError(f"factor={factor!r}, most={most!r}; give a positive factor and a largest weight decay")
        self.factor, self.most = factor, most

    def __call__(self, monitor: Monitor, alarm: Alarm) -> None:
        """Change the groups in place."""
        for optimizer in monitor.optimizers:
            for group in optimizer.param_groups:
                if group.get("weight_decay"):
                    group["weight_decay"] = min(group["weight_decay"] * self.factor, self.most)


class LowerLearningRate:
    """Brings the learning rate under the edge of stability: for ``EdgeOfStability``, whose statistic is curvature over
    limit.

    The limit goes with 1 / rate, so rate * share / statistic puts the curvature at ``share`` of it. A schedule that
    computes its rate from the initial one will undo this at its next step.

    Args:
        share: of the limit, at most 1.
        least: never below this part of the rate at once.
    """

    def __init__(self, share: float = 0.9, least: float = 0.1) -> None:
        if not (0 < share <= 1 and 0 < least <= 1):
            raise InputError(f"share={share!r}, least={least!r}; give numbers above 0 and up to 1")
        self.share, self.least = share, least

    def __call__(self, monitor: Monitor, alarm: Alarm) -> None:
        """Change the groups in place."""
        factor = max(self.share / alarm.statistic, self.least)
        if factor < 1:
            for optimizer in monitor.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"] * factor


class SaveWeights:
    """Writes the model's weights as ``<folder>/step-<n>.safetensors``, and notes the file in the run.

    Args:
        folder: made if it is not there.
        keep: how many of these files stay; older ones of this action are removed.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        if keep < 1:
            raise InputError(f"keep={keep!r}; keep at least one file")
        self.folder, self.keep = Path(folder), keep
        self.files: list[Path] = []

    def __call__(self, monitor: Monitor, alarm: Alarm) -> None:
        """Write, then rename, so that an interrupted write leaves no broken file."""
        from safetensors.torch import save_model

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{alarm.step}.safetensors"
        half = path.with_suffix(".part")
        save_model(monitor.model, str(half))
        half.replace(path)
        if path not in self.files:
            self.files.append(path)
        while len(self.files) > self.keep:
            self.files.pop(0).unlink(missing_ok=True)
        if monitor.run is not None:
            monitor.run.artifact(f"weights/step-{alarm.step}", path)
            monitor.run.model_version(f"step-{alarm.step}", step=alarm.step, details={"signal": alarm.signal})
