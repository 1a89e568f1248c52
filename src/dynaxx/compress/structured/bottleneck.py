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
        layer: nn.Linear or nn.Conv2d with groups=1, or a bottleneck of one, whose sizes, bias, dtype and device are
            taken over.
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
        like, bias = core_of(layer), _last(layer).bias is not None
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if inner is not None:
            parts["enter"] = _like(like, inputs, inner, False, core=False)
        parts["core"] = _like(like, first, last, bias and outer is None, core=True)
        if outer is not None:
            parts["leave"] = _like(like, last, outputs, bias, core=False)
        super().__init__(parts)

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """(directions of the input, of the output) that are kept, None where there is no such part."""
        inner, outer, _ = sides(self.core)
        return inner if hasattr(self, "enter") else None, outer if hasattr(self, "leave") else None


def turned(layer: nn.Module, inner: Tensor | None, outer: Tensor | None) -> Bottleneck:
    """The bottleneck of a layer's own weight; of a bottleneck's core, its neighbours taking up the bases.

    Args:
        inner: (I, r) orthonormal columns Q_A', or None. I, O: of the core, if the layer is a bottleneck.
        outer: (O, r) orthonormal columns Q_G', or None.

    With square bases it is the layer itself but for rounding.

    >>> layer, x = nn.Conv2d(3, 4, 3, stride=2, padding=1).double(), torch.randn(2, 3, 8, 8).double()
    >>> basis = torch.linalg.qr(torch.randn(4, 4).double()).Q
    >>> torch.allclose(turned(layer, None, basis)(x), layer(x))
    True
    """
    own: Any = core_of(layer)
    core = own.weight.detach().double().reshape(*own.weight.shape[:2], -1)  # (O, I, taps)
    enter, leave = (_matrix(layer, name) for name in ("enter", "leave"))
    if inner is not None:
        inner = inner.to(core)
        core = torch.einsum("oit,ir->ort", core, inner)
        enter = inner.T if enter is None else inner.T @ enter
    if outer is not None:
        outer = outer.to(core)
        core = torch.einsum("oit,or->rit", core, outer)
        leave = outer if leave is None else leave @ outer
    made = Bottleneck(layer, None if enter is None else len(enter), None if leave is None else leave.shape[1])
    with torch.no_grad():
        for name, value in (("enter", enter), ("core", core), ("leave", leave)):
            if value is not None:
                weight: Any = made.get_submodule(name).weight
                weight.copy_(value.reshape(weight.shape))
        if _last(layer).bias is not None:
            _last(made).bias.copy_(_last(layer).bias)
    for parameter in made.parameters():
        parameter.requires_grad_(own.weight.requires_grad)
    return made.train(layer.training)


def core_of(layer: nn.Module) -> nn.Module:
    """Of a bottleneck; any other layer is its own."""
    return layer.get_submodule("core") if isinstance(layer, Bottleneck) else layer


def _last(layer: nn.Module) -> Any:
    return layer[-1] if isinstance(layer, Bottleneck) else layer


def _matrix(layer: nn.Module, name: str) -> Tensor | None:
    """Weight of an outer part, (outputs, inputs)."""
    held: Any = getattr(layer, name, None) if isinstance(layer, Bottleneck) else None
    return None if held is None else held.weight.detach().double().flatten(1)


def sides(layer: Any) -> tuple[int, int, int]:
    """Inputs, outputs, and weights between one and the other (the kernel's entries)."""
    if isinstance(layer, Bottleneck):
        return sides(layer[0])[0], sides(layer[-1])[1], sides(layer.core)[2]
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
