"""A layer in coordinates where some of its inputs and outputs can be done without: in, small core, out.

    W  ->  Q_G' W*' Q_A'^T,      W* = Q_G^T W Q_A

with Q' the kept columns of orthogonal bases. For a convolution the bases turn channels, so Q_A'^T and Q_G' are 1 x 1
and the core keeps the kernel, the stride and the padding, which commute with a turn of channels.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


class Bottleneck(nn.Sequential):
    """Two or three layers in the place of one: ``enter`` (1 x 1), ``core``, ``leave`` (1 x 1).

    The last of them has the bias. Weights hold nothing until ``turned`` or ``load_state_dict`` fills them.

    Args:
        layer: nn.Linear or nn.Conv2d with groups=1, whose sizes, bias, dtype and device are taken over.
        inner: directions of the input that are kept; None where the core reads the input itself.
        outer: directions of the output that are kept; None where the core writes the output itself.

    Source: Wang et al., EigenDamage, ICML 2019, section 4.

    >>> Bottleneck(nn.Linear(8, 6), 3, None)
    Bottleneck(
      (enter): Linear(in_features=8, out_features=3, bias=False)
      (core): Linear(in_features=3, out_features=6, bias=True)
    )
    """

    def __init__(self, layer: nn.Module, inner: int | None, outer: int | None) -> None:
        inputs, outputs, _ = sides(layer)
        first, last = inputs if inner is None else inner, outputs if outer is None else outer
        held: Any = layer
        bias = held.bias is not None
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if inner is not None:
            parts["enter"] = _like(layer, inputs, inner, False, core=False)
        parts["core"] = _like(layer, first, last, bias and outer is None, core=True)
        if outer is not None:
            parts["leave"] = _like(layer, last, outputs, bias, core=False)
        super().__init__(parts)


def turned(layer: nn.Module, inner: Tensor | None, outer: Tensor | None) -> Bottleneck:
    """The bottleneck of a layer's own weight.

    Args:
        inner: (I, r) orthonormal columns Q_A', or None.
        outer: (O, r) orthonormal columns Q_G', or None.

    With square bases it is the layer itself but for rounding.

    >>> layer, x = nn.Conv2d(3, 4, 3, stride=2, padding=1).double(), torch.randn(2, 3, 8, 8).double()
    >>> basis = torch.linalg.qr(torch.randn(4, 4).double()).Q
    >>> torch.allclose(turned(layer, None, basis)(x), layer(x))
    True
    """
    held: Any = layer
    made = Bottleneck(layer, *(None if basis is None else basis.shape[1] for basis in (inner, outer)))
    core = held.weight.detach().double().reshape(*held.weight.shape[:2], -1)  # (O, I, taps)
    parts = {}
    if inner is not None:
        inner = inner.to(core)
        core, parts["enter"] = torch.einsum("oit,ir->ort", core, inner), inner.T
    if outer is not None:
        outer = outer.to(core)
        core, parts["leave"] = torch.einsum("oit,or->rit", core, outer), outer
    parts["core"] = core
    with torch.no_grad():
        for name, value in parts.items():
            weight: Any = made.get_submodule(name).weight
            weight.copy_(value.reshape(weight.shape))
        if held.bias is not None:
            last: Any = made[-1]
            last.bias.copy_(held.bias)
    for parameter in made.parameters():
        parameter.requires_grad_(held.weight.requires_grad)
    return made.train(layer.training)


def sides(layer: Any) -> tuple[int, int, int]:
    """Inputs, outputs, and weights between one and the other (the kernel's entries)."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, 1
    return layer.in_channels, layer.out_channels, layer.weight[0, 0].numel()


def _like(layer: Any, inputs: int, outputs: int, bias: bool, core: bool) -> nn.Module:
    options: dict[str, Any] = {"bias": bias, "device": layer.weight.device, "dtype": layer.weight.dtype}
    # no initial weights, which would draw random numbers
    if isinstance(layer, nn.Linear):
        return skip_init(nn.Linear, inputs, outputs, **options)
    geometry = {name: getattr(layer, name) for name in GEOMETRY} if core else {"kernel_size": 1}
    return skip_init(nn.Conv2d, inputs, outputs, **geometry, **options)
