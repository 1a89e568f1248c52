"""From a model and data to the curvature of the weights that are still there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import estimators, likelihoods
from dynaxx.assembly.rows import BlockSums, Chosen, RowStore, chosen_sizes, gather_rows
from dynaxx.assembly.sweep import Sweeper
from dynaxx.compress.curvature.base import Curvature, Parts
from dynaxx.compress.curvature.blocks import Blocks
from dynaxx.compress.curvature.diagonal import Diagonal
from dynaxx.compress.curvature.kronecker import Kronecker
from dynaxx.compress.curvature.rebuilt import Rebuilt, grouped
from dynaxx.compress.curvature.rows import Rows
from dynaxx.errors import SizeError, choose, require_memory
from dynaxx.fisher import fisher
from dynaxx.layout import Layout
from dynaxx.model.data import Data
from dynaxx.model.network import Network
from dynaxx.monitor.snapshot import evaluating
from dynaxx.operators.block import BlockDiagonal
from dynaxx.operators.diagonal import Diagonal as DiagonalOperator
from dynaxx.operators.kronecker import EigenKronecker
from dynaxx.operators.kronecker import Kronecker as KroneckerOperator

KINDS = ("diagonal", "dense", "rows", "block", "kfac", "ekfac")
DENSE = 4096
"""Parameters up to which the whole matrix is formed where nothing else is asked for: 134 MB."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A curvature and where it stands.

    Args:
        curvature: on the coordinates that are still there.
        layout: of all parameters, those that may move included.
        chosen: (s,) indices of the coordinates in the layout; a slice where that is all of it.
        count: examples behind it.
    """

    curvature: Curvature
    layout: Layout
    chosen: Tensor | slice
    count: int


def default_estimator(kind: str) -> str:
    """Sampled labels where every cotangent costs a row, else the exact columns."""
    return "monte_carlo" if kind in ("rows", "block") else "exact"


def measure(
    kind: str,
    model: nn.Module,
    data: Any,
    names: list[str],
    *,
    live: Mapping[str, Tensor] | None = None,
    likelihood: Any = "categorical",
    estimator: str | None = None,
    samples: int = 1,
    seed: int = 0,
    predict: Any = None,
    block: int = 32,
) -> Measured:
    """F of the parameters ``names`` on the coordinates that ``live`` keeps, without damping.

        dense      the whole matrix, every pair of weights coupled; 24 p^2 bytes
        rows       the whole matrix from m gradient rows; 4 m p bytes
        block      ``block`` consecutive weights of a parameter coupled; 4 p block bytes, or, where these would take
                   more than half of the free memory, those of the largest parameter (of an eighth of all at least),
                   with a sweep over the data for each such group whenever the curvature is asked something
        kfac, ekfac    a layer's weights coupled by a Kronecker product
        diagonal   none coupled

    Args:
        kind: one of these.
        live: name -> boolean mask of weights that are still there; parameters without one are whole.
        estimator: default "monte_carlo" for rows and block, where each cotangent is a row; else "exact".

    Raises:
        InputError, SizeError: as ``dynaxx.fisher``; the remedy is named.
    """
    choose("curvature", kind, KINDS)
    options: dict[str, Any] = {
        "likelihood": likelihood, "estimator": estimator or default_estimator(kind), "seed": seed, "predict": predict,
        "samples": samples, "params": names,
    }  # fmt: skip
    if kind == "dense":
        _require_dense(model, names)
    if kind in ("rows", "block"):
        return _gathered(kind, model, data, live or {}, block, options)
    operator = fisher(model, data, form=kind, **options)
    layout = operator.layout
    whole = _places(layout, _indices(layout, live or {}))
    curvature: Curvature
    if kind == "diagonal":
        curvature = Diagonal(operator.diagonal()[whole])
    elif kind == "dense":
        matrix = operator.matrix
        kept = matrix if isinstance(whole, slice) else matrix[whole[:, None], whole]
        curvature = Blocks(kept[None], len(kept))
    else:
        curvature, whole = _by_layer(operator, layout, whole)
    return Measured(curvature, layout, whole, operator.count)


def _require_dense(model: nn.Module, names: list[str]) -> None:
    p = sum(parameter.numel() for name, parameter in model.named_parameters() if name in set(names))
    require_memory(
        f"the three {p} x {p} matrices of curvature='dense' (p = {p} parameters)",
        3 * 8.0 * p * p,
        "use curvature='rows' or 'block', criterion='obd', which needs p numbers, or fewer parameters with params=",
    )


def _gathered(
    kind: str, model: nn.Module, data: Any, live: Mapping[str, Tensor], block: int, options: dict[str, Any]
) -> Measured:
    meaning = likelihoods.resolve(options["likelihood"])
    chosen_estimator = estimators.resolve(
        options["estimator"], meaning, samples=options["samples"], seed=options["seed"]
    )
    network = Network(model, meaning, options["params"], options["predict"])
    source = Data(data, network.device)
    sweeper = Sweeper(network, source, chosen_estimator)
    layout = network.layout
    chosen = _indices(layout, live)
    whole = _places(layout, chosen)
    if kind == "rows":
        store = RowStore(layout, chosen)
        count = gather_rows(sweeper, store)
        return Measured(Rows(store.finish(count)), layout, whole, count)
    sizes = chosen_sizes(layout, chosen)

    def blocks(names: Iterable[str]) -> Curvature:
        sums = BlockSums(layout.part(names), chosen, block)
        found = sums.finish(gather_rows(sweeper, sums))
        return Parts([Blocks(found[name], sizes[name]) for name in found])

    def rebuilt(names: list[str]) -> Curvature:
        BlockSums(layout.part(names), chosen, block)  # refused now, if ever

        def make() -> Curvature:
            with evaluating(network.model):  # who asks later need not know that the model runs
                return blocks(names)

        return Rebuilt(sum(sizes[name] for name in names), make)

    curvature: Curvature
    try:
        curvature = blocks(layout.names)
    except SizeError:
        source.require_repeatable()
        curvature = Parts([rebuilt(names) for names in grouped(sizes)])
    count = source.count or sum(batch.count for batch in source)
    return Measured(curvature, layout, whole, count)


def _by_layer(operator: BlockDiagonal, layout: Layout, whole: Tensor | slice) -> tuple[Curvature, Tensor]:
    """K-FAC's blocks as curvatures, and their coordinates in the blocks' order."""
    slices, order = layout.slices, []
    parts: list[Curvature] = []
    alive = torch.zeros(layout.size, dtype=torch.bool, device=layout.device)
    alive[whole] = True
    for part in operator.parts:
        places = torch.cat([torch.arange(slices[n].start, slices[n].stop) for n in part.names]).to(layout.device)
        inside = alive[places].nonzero()[:, 0]
        order.append(places[inside])
        if isinstance(part, (KroneckerOperator, EigenKronecker)):
            parts.append(Kronecker(part, inside))
        elif isinstance(part, DiagonalOperator):
            parts.append(Diagonal(part.diagonal()[inside]))
        else:
            parts.append(Blocks(part.to_dense()[inside[:, None], inside][None], len(inside)))
    return Parts(parts), torch.cat(order)


def _indices(layout: Layout, live: Mapping[str, Tensor]) -> Chosen:
    """name -> flat indices of what is live, None where all of it is."""
    found: dict[str, Tensor | None] = {}
    for name in layout.names:
        mask = live.get(name)
        whole = mask is None or bool(mask.all())
        found[name] = None if whole or mask is None else mask.flatten().nonzero()[:, 0].to(layout.device)
    return found


def _places(layout: Layout, chosen: Chosen) -> Tensor | slice:
    """The chosen coordinates' places in a vector of the layout."""
    if all(inside is None for inside in chosen.values()):
        return slice(None)
    found = []
    for name, where in layout.slices.items():
        inside = chosen[name]
        found.append(
            torch.arange(where.start, where.stop, device=layout.device) if inside is None else inside + where.start
        )
    return torch.cat(found)
