"""The point that weights are displaced from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.errors import InputError
from dynaxx.layout import Layout
from dynaxx.model.selection import unwrap


def centre_vector(centre: Any, init: Any, layout: Layout) -> Tensor:
    """The centre as a vector (p,) in float64.

    Args:
        centre: "origin", "init", a state dict, a model, or a tensor (p,).
        init: for "init": the initial weights as a state dict or a model.

    Raises:
        InputError: another centre, "init" without init, init without "init", or weights that do not fit.
    """
    if init is not None and not (isinstance(centre, str) and centre == "init"):
        raise InputError(f"init= belongs to centre='init'; got centre={_named(centre)}")
    if isinstance(centre, str):
        if centre == "origin":
            return torch.zeros(layout.size, dtype=torch.float64, device=layout.device)
        if centre != "init":
            raise InputError(
                f"centre={centre!r} is not known; choose 'origin', 'init' (with init=), or give a state dict or a "
                f"tensor of shape ({layout.size},)"
            )
        if init is None:
            raise InputError(
                "centre='init' needs the initial weights: keep copy.deepcopy(model.state_dict()) before training and "
                "give it as init=, or use centre='origin'"
            )
        centre = init
    if isinstance(centre, nn.Module):
        centre = dict(unwrap(centre).named_parameters())
    if isinstance(centre, Tensor):
        if centre.shape != (layout.size,):
            raise InputError(f"centre has shape {tuple(centre.shape)}; expected ({layout.size},)")
        vector = centre
    elif isinstance(centre, Mapping):
        missing = [name for name in layout.names if name not in centre]
        if missing:
            raise InputError(
                f"the centre lacks {len(missing)} of {len(layout.names)} parameters, such as {missing[:3]}; it has "
                f"{list(centre)[:3]}. Give the state dict of the same model"
            )
        vector = layout.ravel({name: centre[name].detach().to(layout.device).double() for name in layout.names})
    else:
        raise InputError(f"centre={_named(centre)}; give 'origin', 'init', a state dict, a model or a tensor")
    vector = vector.detach().to(layout.device, torch.float64)
    if not bool(torch.isfinite(vector).all()):
        raise InputError("the centre holds nan or inf; give finite weights")
    return vector


def displaced(weights: Tensor, centre: Tensor) -> Tensor:
    """weights - centre.

    Raises:
        InputError: they are equal.
    """
    displacement = weights - centre
    if not bool(displacement.any()):
        raise InputError("the weights equal the centre, so there is nothing to project; give another centre")
    return displacement


def _named(value: Any) -> str:
    return repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
