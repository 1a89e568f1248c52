"""Taking channels out of layers, in place: smaller weights, and attributes that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.compress.structured.channels import HEADS, WIDTHS, Group, is_depthwise
from dynaxx.errors import InputError

Kept = dict[str, dict[str, Tensor]]  # module -> side -> indices of the channels that stay
Attributes = dict[str, dict[str, int]]  # module -> attribute -> value


def indices(groups: list[Group], masks: Mapping[str, Tensor]) -> Kept:
    """Channels that stay, by module and side, where the units of ``masks`` (group -> boolean) stay."""
    found: dict[str, dict[str, Tensor]] = {}
    for group in groups:
        mask = masks[group.name].cpu()
        if bool(mask.all()):
            continue
        for member in group.members:
            stays = (member.units < 0) | mask[member.units]
            sides = found.setdefault(member.module, {})
            # several groups may meet in one layer, each with channels of its own
            sides[member.side] = sides[member.side] & stays if member.side in sides else stays
    return {name: {side: m.nonzero()[:, 0] for side, m in sides.items()} for name, sides in found.items()}


def heads_left(model: nn.Module, groups: list[Group], masks: Mapping[str, Tensor]) -> Attributes:
    """What attention modules have to know about their number of heads."""
    found: Attributes = {}
    for group in groups:
        left = int(masks[group.name].sum())
        if group.attention is None or left == group.units:
            continue
        module, width = model.get_submodule(group.attention), (group.members[0].units >= 0).sum().item()
        values = {name: left for name in HEADS if getattr(module, name, None) == group.units}
        values |= {name: left * int(width) // group.units for name in WIDTHS if getattr(module, name, None) == width}
        found[group.attention] = values
    return found


def cut(model: nn.Module, kept: Kept, attributes: Attributes) -> nn.Module:
    """Keep only these channels, in place.

    Raises:
        InputError: a module is not there, is of another kind, or has fewer channels than an index says.
    """
    modules = dict(model.named_modules())
    for name, sides in kept.items():
        module: Any = modules.get(name)
        if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.PReLU)):
            raise InputError(f"the model has no prunable layer {name!r}; give the model that the result was made from")
        try:
            _cut(module, sides)
        except IndexError as error:
            raise InputError(f"{name!r} has fewer channels than the result expects: {error}") from error
    for name, values in attributes.items():
        module = modules.get(name)
        for key, value in values.items():
            if key not in HEADS + WIDTHS or not isinstance(getattr(module, key, None), int):
                raise InputError(f"{name!r} has no number of heads {key!r}; give the model that the result is of")
            setattr(module, key, int(value))
    return model


def _cut(module: Any, sides: Mapping[str, Tensor]) -> None:
    for side, index in sides.items():
        if side == "in":
            _select(module, "weight", index, 1)
        else:
            for name in ("weight", "bias", "running_mean", "running_var"):
                _select(module, name, index, 0)
        if isinstance(module, nn.Linear):
            setattr(module, f"{side}_features", len(index))
        elif isinstance(module, nn.modules.conv._ConvNd):
            if is_depthwise(module):
                module.groups = module.in_channels = len(index)
            setattr(module, f"{side}_channels", len(index))
        elif isinstance(module, nn.PReLU):
            module.num_parameters = len(index)
        else:
            module.num_features = len(index)


def _select(module: nn.Module, name: str, index: Tensor, axis: int) -> None:
    value = getattr(module, name, None)
    if value is None:
        return
    if len(index) and int(index.max()) >= value.shape[axis]:
        raise IndexError(f"{name} has shape {tuple(value.shape)}, index {int(index.max())} is asked for on axis {axis}")
    part = value.detach().index_select(axis, index.to(value.device)).clone()
    setattr(module, name, nn.Parameter(part, value.requires_grad) if isinstance(value, nn.Parameter) else part)


def silence(model: nn.Module, groups: list[Group], masks: Mapping[str, Tensor]) -> nn.Module:
    """Zero the weights that read dropped units, in place: the same function as the cut model's, at full size."""
    with torch.no_grad():
        for group in groups:
            for member in group.readers:
                weight: Any = model.get_submodule(member.module).weight
                mask = masks[group.name].cpu()
                stays = (member.units < 0) | mask[member.units]
                weight[:, ~stays.to(weight.device)] = 0
    return model
