"""Likelihoods whose outputs do not interact: I(z) is diagonal; its root, spectrum and envelopes are read off."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.likelihoods.base import Likelihood, keeps_precision, require_dense


class DiagonalLikelihood(Likelihood):
    """I(z) = diag(information(z)). Every kind of square root is the same, and exact wherever one is asked for.

    Labels have shape (..., units), or (...) where there is one unit.
    """

    @abstractmethod
    def information(self, z: Tensor) -> Tensor:
        """Diagonal of I(z), shape (..., C)."""

    def root_information(self, z: Tensor) -> Tensor:
        """Its square root, shape (..., C). Overridden where the root outlives an underflow of the square."""
        return self.information(z).sqrt()

    def units(self, z: Tensor) -> int:
        """Number of labels per position."""
        return z.shape[-1]

    def uniform_shape(self, z: Tensor) -> tuple[int, ...]:
        """One number per label: (..., units)."""
        return (*z.shape[:-1], self.units(z))

    @keeps_precision
    def metric(self, z: Tensor) -> Tensor:
        """diag(information), shape (..., C, C)."""
        require_dense(z, "use information(z), its diagonal")
        return torch.diag_embed(self.information(z))

    @keeps_precision
    def apply(self, z: Tensor, v: Tensor) -> Tensor:
        """information * v."""
        return self.information(z) * v

    @keeps_precision
    def trace(self, z: Tensor) -> Tensor:
        """Sum of the diagonal, shape (...)."""
        return self.information(z).sum(-1)

    @keeps_precision
    def spectrum_bounds(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The largest entry, twice: both bounds are exact."""
        largest = self.information(z).amax(-1)
        return largest, largest

    @keeps_precision
    def top_eigenpair(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The largest entry (...) and the unit vector at its place (..., C)."""
        values, index = self.information(z).max(-1, keepdim=True)
        return values.squeeze(-1), torch.zeros_like(z).scatter(-1, index, 1.0)

    def noise_size(self, z: Tensor, kind: str = "symmetric") -> int:
        """C for every kind."""
        self._kind(kind)
        return z.shape[-1]

    @keeps_precision
    def factor(self, z: Tensor, xi: Tensor, kind: str = "symmetric") -> Tensor:
        """sqrt(information) * xi, one noise per output, for every kind."""
        self._require_noise(xi, self.noise_size(z, kind), f"kind={kind!r}")
        return self.root_information(z) * xi

    def lower_noise_size(self, z: Tensor, rank: int = 1, method: str = "eigen") -> int:
        """min(rank, C)."""
        self._lower_method(method)
        return self._rank(rank, z.shape[-1])

    @keeps_precision
    def lower_factor(self, z: Tensor, xi: Tensor, rank: int = 1, method: str = "eigen") -> Tensor:
        """The square root restricted to the ``rank`` largest entries: the best bound of that rank."""
        size = self.lower_noise_size(z, rank, method)
        self._require_noise(xi, size, f"the lower envelope of rank {size}")
        largest, index = self.root_information(z).topk(size, dim=-1)
        values = largest * xi
        base = values.new_zeros(*values.shape[:-1], z.shape[-1])
        return base.scatter(-1, index.expand(values.shape), values)

    def upper_noise_size(self, z: Tensor, method: str = "diagonal", rank: int = 8) -> int:
        """C: the metric is its own envelope."""
        self._upper_method(method)
        self._rank(rank, z.shape[-1])
        return z.shape[-1]

    @keeps_precision
    def upper_factor(self, z: Tensor, xi: Tensor, method: str = "diagonal", rank: int = 8) -> Tensor:
        """The square root itself: exact."""
        self._require_noise(xi, self.upper_noise_size(z, method, rank), f"the upper envelope {method!r}")
        return self.root_information(z) * xi

    def check_shape(self, z: Tensor) -> None:
        """z is floating point of shape (..., C) with C >= 1."""
        self._require_floating(z)
        if z.shape[-1] < 1:
            raise InputError(f"{self}: z has shape {tuple(z.shape)}; there must be at least one output")

    _labels_text: str

    def _labels_rule(self, z: Tensor) -> str:
        return self._labels_text

    def _require_uniforms(self, z: Tensor, u: Tensor) -> None:
        shape = self.uniform_shape(z)
        if tuple(u.shape[max(u.dim() - len(shape), 0) :]) != shape:
            raise InputError(f"{self}: u has shape {tuple(u.shape)}; one number per label is {shape}")

    def _aligned(self, z: Tensor, y: Tensor) -> Tensor:
        batch, units = tuple(z.shape[:-1]), self.units(z)
        if y.is_complex():
            raise InputError(f"{self}: y has dtype {y.dtype}; labels are real numbers")
        if tuple(y.shape[max(y.dim() - len(batch) - 1, 0) :]) == (*batch, units):
            return y.to(z.dtype)
        if units == 1 and tuple(y.shape[max(y.dim() - len(batch), 0) :]) == batch:
            return y.unsqueeze(-1).to(z.dtype)
        raise InputError(
            f"{self}: y has shape {tuple(y.shape)} and z {tuple(z.shape)}; labels must have shape {(*batch, units)}"
            + (f" (or {batch})" if units == 1 else "; for class indices use the categorical likelihood")
        )
