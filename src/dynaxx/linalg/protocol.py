"""What linalg knows of an operator: its shape, where it lives, and its product with vectors."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from dynaxx.errors import InputError, require_memory

# Columns handed to one product: enough to amortise a pass over the data, few enough to stay small beside the model.
_MOST_COLUMNS = 32
_CHUNK_BYTES = 2**28


class Operator(Protocol):
    """A symmetric linear map of R^p; a dense symmetric tensor is one.

    ``op @ v`` takes v of shape (p,) or (p, k), on ``device`` and of ``dtype``, and answers in kind.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(p, p)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors it takes and returns."""
        ...

    @property
    def device(self) -> torch.device:
        """Where these vectors live."""
        ...

    def __matmul__(self, v: Tensor, /) -> Tensor: ...


def dimension(op: Operator) -> int:
    """p of an operator of shape (p, p).

    Raises:
        InputError: it is not square, is empty, or does not hold real floating-point numbers.
    """
    shape = tuple(op.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise InputError(f"the operator has shape {shape}; these algorithms take a square one, (p, p) with p >= 1")
    if not op.dtype.is_floating_point:
        raise InputError(
            f"the operator has dtype {op.dtype}; convert it to a floating-point one, such as torch.float64"
        )
    return shape[0]


def product(op: Operator, v: Tensor) -> Tensor:
    """``op @ v`` cut off from autograd: these algorithms are not differentiated through.

    Raises:
        InputError: the answer has not the shape of ``v``.
    """
    answer = (op @ v).detach()
    if answer.shape != v.shape:
        raise InputError(
            f"operator of shape {tuple(op.shape)} @ tensor of shape {tuple(v.shape)} gave {tuple(answer.shape)}; its "
            "product must answer in the shape of the vector"
        )
    return answer


def chunks(op: Operator, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut the columns start..stop into runs that one product takes at a time."""
    width = max(1, min(_MOST_COLUMNS, _CHUNK_BYTES // (op.shape[0] * op.dtype.itemsize)))
    for first in range(start, stop, width):
        yield first, min(first + width, stop)


def products(op: Operator, columns: Tensor) -> Tensor:
    """A @ columns for any number of columns (p, k), none included, in chunks."""
    parts = [product(op, columns[:, start:stop]) for start, stop in chunks(op, 0, columns.shape[1])]
    return torch.cat(parts, 1) if parts else columns


def identity_columns(op: Operator, start: int, stop: int) -> Tensor:
    """Columns start..stop of the identity, (p, stop - start)."""
    columns = torch.zeros(op.shape[0], stop - start, dtype=op.dtype, device=op.device)
    columns[torch.arange(start, stop, device=op.device), torch.arange(stop - start, device=op.device)] = 1
    return columns


def require_room(what: str, op: Operator, columns: int, remedy: str) -> None:
    """Refuse to hold ``columns`` vectors of length p above half of the free memory of the operator's device.

    Raises:
        SizeError: with the bytes it would take and ``remedy``.
    """
    limit = torch.cuda.mem_get_info(op.device)[0] / 2 if op.device.type == "cuda" else None
    require_memory(
        f"{what} ({columns} vectors of length {op.shape[0]})", columns * op.shape[0] * op.dtype.itemsize, remedy, limit
    )


def require_count(name: str, given: object, least: int = 1, why: str = "") -> int:
    """Return ``given`` if it is a whole number of at least ``least``.

    Raises:
        InputError: otherwise.
    """
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise InputError(
            f"{name}={given!r} cannot be used{why and ' (' + why + ')'}; give a whole number of at least {least}"
        )
    return given
