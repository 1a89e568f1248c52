"""Two models' spectra on the coordinates that survive pruning.

The rank of a pruned model's Fisher matrix says nothing (it is bounded by the weights that are left), so the dense model
is looked at on the same
coordinates: F_SS for both, their normalised eigenvalues, and how far their stiffest directions agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.errors import InputError
from dynaxx.fisher import fisher
from dynaxx.layout import Layout
from dynaxx.monitor.snapshot import Probe, evaluating
from dynaxx.operators.base import Operator
from dynaxx.operators.gram import Gram
from dynaxx.operators.implicit import GRAM_ROWS
from dynaxx.spectrum import SampledSpectrum, Spectrum

DENSE = 4096  # surviving coordinates up to which F_SS is formed: 128 MB in float64


class Restricted(Operator):
    """F on some of its coordinates, F_SS v = (F E v)_S, where E spreads v over the chosen ones.

    Args:
        operator: F, p x p.
        chosen: (s,) indices of the coordinates that stay.
    """

    form = "restricted"

    def __init__(self, operator: Operator, chosen: Tensor) -> None:
        layout = Layout({"surviving": (len(chosen),)}, operator.dtype, operator.device)
        super().__init__(layout, operator.count, operator.sampling, operator.definite)
        self.operator, self.chosen = operator, chosen

    def product(self, vectors: Tensor) -> Tensor:
        """F_SS V for V (s, k)."""
        spread = vectors.new_zeros(self.operator.layout.size, vectors.shape[1])
        spread[self.chosen] = vectors
        return self.operator.product(spread)[self.chosen]


@dataclass(frozen=True, eq=False)
class Surviving:
    """F_SS of one model: its spectrum and its k stiffest directions (s, k)."""

    spectrum: Spectrum | SampledSpectrum
    vectors: Tensor


@dataclass(frozen=True, eq=False)
class Comparison:
    """Dense and pruned model on the same coordinates.

    Args:
        dense, pruned: spectra of F_SS.
        coordinates: s, how many there are.
        overlap: (1/k) |U_k^T V_k|_F^2 of the k stiffest directions, 1 for the same subspace; k/s is what chance would
            give.
        k: directions compared.
    """

    dense: Spectrum | SampledSpectrum
    pruned: Spectrum | SampledSpectrum
    coordinates: int
    overlap: float
    k: int


def surviving(model: nn.Module, probe: Probe, masks: Mapping[str, Tensor], k: int = 10) -> Surviving:
    """The Fisher matrix of a model on the coordinates the masks keep (parameters without a mask are kept whole).

    Args:
        model: any module; looked at in evaluation mode and left as it was.
        probe: the examples.
        masks: name -> boolean tensor.
        k: stiffest directions to return; fewer where there are fewer above the rounding floor.

    Raises:
        InputError: the masks keep nothing, or name what the model does not have.

    Cost: up to 4096 Gram rows and as many coordinates two reverse passes per coordinate, exact; beyond, Lanczos for the
    directions and stochastic Lanczos quadrature for the spectrum.
    """
    options: dict[str, Any] = {"likelihood": probe.likelihood, "seed": probe.seed, "predict": probe.predict}
    with evaluating(model):
        operator = fisher(model, probe.batch, form="implicit", **options)
        unknown = set(masks) - set(operator.names)
        if unknown:
            raise InputError(
                f"masks name {sorted(unknown)}, which this model does not have or which do not require grad"
            )
        whole = {name: torch.ones(shape, dtype=torch.bool) for name, shape in operator.layout.shapes.items()}
        chosen = (
            operator.ravel({**whole, **{name: mask.cpu() for name, mask in masks.items()}})
            .nonzero()[:, 0]
            .to(operator.device)
        )
        if not len(chosen):
            raise InputError("the masks keep no weight at all, so there is no spectrum; prune less")
        if operator.rows > GRAM_ROWS or len(chosen) > DENSE:
            restricted = Restricted(operator, chosen)
            pairs = restricted.eigh(min(k, len(chosen)))
            spectrum = restricted.spectrum()
            return Surviving(spectrum, pairs.vectors.double().cpu())
        gram = fisher(model, probe.batch, form="gram", **options)
        return _exact(gram, chosen, k)


def _exact(gram: Gram, chosen: Tensor, k: int) -> Surviving:
    """F_SS = R^T R with R = G^T E / sqrt(N), in float64 from the rows on."""
    columns = []
    for block in chosen.split(256):
        basis = gram.layout.zeros(len(block))
        basis[block, torch.arange(len(block), device=block.device)] = 1.0
        columns.append(gram.source.to_rows(basis).double())
    rows = torch.cat(columns, 1) / gram.count**0.5
    wide = rows.shape[1] > rows.shape[0]
    values, vectors = torch.linalg.eigh(
        rows @ rows.T if wide else rows.T @ rows
    )  # the smaller side: the non-zero eigenvalues are the same
    values, vectors = values.flip(0), vectors.flip(1)
    # the rows carry the model's rounding, which squares; the product and its decomposition carry float64's
    eps = max(torch.finfo(torch.float64).eps, torch.finfo(gram.dtype).eps ** 2)
    floor = eps * max(rows.shape) * float(values[0].clamp(min=0))
    bound = min(rows.shape)
    spectrum = Spectrum(values[:bound].cpu(), dimension=len(chosen), count=gram.count, floor=floor, rank_bound=bound)
    k = min(k, max(spectrum.rank, 1))
    stiff = rows.T @ (vectors[:, :k] / values[:k].clamp(min=floor or 1.0).sqrt()) if wide else vectors[:, :k]
    return Surviving(spectrum, stiff.cpu())


def compare(dense: Surviving, pruned: Surviving) -> Comparison:
    """Hold two models' F_SS against each other.

    Raises:
        InputError: they are of different coordinates.
    """
    if len(dense.vectors) != len(pruned.vectors):
        raise InputError(
            f"the spectra are of {len(dense.vectors)} and {len(pruned.vectors)} coordinates; take both under the "
            f"same masks"
        )
    k = min(dense.vectors.shape[1], pruned.vectors.shape[1])
    overlap = float((dense.vectors[:, :k].T @ pruned.vectors[:, :k]).square().sum()) / k
    return Comparison(dense.spectrum, pruned.spectrum, len(dense.vectors), overlap, k)
