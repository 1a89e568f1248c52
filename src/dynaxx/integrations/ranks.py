"""One decision for all processes of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from dynaxx.monitor.monitor import Monitor


def should_stop(monitor: Monitor) -> bool:
    """``monitor.should_stop`` of the first rank, on every rank of the process group.

    Only the first rank measures, so only it knows. Every rank must call this equally often, for instance once after
    each step.

    Cost: nothing in one process, or where no signal has an action, so that nothing could have asked for a stop; else
    one broadcast of a number.

    >>> from torch import nn
    >>> from dynaxx.monitor import Monitor
    >>> monitor = Monitor(nn.Linear(2, 3), torch.ones(4, 2))
    >>> should_stop(monitor)
    False
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return monitor.should_stop
    if not any(signal.actions for signal in monitor.signals):
        return False
    device = next(monitor.model.parameters()).device
    flag = torch.tensor(int(monitor.should_stop), device=device)
    dist.broadcast(flag, 0)
    return bool(flag)
