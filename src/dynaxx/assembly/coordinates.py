"""Between output space and the rows of a Gram matrix, U^T w and U c, without holding all cotangents U.

The columns of a matrix B(z) at P positions make K = P r cotangents, all but 1/P of whose entries are zero: those are
never formed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dynaxx.assembly.sweep import COTANGENT_BYTES
from dynaxx.estimators import Columns, Estimator
from dynaxx.model.network import Output


def project(estimator: Estimator, output: Output, keys: Tensor, w: Tensor) -> Tensor:
    """U_nk . w_n for w (j, N, P, C): (N, K, j) in float64. Cost: K j products of length P C, or C for columns."""
    wide, columns = w.double(), isinstance(estimator, Columns)
    equation = "rnpc,jnpc->nprj" if columns else "rnpc,jnpc->nrj"
    pieces = [torch.einsum(equation, u.double(), wide) for u in _pieces(estimator, output, keys)]
    return torch.cat(pieces, -2).reshape(len(keys), -1, len(w))


def combine(estimator: Estimator, output: Output, keys: Tensor, c: Tensor) -> Iterator[Tensor]:
    """sum_k U_nk c_nk for each row of c (j, N, K): j tensors (N, P, C)."""
    z = output.z.detach()
    for row in c.to(z.dtype):
        if isinstance(estimator, Columns):
            w = estimator.factor(z, row.reshape(*z.shape[:2], -1))
            yield w if output.mask is None else w * output.mask.sqrt()[..., None]
            continue
        total, start = torch.zeros_like(z), 0
        for u in _pieces(estimator, output, keys):
            total += torch.einsum("qnpc,nq->npc", u, row[:, start : start + len(u)])
            start += len(u)
        yield total


def _pieces(estimator: Estimator, output: Output, keys: Tensor) -> Iterator[Tensor]:
    """Cotangents (k, N, P, C), some at a time; of columns those of all positions together, r in all."""
    z = output.z.detach()
    step = max(1, COTANGENT_BYTES // max(1, z.numel() * z.element_size()))
    if not isinstance(estimator, Columns):
        yield from estimator.chunks(output, keys, step)
        return
    size = estimator.size(z)
    for start in range(0, size, step):
        basis = torch.eye(size, dtype=z.dtype, device=z.device)[start : start + step, None, None]
        u = estimator.factor(z, basis)
        yield u if output.mask is None else u * output.mask.sqrt()[..., None]
