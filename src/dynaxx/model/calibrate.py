"""BatchNorm statistics of a pruned model: its activations have moved, so the old running means are wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dynaxx.errors import InputError
from dynaxx.model.network import Predict
from dynaxx.model.reading import batches, forward, unmoved

BatchNorm = nn.modules.batchnorm._BatchNorm


def calibrate(model: nn.Module, data: Any, *, predict: Predict | None = None) -> int:
    """Re-estimate the running statistics of every BatchNorm from ``data``: the average over batches, weighted by their
    examples.

    One pass without gradients, in which BatchNorm layers alone are in training mode. Momentum and modes are put back.

    Args:
        model: changed in its BatchNorm buffers only.
        data: as for ``dynaxx.fisher``; batches of one example are skipped where there are larger ones.
        predict: as there.

    Returns:
        How many BatchNorm layers were calibrated; 0 costs nothing.

    Raises:
        InputError: no batch has two examples.

    >>> norm = nn.BatchNorm1d(1)
    >>> calibrate(norm, torch.tensor([[0.0], [2.0]])), norm.running_mean.tolist()
    (1, [1.0])
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module.track_running_stats]
    if not norms:
        return 0
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    seen = 0
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
        with torch.no_grad(), unmoved(data):
            for batch in batches(model, data):
                if batch.count < 2:
                    continue
                seen += batch.count
                for norm in norms:
                    norm.momentum = (
                        batch.count / seen
                    )  # makes the running average a cumulative one, weighted by examples
                forward(model, batch, predict)
        if not seen:
            raise InputError("BatchNorm needs batches of two examples or more to be calibrated; raise the batch size")
    except BaseException:
        for buffer, value in kept:
            buffer.copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
    return len(norms)
