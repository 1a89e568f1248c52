"""Names, shapes and offsets of the selected parameters.

How a vector of length p and a dict of tensors are the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dynaxx.errors import InputError


@dataclass(frozen=True)
class Layout:
    """The order in which parameters are laid end to end, and where they live.

    Args:
        shapes: name -> shape, in order.
        dtype, device: of vectors made here.
    """

    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(self.shapes)

    @cached_property
    def size(self) -> int:
        """p, the number of coordinates."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def slices(self) -> dict[str, slice]:
        """name -> where its coordinates stand in a vector of length p."""
        out, start = {}, 0
        for name, shape in self.shapes.items():
            out[name] = slice(start, start + math.prod(shape))
            start = out[name].stop
        return out

    def part(self, names: Iterable[str]) -> Layout:
        """The layout of some of the parameters."""
        return Layout({name: self.shapes[name] for name in names}, self.dtype, self.device)

    def ravel(self, values: Mapping[str, Tensor]) -> Tensor:
        """dict name -> tensor of shape (*S) or (*S, k) to a tensor (p,) or (p, k).

        Raises:
            InputError: a name is missing, unknown, or has another shape.
        """
        missing, unknown = set(self.shapes) - set(values), set(values) - set(self.shapes)
        if missing or unknown:
            raise InputError(
                f"this dict does not fit the parameters: missing {sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}; "
                f"the names are {list(self.shapes)[:8]}{' ...' if len(self.shapes) > 8 else ''}"
            )
        rows = []
        for name, shape in self.shapes.items():
            value = values[name]
            if tuple(value.shape[: len(shape)]) != shape or value.dim() > len(shape) + 1:
                raise InputError(f"{name!r} has shape {tuple(value.shape)}; expected {shape} or {(*shape, 'k')}")
            rows.append(value.reshape((math.prod(shape), *value.shape[len(shape) :])))
        if len({row.shape[1:] for row in rows}) > 1:
            raise InputError(
                "some tensors of this dict carry a column axis and others do not; give all of them the same"
            )
        return torch.cat(rows)

    def unravel(self, vector: Tensor) -> dict[str, Tensor]:
        """A tensor (p,) or (p, k) to a dict of views of shape (*S) or (*S, k).

        Raises:
            InputError: its first axis is not p.
        """
        if vector.dim() not in (1, 2) or vector.shape[0] != self.size:
            raise InputError(
                f"expected a tensor of shape ({self.size},) or ({self.size}, k); got {tuple(vector.shape)}"
            )
        slices = self.slices
        return {name: vector[slices[name]].reshape((*shape, *vector.shape[1:])) for name, shape in self.shapes.items()}

    @staticmethod
    def add_into(row: Tensor, pieces: Iterable[Tensor], started: bool) -> None:
        """Add pieces laid end to end to ``row`` (p,), or write them there, which saves two passes over it."""
        flat = [piece.detach().flatten() for piece in pieces]
        if started:
            row += torch.cat(flat)
        else:
            torch.cat(flat, out=row)

    def zeros(self, *columns: int) -> Tensor:
        """A zero tensor of shape (p, *columns)."""
        return torch.zeros(self.size, *columns, dtype=self.dtype, device=self.device)
