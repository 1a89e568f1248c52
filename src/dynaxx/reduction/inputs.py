"""The first linear map on the leading principal components of its inputs: a control that knows data and no metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.errors import InputError
from dynaxx.layout import Layout
from dynaxx.model.network import Predict
from dynaxx.model.reading import batches, forward, unmoved
from dynaxx.model.rules.convolution import padded, patches
from dynaxx.model.rules.correlation import SecondMoment


class InputComponents:
    """The rows of the first linear map on m principal components of its inputs; all other parameters are kept.

        D_k = D V_m V_m^T for the first map's displacement D (O, I),   sum a a^T = V diag V^T,   k = p - O I + O m

    Args:
        displacement: d, (p,).
        place: where D lies in d.
        components: V (I, I), leading first.
    """

    name = "data"

    def __init__(self, displacement: Tensor, place: slice, components: Tensor) -> None:
        self.displacement, self.place = displacement.double(), place
        self.components = components.to(self.displacement)
        self.largest = len(displacement)
        self.outputs = (place.stop - place.start) // len(components)
        self.least = self.largest - self.outputs * len(components)

    def projections(self, ks: Sequence[int]) -> Iterator[Tensor]:
        """P_k d: of dimension k, or the next below it that is a whole number of components."""
        for k in ks:
            kept = self.components[:, : (k - self.least) // self.outputs]
            out = self.displacement.clone()
            rows = out[self.place].view(self.outputs, -1)
            out[self.place] = (rows @ kept @ kept.T).flatten()
            yield out

    def energy(self, k: int) -> float:
        """|P_k d|^2 / |d|^2."""
        (kept,) = self.projections([k])
        return float(kept.square().sum() / self.displacement.square().sum())


def input_components(
    model: nn.Module, layout: Layout, displacement: Tensor, data: Any, predict: Predict | None
) -> InputComponents:
    """The control of a model's first linear map: the first nn.Linear or convolution that a forward pass comes to.

    One pass without gradients. The second moment of the inputs (of a convolution's patches) is not
    centred: a mean is a component like others.

    Args:
        model: a copy, on which hooks are left.

    Raises:
        InputError: no such layer has its weight among the selected parameters, or the first has groups.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters() if name in layout.shapes}
    found: list[nn.Module] = []
    moment = SecondMoment()

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not found:
            found.append(module)
        if module is found[0] and getattr(module, "groups", 1) == 1:
            rows = patches(module, padded(module, args[0])) if not isinstance(module, nn.Linear) else args[0]
            moment.add(rows.flatten(0, -2).double())

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and id(module.weight) in names:
            module.register_forward_pre_hook(look)
    with torch.no_grad(), unmoved(data):
        for batch in batches(model, data):
            forward(model, batch, predict)
    if not found or getattr(found[0], "groups", 1) > 1:
        what = f"the first of them here is {found[0]}" if found else "none has its weight among the selected parameters"
        raise InputError(
            f"control='data' projects the first linear layer or convolution without groups on its inputs' principal "
            f"components, and {what}; choose another control"
        )
    values, vectors = torch.linalg.eigh(moment.total())
    name = names[id(found[0].weight)]
    return InputComponents(displacement, layout.slices[name], vectors[:, values.argsort(descending=True)])
