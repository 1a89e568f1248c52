"""Symmetric float64 matrices with a prescribed spectrum, and an operator that counts its products."""

import torch
from torch import Tensor


def with_spectrum(eigenvalues, seed: int = 0) -> Tensor:
    """Q diag(l) Q^T with a random orthogonal Q."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator))
    matrix = (q * values) @ q.T
    return (matrix + matrix.T) / 2


def hadamard(order: int) -> Tensor:
    """Sylvester's Hadamard matrix of order 2^order, scaled to be orthogonal."""
    h = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(order):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / len(h) ** 0.5


def power(p: int, exponent: float) -> Tensor:
    return torch.arange(1, p + 1, dtype=torch.float64) ** -exponent


class Counted:
    """A dense matrix that is nothing but the protocol, and counts columns multiplied."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.columns, self.widest = matrix, 0, 0

    shape = property(lambda self: self.matrix.shape)
    dtype = property(lambda self: self.matrix.dtype)
    device = property(lambda self: self.matrix.device)

    def __matmul__(self, v: Tensor) -> Tensor:
        width = v.shape[1] if v.dim() == 2 else 1
        self.columns += width
        self.widest = max(self.widest, width)
        return self.matrix @ v
