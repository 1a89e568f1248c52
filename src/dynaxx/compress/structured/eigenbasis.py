"""A layer in the eigenbasis of its Kronecker-factored metric: what each direction is worth, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.assembly.kronecker import EigenvalueCollector, KroneckerCollector
from dynaxx.assembly.sweep import Sweeper
from dynaxx.compress.structured.bottleneck import Bottleneck, sides
from dynaxx.model.data import Batch
from dynaxx.model.network import Predict
from dynaxx.model.reading import forward
from dynaxx.monitor.snapshot import evaluating
from dynaxx.operators.block import BlockDiagonal
from dynaxx.operators.kronecker import EigenKronecker, Kronecker


@dataclass(frozen=True, eq=False)
class Turned:
    """One layer in its eigenbasis.

    Args:
        left, right: Q_G (O, O) and Q_A (I, I), eigenvalues ascending.
        weight: W* (O, I, taps).
        importance: Theta (O, I), summed over taps.
    """

    left: Tensor
    right: Tensor
    weight: Tensor
    importance: Tensor


class Price:
    """Operations of a layer by how many directions stay, in its cheapest form.

    Args:
        layer: in its eigenbasis; of a bottleneck, its core.
        flops: of that as it is. places: input and output positions.
        module: the layer; a bottleneck's ``enter`` and ``leave`` stay, and shrink with its core.
    """

    def __init__(self, layer: Turned, flops: float, places: tuple[float, float], module: nn.Module) -> None:
        self.outputs, self.inputs, self.taps = layer.weight.shape
        self.places = places
        self.unit = flops / (self.outputs * self.inputs * self.taps * places[1])
        self.wide_in, self.wide_out, _ = sides(module)
        has = module.sizes if isinstance(module, Bottleneck) else (None, None)
        self.enters, self.leaves = ((True,) if size is not None else (False, True) for size in has)
        self.dense = self._form(self.inputs, self.outputs, self.enters[0], self.leaves[0])

    def _form(self, inner: int, outer: int, enter: bool, leave: bool) -> float:
        inputs, outputs = inner if enter else self.inputs, outer if leave else self.outputs
        weights = inputs * outputs * self.taps * self.places[1]
        weights += enter * self.wide_in * inner * self.places[0] + leave * outer * self.wide_out * self.places[1]
        return self.unit * weights

    def best(self, inner: int, outer: int) -> tuple[float, bool, bool]:
        """(operations, whether its input is turned, whether its output is): both False where it stays as it is."""
        forms = [(self.dense, False, False)]
        for enter, leave in product(self.enters, self.leaves):
            if enter or leave:
                forms.append((self._form(inner, outer, enter, leave), enter, leave))
        return min(forms, key=lambda form: form[0])


def turn(sweeper: Sweeper, found: Mapping[str, nn.Module], curvature: str) -> tuple[dict[str, Turned], int]:
    """Every layer with Kronecker factors in its eigenbasis, and the number of examples."""
    collector = KroneckerCollector(sweeper.network.layout)
    (kfac,) = sweeper.run([collector])
    assert isinstance(kfac, BlockDiagonal)
    factors = {part.names[0].removesuffix(".weight"): part for part in kfac.parts if isinstance(part, Kronecker)}
    bases = {name: Basis.of(part, sides(found[name])[2]) for name, part in factors.items()}
    scales: dict[str, Tensor] = {}
    if curvature == "ekfac":
        moments = EigenvalueCollector(kfac, collector.factors or {})
        moments.bases |= {part.names: bases[name].operator(part) for name, part in factors.items()}
        (corrected,) = sweeper.run([moments])
        assert isinstance(corrected, BlockDiagonal)
        parts = [part for part in corrected.parts if isinstance(part, EigenKronecker)]
        scales = {part.names[0].removesuffix(".weight"): part.scales for part in parts}
    layers = {}
    for name, basis in bases.items():
        held: Any = found[name]
        own = held.weight.detach().double().reshape(*held.weight.shape[:2], -1)
        weight = torch.einsum("op,oit,ij->pjt", basis.left, own, basis.right)
        if scales:
            importance = (weight.square() * scales[name].view(weight.shape)).sum(2) / 2
        else:
            importance = torch.einsum("p,pjs,jst,pjt->pj", basis.values, weight, basis.moments, weight) / 2
        layers[name] = Turned(basis.left, basis.right, weight, importance)
    return layers, kfac.count


@dataclass(frozen=True, eq=False)
class Basis:
    """Eigenvectors of G, and of A summed over the kernel's taps: a turn of input channels that is the same at each.

    Args:
        left, values: of G, ascending.
        right: (I, I), ascending.
        moments: (I, taps, taps), for every direction of the input the second moment of its values at the taps; the
            eigenvalues of A for a Linear layer.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    moments: Tensor

    @classmethod
    def of(cls, part: Kronecker, taps: int) -> Basis:
        """From the factors of one layer's weight."""
        size = len(part.right) // taps
        patches = part.right.double().reshape(size, taps, size, taps)
        values, left = torch.linalg.eigh(part.left.double())
        right = torch.linalg.eigh(torch.einsum("itjt->ij", patches)).eigenvectors
        moments = torch.einsum("ik,isjt,jk->kst", right, patches, right)
        return cls(left, values.clamp(min=0), right, moments)

    def operator(self, part: Kronecker) -> EigenKronecker:
        """As EKFAC knows a basis, with scales that it replaces by second moments."""
        taps = self.moments.shape[1]
        spread = torch.kron(self.right.contiguous(), torch.eye(taps, dtype=torch.float64, device=self.right.device))
        scales = self.left.new_zeros(len(self.left), len(spread))
        return EigenKronecker(self.left, spread, scales, part.axes, part.bias, part.layout, part.count)


def direction_scores(layers: Mapping[str, Turned]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums of Theta by direction, and of W*^2 for ties, such as the zeros of dead units."""
    scores, ties = {}, {}
    for name, layer in layers.items():
        squares = layer.weight.square().sum(2)
        for side, axis in (("in", 0), ("out", 1)):
            scores[f"{name}:{side}"] = layer.importance.sum(axis).cpu()
            ties[f"{name}:{side}"] = squares.sum(axis).cpu()
    return scores, ties


def positions(
    model: nn.Module, names: Iterable[str], batch: Batch, predict: Predict | None = None
) -> dict[str, tuple[float, float]]:
    """Input and output positions of an example, by layer."""
    found: dict[str, tuple[float, float]] = {}
    handles = []
    for name in names:
        layer = model.get_submodule(name)

        def note(module: Any, args: Any, out: Tensor, name: str = name) -> None:
            inputs, outputs, _ = sides(module)
            found[name] = args[0].numel() / inputs / batch.count, out.numel() / outputs / batch.count

        handles.append(layer.register_forward_hook(note))
    try:
        with evaluating(model), torch.no_grad():
            forward(model, batch, predict)
    finally:
        for handle in handles:
            handle.remove()
    return found
