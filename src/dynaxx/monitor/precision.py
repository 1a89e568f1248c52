"""A look is taken in the parameters' own precision, also where the training runs under autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from dynaxx.monitor.snapshot import Probe

PATCHED = "_original_forward"  # where Accelerate keeps the forward that it has wrapped in autocast


@contextlib.contextmanager
def unrounded(model: nn.Module, probe: Probe) -> Iterator[None]:
    """Autocast is off inside: the one around the caller, and the one that Accelerate puts into ``forward``.

    Half precision rounds every product to 8 or 11 bits: F v and H v are then not the products of one symmetric matrix,
    so Lanczos meets no eigenpair to its tolerance and runs to its limit, and the Hessian's distance from F is mostly
    rounding. Where parameters and probe have several floating dtypes, which meet only under autocast, it stays on.

    Args:
        model: what is looked at, without wrappers; its ``forward`` is put back in the end.
        probe: the examples it is called with.
    """
    if len(probe.dtypes.union(p.dtype for p in model.parameters() if p.is_floating_point())) > 1:
        yield
        return
    inner = [module.__dict__ for module in model.modules() if {PATCHED, "forward"} <= module.__dict__.keys()]
    outer = [attributes["forward"] for attributes in inner]
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    try:
        for attributes in inner:
            attributes["forward"] = attributes[PATCHED]
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for attributes, forward in zip(inner, outer, strict=True):
            attributes["forward"] = forward
