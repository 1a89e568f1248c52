"""What zeros save where they are not computed with or stored: an account, next to the measured latency."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from dynaxx.compress.measure import flops
from dynaxx.model.data import Batch
from dynaxx.model.network import Predict


def densities(
    model: nn.Module, batch: Batch, masks: Mapping[str, Tensor], predict: Predict | None = None
) -> tuple[float, float]:
    """(FLOPs of an example, the same with each module's scaled by the share of its weights that stay).

    What a kernel that skips every zero would do; dense kernels do the former.
    """
    found = flops(model, batch, predict)
    saved = 0.0
    for name, mask in masks.items():
        owner = name.rpartition(".")[0]
        saved += found.get(owner, 0.0) * (1 - float(mask.double().mean()))
    return found[""], found[""] - saved


def sparse_bytes(model: nn.Module, masks: Mapping[str, Tensor]) -> int:
    """Bytes of the state dict with a bit per masked weight and only the values that stay.

    >>> import torch
    >>> sparse_bytes(nn.Linear(16, 1, bias=False), {"weight": torch.arange(16)[None] < 4})
    18
    """
    total = 0
    for name, value in model.state_dict().items():
        kept = int(masks[name].sum()) if name in masks else value.numel()
        total += kept * value.element_size() + (math.ceil(value.numel() / 8) if name in masks else 0)
    return total
