"""Per-example gradients as numbers: kept as the rows of a root B of F = B^T B, or summed into small diagonal blocks.

Both take some of the coordinates only (those of the weights that are still there), and go parameter by parameter, so
that an example's whole gradient is nowhere but in the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from dynaxx.assembly.sweep import Sweeper
from dynaxx.errors import InputError, require_memory
from dynaxx.layout import Layout
from dynaxx.model.rules.base import Use, gradients, parts, rows
from dynaxx.model.tape import Tape

Chosen = Mapping[str, Tensor | None]
"""name -> flat indices of the coordinates that are wanted, None for all of them."""


class Gatherer(Protocol):
    """What listens to a sweep for numbers of its own."""

    def add(self, tape: Tape, cotangents: Tensor) -> None:
        """Take in one chunk of cotangents (K, N, P, C) of one batch."""


def gather_rows(sweeper: Sweeper, gatherer: Gatherer) -> int:
    """One sweep over the data; returns N, the examples seen."""
    count = 0
    with sweeper.network.guarded(), torch.inference_mode(False):
        for tape, keys in sweeper.tapes():
            for cotangents in sweeper.chunks(tape, keys):
                gatherer.add(tape, cotangents)
            count += len(keys)
    return count


def chosen_sizes(layout: Layout, chosen: Chosen) -> dict[str, int]:
    """name -> how many of its coordinates are wanted."""
    found = {}
    for name, shape in layout.shapes.items():
        inside = chosen[name]
        found[name] = math.prod(shape) if inside is None else len(inside)
    return found


def _pieces(uses: list[Use] | None, size: int, chosen: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """(first example, gradients (K, n, s)) of one parameter, a chunk of examples at a time; none if unreached."""
    if uses is None or (chosen is not None and not len(chosen)):
        return
    start = 0
    for part in parts(uses, 2 * size):
        found = rows(gradients(part))
        yield start, found if chosen is None else found[:, :, chosen]
        start += found.shape[1]


class RowStore:
    """B (m, s) with F = B^T B on the chosen coordinates: one row per example and cotangent, divided by sqrt(N).

    Args:
        layout: of all parameters the gradients are taken of.
        chosen: which coordinates; their order is the layout's.

    Memory: m s numbers of the model's dtype (float32 at least), twice while several batches are joined.
    """

    def __init__(self, layout: Layout, chosen: Chosen) -> None:
        self.layout, self.chosen = layout, chosen
        self.sizes = chosen_sizes(layout, chosen)
        self.dtype = torch.promote_types(layout.dtype, torch.float32)
        self.held: list[Tensor] = []

    def add(self, tape: Tape, cotangents: Tensor) -> None:
        """Write the rows of a batch."""
        columns, examples, total = len(cotangents), cotangents.shape[1], sum(self.sizes.values())
        require_memory(
            f"{columns * examples} per-example gradients of {total} weights",
            columns * examples * total * self.dtype.itemsize,
            "use fewer examples, or curvature='block', which keeps sums over examples instead of rows",
        )
        out = torch.zeros(columns, examples, total, dtype=self.dtype, device=self.layout.device)
        pulled, column = tape.pulled(cotangents), 0
        for name, shape in self.layout.shapes.items():
            stop = column + self.sizes[name]
            for start, found in _pieces(pulled.get(name), math.prod(shape), self.chosen[name]):
                out[:, start : start + found.shape[1], column:stop] = found
            column = stop
        self.held.append(out.flatten(0, 1))

    def finish(self, count: int) -> Tensor:
        """B, and nothing is held any more.

        Raises:
            InputError: a gradient is not finite.
        """
        B = torch.cat(self.held) if len(self.held) > 1 else self.held[0]
        self.held.clear()
        _require_finite(B)
        return B.div_(math.sqrt(count))


class BlockSums:
    """The diagonal of F in blocks of c consecutive chosen coordinates of a parameter, (blocks, c, c) each.

        F_b = (1/N) sum_nk  G_nk[b] G_nk[b]^T

    The last block of a parameter is filled up with zeros.

    Args:
        layout, chosen: as for RowStore.
        size: c.

    Memory: s c numbers of the model's dtype (float32 at least): 12.8 GB for 100 million weights in blocks of 32.
    """

    def __init__(self, layout: Layout, chosen: Chosen, size: int) -> None:
        self.layout, self.chosen = layout, chosen
        self.dtype = torch.promote_types(layout.dtype, torch.float32)
        sizes = chosen_sizes(layout, chosen)
        widths = {name: max(1, min(size, number)) for name, number in sizes.items()}
        shapes = {name: (-(-number // widths[name]), widths[name], widths[name]) for name, number in sizes.items()}
        total = sum(math.prod(shape) for shape in shapes.values())
        require_memory(
            f"curvature blocks of {size} x {size} for {sum(sizes.values())} weights",
            total * self.dtype.itemsize,
            "use a smaller block=",
        )
        self.sums = {name: torch.zeros(s, dtype=self.dtype, device=layout.device) for name, s in shapes.items()}

    def add(self, tape: Tape, cotangents: Tensor) -> None:
        """Add the outer products of a batch's gradients, block by block."""
        pulled = tape.pulled(cotangents)
        for name, shape in self.layout.shapes.items():
            blocks, width, _ = self.sums[name].shape
            for _, found in _pieces(pulled.get(name), math.prod(shape), self.chosen[name]):
                flat = found.flatten(0, 1).to(self.dtype)
                lacking = blocks * width - flat.shape[1]
                flat = torch.nn.functional.pad(flat, (0, lacking)) if lacking else flat
                split = flat.view(len(flat), blocks, width).transpose(0, 1)  # (blocks, rows, c)
                self.sums[name].baddbmm_(split.mT, split)

    def finish(self, count: int) -> dict[str, Tensor]:
        """name -> (blocks, c, c).

        Raises:
            InputError: a gradient is not finite.
        """
        for total in self.sums.values():
            _require_finite(total)
            total.div_(count)
        return self.sums


def _require_finite(values: Tensor) -> None:
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise InputError(
            "the outputs are finite but their gradients hold nan or inf; look for sqrt, norm or division at 0 in "
            "forward, or for values that overflow the dtype"
        )
