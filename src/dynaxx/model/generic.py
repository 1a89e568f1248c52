"""Per-example gradients of any parameter of any model: the path for what no layer rule covers.

The whole model is differentiated one example at a time, batched by vmap where the model allows it, else in a loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from dynaxx.model.data import Batch, map_tensors
from dynaxx.model.network import Network
from dynaxx.model.rules.base import chunk


class _Logits(nn.Module):
    """The network's (1, P, C) outputs as a module, so that ``functional_call`` can swap its parameters."""

    def __init__(self, model: nn.Module, logits: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self.logits = model, logits

    def forward(self) -> Tensor:
        return self.logits()


def example_gradients(network: Network, batch: Batch, names: list[str], cotangents: Tensor) -> dict[str, Tensor]:
    """G = J_n^T u_kn for the named parameters.

    Args:
        cotangents: (K, N, P, C).

    Returns:
        name -> (K, N, *S). Cost: one forward and K reverse passes over the batch, more where the model cannot be
        batched by vmap.
    """
    parameters = {name: network.parameters[name].detach() for name in names}
    size = sum(p.numel() for p in parameters.values())
    step = chunk(size * cotangents.element_size() * len(cotangents))
    pieces = []
    for start in range(0, batch.count, step):
        part, u = batch.part(start, start + step), cotangents[:, start : start + step]
        piece = _vmapped(network, part, parameters, u)
        pieces.append(
            piece if piece is not None and _adds_up(network, part, piece, u) else _looped(network, part, names, u)
        )
    return {name: torch.cat([piece[name] for piece in pieces], 1) for name in names}


def _adds_up(network: Network, batch: Batch, gradients: dict[str, Tensor], cotangents: Tensor) -> bool:
    """Whether the examples' gradients sum to the batch's.

    Some batching rules of torch are wrong (PReLU's weight, in 2.13): never trust, check.
    """
    parameters = [network.parameters[name] for name in gradients]
    z = network(batch).z
    sums = torch.autograd.grad(z, parameters, cotangents[0], allow_unused=True, materialize_grads=True)
    return all(
        G.shape == (len(cotangents), len(z), *total.shape) and agree(G[0].sum(0), total, G[0], z.dtype)
        for G, total in zip(gradients.values(), sums, strict=True)
    )


def agree(found: Tensor, wanted: Tensor, terms: Tensor, dtype: torch.dtype) -> bool:
    """Whether two sums of the same terms (N, ...) agree, as far as a model in ``dtype`` can tell."""
    tolerance = 1e-8 if dtype == torch.float64 else 2e-2 if dtype.itemsize == 2 else 1e-3
    return bool((found - wanted).norm() <= tolerance * terms.norm() * len(terms) ** 0.5)


def _vmapped(
    network: Network, batch: Batch, parameters: dict[str, Tensor], cotangents: Tensor
) -> dict[str, Tensor] | None:
    """All examples at once, or None where the model does not allow it.

    What does not run over examples is held fixed.
    """
    count = batch.count
    leaves: list[Any] = []
    map_tensors(leaves.append, (batch.args, batch.kwargs, batch.raw))
    axes = [0 if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count else None for leaf in leaves]
    moving = tuple(leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == 0)
    # tensors that appear twice (in args and in raw) are passed twice; vmap does not mind

    def one(u: Tensor, *xs: Tensor) -> dict[str, Tensor]:
        supply = iter(xs)
        fill = iter(next(supply)[None] if axis == 0 else leaf for leaf, axis in zip(leaves, axes, strict=True))
        args, kwargs, raw = map_tensors(lambda _: next(fill), (batch.args, batch.kwargs, batch.raw))
        single = Batch(args, kwargs, None, None, raw, batch.index, batch.start)

        def logits(values: dict[str, Tensor]) -> Tensor:
            module = _Logits(network.model, lambda: network.raw(single))
            out = functional_call(module, {f"model.{name}": value for name, value in values.items()}, ())
            return out.reshape(1, -1, u.shape[-1])[0, : u.shape[-2]] if out.dim() > 1 else out.reshape(u.shape[1:])

        pull = vjp(logits, parameters)[1]
        return vmap(lambda column: pull(column)[0])(u)

    # (N, K, P, C) with examples first, so that one vmap runs over examples and an inner one over cotangents
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            grads = vmap(one)(cotangents.transpose(0, 1), *moving)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # control flow on values, fused recurrent cells, operations without a batching rule
    return {name: G.transpose(0, 1).detach() for name, G in grads.items()}


def _looped(network: Network, batch: Batch, names: list[str], cotangents: Tensor) -> dict[str, Tensor]:
    """One example at a time: right for every model that can run a batch of one."""
    parameters = [network.parameters[name] for name in names]
    rows: list[list[tuple[Tensor, ...]]] = []
    for n in range(batch.count):
        z = network(batch.part(n, n + 1)).z
        rows.append(
            [
                torch.autograd.grad(
                    z, parameters, u[None], retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for u in cotangents[:, n]
            ]
        )
    return {
        name: torch.stack([torch.stack([row[k][i].detach() for row in rows]) for k in range(len(cotangents))])
        for i, name in enumerate(names)
    }
