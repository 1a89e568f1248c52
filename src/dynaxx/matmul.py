"""Products of matrices at the speed of the processor.

torch leaves float32 products to MKL, which gives processors of other makers its AVX2 kernels. Where such a one has
AVX-512, oneDNN, which torch brings for convolutions, takes half the time (measured on two cores of an EPYC: 500 against
235 GFLOP/s). The operation that gives access to it is torch's own but private, so it is asked for and never assumed.

Which of the two is used depends on processor, sizes and dtype alone, never on a measurement: a run repeats bit for bit.
"""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import Tensor

LEAST = 2**24  # multiply-adds: below, what oneDNN takes to begin is more than it saves


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b for matrices (m, k) and (k, n), or whatever else ``@`` takes. Not differentiable where it is fast.

    >>> matmul(torch.ones(2, 3), torch.ones(3, 1)).tolist()
    [[3.0], [3.0]]
    """
    return _linear(_packed(a), _packed(b).T) if _gains(a, b) else a @ b


def add_product(total: Tensor, a: Tensor, b: Tensor, beta: int = 1) -> Tensor:
    """total <- beta total + a b, in place; with ``beta`` 0 what was there is not read."""
    if not _gains(a, b):
        return total.addmm_(a, b, beta=beta)
    made = _linear(_packed(a), _packed(b).T)
    return total.add_(made) if beta else total.copy_(made)


def sliceable(matrix: Tensor) -> Tensor:
    """The matrix, in a copy laid out by rows where products of its slices of rows are faster for that."""
    return matrix.contiguous() if _gains(matrix, matrix.T) else matrix


def is_fast(a: Tensor, b: Tensor) -> bool:
    """Whether large products of these two are faster through oneDNN."""
    return a.dtype == b.dtype == torch.float32 and a.device.type == b.device.type == "cpu" and has_faster_products()


def _gains(a: Tensor, b: Tensor) -> bool:
    """Whether this product does, and nobody wants its derivative."""
    return (
        a.dim() == b.dim() == 2
        and a.numel() * b.shape[1] >= LEAST
        and is_fast(a, b)
        and not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))
    )


@cache
def has_faster_products() -> bool:
    """Whether this processor has products that torch does not use."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AMD" in _vendor()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _vendor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line for line in lines if line.startswith("vendor_id"))
    except (OSError, StopIteration):
        return platform.processor()


def _linear(a: Tensor, b: Tensor) -> Tensor:
    """a b^T."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def _packed(matrix: Tensor) -> Tensor:
    """By rows or by columns without gaps: oneDNN has no kernel for slices, and falls back to one a thousand times
    slower."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()
