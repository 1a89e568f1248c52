"""A run without numbers: tensors have shapes and no storage, and a ledger keeps what each would have taken.

Where the code asks for a value (is everything finite? are two runs equal?), it is told that all is well; where a shape
depends on values (which entries are unequal, which tokens differ), all of them are taken, an upper bound.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from dynaxx.memory.ledger import Ledger

aten = torch.ops.aten
GOOD = {"isfinite": True, "all": True, "any": False, "isnan": False, "isinf": False, "isneginf": False}
# of a difference, which is taken to be zero, these are zero too
OF_NOTHING = {"abs", "alias", "amax", "detach", "index", "linalg_vector_norm", "max", "norm", "square", "sum", "view"}
# what operations hold inside and no tensor shows, in sizes of their first argument
SCRATCH = {
    "logsumexp": 1.0,
    "linalg_eigh": 2.0,
    "linalg_eigvalsh": 1.0,
    "_linalg_eigh": 2.0,
    "mkldnn::_linear_pointwise": 2.0,  # both arguments in an order of its own
}


class Enough(Exception):
    """The run has lasted longer than was allowed."""


class Dry(TorchDispatchMode):
    """Enters the output of every operation in a ledger and answers questions about values.

    Stands above a FakeTensorMode, which knows the shapes.

    Args:
        ledger: where allocations are noted.
        seconds: after which ``Enough`` is raised.
    """

    def __init__(self, ledger: Ledger, seconds: float) -> None:
        super().__init__()
        self.ledger, self.deadline = ledger, time.monotonic() + seconds
        self._assumed = WeakTensorKeyDictionary()  # what a tensor is taken to hold

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if time.monotonic() > self.deadline:
            raise Enough
        name = function._schema.name.removeprefix("aten::")
        if function is aten._local_scalar_dense.default:
            return self._value(args[0])
        if function is aten.equal.default:
            return True
        if function is aten.index.Tensor or name in ("index_put", "index_put_"):
            args = (args[0], _all_selected(args[1]), *args[2:])
        largest = _all_different(name, args)
        out = function(*args, **(kwargs or {})) if largest is None else largest
        for leaf in tree_leaves(out):
            if isinstance(leaf, FakeTensor):
                self.ledger.add(leaf)
        if name in SCRATCH:
            self.ledger.scratch(int(SCRATCH[name] * args[0].numel() * args[0].element_size()))
        if isinstance(out, Tensor):
            self._judge(name, args, out)
        return out

    def _value(self, tensor: Tensor) -> bool | int | float:
        if tensor in self._assumed:
            return self._assumed[tensor]
        return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 0

    def _judge(self, name: str, args: tuple[Any, ...], out: Tensor) -> None:
        if out.is_floating_point():
            if (name == "sub" and isinstance(args[1], Tensor)) or (name in OF_NOTHING and args[0] in self._assumed):
                self._assumed[out] = 0.0
        elif out.dtype == torch.bool:
            held = [self._assumed[arg] for arg in args if isinstance(arg, Tensor) and arg in self._assumed]
            if name in GOOD and not (held and name in ("all", "any")):
                self._assumed[out] = GOOD[name]
            elif held and name in ("bitwise_not", "logical_not"):
                self._assumed[out] = not held[0]
            elif held and not any(isinstance(value, float) for value in held):  # and, or, reductions, views
                self._assumed[out] = any(held) if name.endswith("or") else all(held)


def _all_selected(indices: Any) -> list[Any]:
    """Masks among indices as if they selected every entry."""
    out: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
            out += [index.new_empty(index.numel(), dtype=torch.int64)] * index.dim()
        else:
            out.append(index)
    return out


def _all_different(name: str, args: tuple[Any, ...]) -> Any:
    """Answers of operations whose shape depends on values, at their largest; None for any other."""
    x: Any = args[0] if args else None
    if name == "nonzero":
        return x.new_empty((x.numel(), x.dim()), dtype=torch.int64)
    if name in ("_unique2", "unique_dim", "unique_consecutive"):
        whole = x.new_empty(x.numel()) if name != "unique_dim" else x.new_empty(x.shape)
        return whole, x.new_empty(x.shape, dtype=torch.int64), x.new_empty(x.numel(), dtype=torch.int64)
    return None
