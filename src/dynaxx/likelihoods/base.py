"""What a likelihood is: labels, the metric I(z) = Cov_y[d log p(y|z) / dz] of the output space, its roots and bounds.

Shapes throughout: z is (..., C), the network's outputs with any batch shape; v, xi and y may carry extra leading
axes, which broadcast against the batch. Log-probabilities, divergences and entropies are in nats.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from dynaxx.errors import InputError, choose, require_memory

Method = TypeVar("Method", bound=Callable[..., Any])


def working_dtype(z: Tensor) -> torch.dtype:
    """The precision we compute in: float16 and bfloat16 become float32, the others stay."""
    return z.dtype if z.dtype in (torch.float32, torch.float64) else torch.float32


def working(z: Tensor) -> Tensor:
    """``z`` in the precision we compute in."""
    return z.to(working_dtype(z))


def keeps_precision(method: Method) -> Method:
    """Compute ``method(self, z, ...)`` in working precision and answer in the dtype of z.

    The shape of z is checked first, and autocast is off inside: it would turn small matrix products into half
    precision.
    """

    @functools.wraps(method)
    def wrapper(self: Likelihood, z: Tensor, *args: Any, **options: Any) -> Any:
        self.check_shape(z)
        with torch.autocast(z.device.type, enabled=False):
            result = method(self, working(z), *args, **options)
        return tuple(part.to(z.dtype) for part in result) if isinstance(result, tuple) else result.to(z.dtype)

    return cast(Method, wrapper)


def first_true(mask: Tensor) -> tuple[int, ...]:
    """Position of the first True."""
    return tuple(int(i) for i in mask.nonzero()[0])


class Likelihood(ABC):
    """p(y|z): how labels are distributed given the network's outputs z.

    A likelihood knows nothing of models. Square roots come as products ``factor(z, xi) = L xi`` with L L^T = I(z);
    their columns, and those of the envelopes below and above I(z), follow here from the products.
    """

    kinds: ClassVar[tuple[str, ...]] = ("symmetric", "householder", "cholesky", "eigen")
    lower_methods: ClassVar[tuple[str, ...]] = ("eigen", "cholesky", "nystrom")
    upper_methods: ClassVar[tuple[str, ...]] = ("diagonal", "laplacian", "tail")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    # Labels

    @abstractmethod
    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """log p(y|z) in nats, shape (...)."""

    @abstractmethod
    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """d log p(y|z) / dz, shape (..., C); its mean under p(y|z) is zero and its covariance is I(z)."""

    @abstractmethod
    def uniform_shape(self, z: Tensor) -> tuple[int, ...]:
        """Shape of the uniform numbers that ``quantile`` turns into one label per position."""

    @abstractmethod
    def quantile(self, z: Tensor, u: Tensor) -> Tensor:
        """Inverse of the distribution function: the smallest y with P(Y <= y) >= u, per uniform number u in (0, 1).

        Labels come in float32 or better (int64 for classes) whatever the dtype of z, because a rounded label is a
        wrong draw.
        """

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw y ~ p(.|z) per position, by inversion of uniform numbers in float64.

        Args:
            z: (..., C).
            generator: where the uniform numbers come from; torch's global one if None.
        """
        self.check_shape(z)
        device = z.device if generator is None else generator.device
        u = torch.rand(self.uniform_shape(z), generator=generator, dtype=torch.float64, device=device)
        # rand covers [0, 1); a zero has no quantile under a density on the whole line
        return self.quantile(z, u.clamp_min(2.0**-54).to(z.device))

    # The metric

    @abstractmethod
    def metric(self, z: Tensor) -> Tensor:
        """I(z) as dense matrices, shape (..., C, C).

        Raises:
            SizeError: they would not fit into memory; ``apply`` and ``factor`` never form them.
        """

    @abstractmethod
    def apply(self, z: Tensor, v: Tensor) -> Tensor:
        """I(z) v in O(C) per position, for v of shape (..., C) or with leading axes (K, ..., C)."""

    def product_at(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """``apply`` at one z, as a function of v: what depends on z alone is computed once for many products."""
        return functools.partial(self.apply, z)

    @abstractmethod
    def trace(self, z: Tensor) -> Tensor:
        """tr I(z), shape (...)."""

    @abstractmethod
    def spectrum_bounds(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Closed-form (lower, upper) bounds on the largest eigenvalue of I(z), each of shape (...)."""

    @abstractmethod
    def top_eigenpair(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Largest eigenvalue of I(z), shape (...), and a unit eigenvector, shape (..., C)."""

    # Square roots

    @abstractmethod
    def noise_size(self, z: Tensor, kind: str = "symmetric") -> int:
        """r, the number of columns of the square root ``kind``."""

    @abstractmethod
    def factor(self, z: Tensor, xi: Tensor, kind: str = "symmetric") -> Tensor:
        """L xi with L L^T = I(z): a cotangent with E[u u^T] = I(z) when xi has mean 0 and covariance 1.

        Args:
            z: (..., C).
            xi: (..., r), r = ``noise_size(z, kind)``; extra leading axes broadcast.
            kind: which square root.
        """

    def columns(self, z: Tensor, kind: str = "symmetric", start: int = 0, stop: int | None = None) -> Tensor:
        """Columns start to stop (default: all r) of the square root L, shape (..., C, stop - start).

        Raises:
            InputError: the slice is not within 0..r.
            SizeError: the slice would not fit into memory; take smaller ones.
        """
        self.check_shape(z)
        size = self.noise_size(z, kind)
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise InputError(
                f"columns start={start} to stop={stop} do not lie within 0..{size}, the columns of kind={kind!r}"
            )
        return self._columns(z, lambda xi: self.factor(z, xi, kind), size, start, stop)

    # Envelopes

    @abstractmethod
    def lower_noise_size(self, z: Tensor, rank: int = 1, method: str = "eigen") -> int:
        """Number of columns of ``lower(z, rank, method)``."""

    @abstractmethod
    def lower_factor(self, z: Tensor, xi: Tensor, rank: int = 1, method: str = "eigen") -> Tensor:
        """``lower(z, rank, method) @ xi`` for xi of shape (..., lower_noise_size), shape (..., C)."""

    def lower(self, z: Tensor, rank: int = 1, method: str = "eigen") -> Tensor:
        """Columns B, shape (..., C, min(rank, rank of I)), with B B^T <= I(z) in the Loewner order for every z.

        The trap: lambda v v^T with a Rayleigh quotient lambda = v^T I v is a lower bound only
        if v is an exact eigenvector, so an unconverged power iteration does not give one. Here every method ends in a
        form that is a bound whatever the vectors: a partial Cholesky factor, or I W (W^T I W)^{-1/2} (Nystrom).

        Args:
            z: (..., C).
            rank: number of columns asked for.
            method: "eigen" (best trace; rank > 1 needs C <= 2048), "cholesky" (closed form), "nystrom" (in between).
        """
        self.check_shape(z)
        size = self.lower_noise_size(z, rank, method)
        return self._columns(z, lambda xi: self.lower_factor(z, xi, rank, method), size, 0, size)

    @abstractmethod
    def upper_noise_size(self, z: Tensor, method: str = "diagonal", rank: int = 8) -> int:
        """Number of columns of ``upper(z, method, rank)``."""

    @abstractmethod
    def upper_factor(self, z: Tensor, xi: Tensor, method: str = "diagonal", rank: int = 8) -> Tensor:
        """``upper(z, method, rank) @ xi`` for xi of shape (..., upper_noise_size), shape (..., C), in O(C)."""

    def upper(self, z: Tensor, method: str = "diagonal", rank: int = 8) -> Tensor:
        """Columns B, shape (..., C, r), with B B^T >= I(z) in the Loewner order for every z.

        Args:
            z: (..., C).
            method: "diagonal", "laplacian" or "tail".
            rank: columns of the exact part, for "tail" alone.
        """
        self.check_shape(z)
        size = self.upper_noise_size(z, method, rank)
        return self._columns(z, lambda xi: self.upper_factor(z, xi, method, rank), size, 0, size)

    # Information

    @abstractmethod
    def divergence(self, z0: Tensor, z1: Tensor) -> Tensor:
        """KL(p(.|z0) || p(.|z1)) in nats, shape (...)."""

    @abstractmethod
    def entropy(self, z: Tensor) -> Tensor:
        """Entropy of p(.|z) in nats, shape (...); differential entropy for densities."""

    # Checks

    def output_size(self, units: int) -> int:
        """C, the number of network outputs for ``units`` labels (or classes) per position; no data needed."""
        return units

    @abstractmethod
    def check_shape(self, z: Tensor) -> None:
        """Raise InputError where z cannot be outputs of this likelihood, from shape and dtype alone (no sync)."""

    def check(self, z: Tensor, y: Tensor | None = None) -> None:
        """Raise a clear error where outputs or labels do not fit this likelihood. Other methods look at shapes only.

        Args:
            z: (..., C).
            y: labels, if there are any. Mask ignore_index (-100) positions before.

        Raises:
            InputError: z has a wrong shape or dtype or NaN in it; y has a wrong shape or dtype or a value out of
                range. The message names the first offending value and its position.
        """
        self.check_shape(z)
        bad = self._bad_outputs(z)
        if bool(bad.any()):
            where = first_true(bad)
            # for a row of classes its largest entry is the one at fault: NaN if any is, -inf if all are
            value = z[where].max().item()
            raise InputError(f"{self}: output {value} at position {where} is unusable; {self._outputs_rule}")
        if y is None:
            return
        y = self._aligned(z, y)
        bad = self._bad_labels(z, y)
        if bool(bad.any()):
            where = first_true(bad)
            raise InputError(
                f"{self}: label {y[where].item()} at position {where} is out of range; {self._labels_rule(z)}"
            )

    _outputs_rule: ClassVar[str]

    @abstractmethod
    def _bad_outputs(self, z: Tensor) -> Tensor:
        """Where outputs are unusable: a mask over leading axes of z."""

    @abstractmethod
    def _labels_rule(self, z: Tensor) -> str:
        """What labels have to be, and the remedy."""

    @abstractmethod
    def _bad_labels(self, z: Tensor, y: Tensor) -> Tensor:
        """Where labels are out of range: a mask of the shape of y."""

    @abstractmethod
    def _aligned(self, z: Tensor, y: Tensor) -> Tensor:
        """y with its trailing axes those of a label of z, its dtype that of labels.

        Raises:
            InputError: it has another shape or dtype.
        """

    # Shared by subclasses

    def _require_floating(self, z: Tensor) -> None:
        if not isinstance(z, Tensor) or not z.is_floating_point():
            given = f"a tensor of dtype {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
            raise InputError(f"{self}: z must be a floating-point tensor of model outputs; got {given}")
        if z.dim() == 0:
            raise InputError(f"{self}: z must have shape (..., C); got a scalar, use z.reshape(1) for one output")

    def _require_noise(self, xi: Tensor, size: int, what: str) -> None:
        if xi.dim() == 0 or xi.shape[-1] != size:
            raise InputError(
                f"{self}: xi has shape {tuple(xi.shape)}; its last axis must be {size}, the columns of {what}"
            )

    def _rank(self, rank: int, limit: int) -> int:
        if not isinstance(rank, int) or rank < 1:
            raise InputError(f"rank={rank!r} must be a whole number from 1; beyond {limit} the lower envelope is exact")
        return min(rank, limit)

    def _kind(self, kind: str) -> str:
        return choose("kind", kind, self.kinds)

    def _lower_method(self, method: str) -> str:
        return choose("method", method, self.lower_methods)

    def _upper_method(self, method: str) -> str:
        return choose("method", method, self.upper_methods)

    @staticmethod
    def _columns(z: Tensor, product: Callable[[Tensor], Tensor], size: int, start: int, stop: int) -> Tensor:
        """Columns of a factor of which only the product with a vector is known, at the cost of one product each."""
        count = stop - start
        needed = 2 * count * (z.numel() + size) * working_dtype(z).itemsize
        require_memory(
            f"{count} columns for outputs of shape {tuple(z.shape)}", needed, "take fewer at a time (start=, stop=)"
        )
        basis = torch.zeros(count, size, dtype=working_dtype(z), device=z.device)
        basis.diagonal(start).fill_(1.0)
        return product(basis.view(count, *[1] * (z.dim() - 1), size)).movedim(0, -1)


def require_dense(z: Tensor, remedy: str) -> None:
    """Refuse one dense C x C float64 matrix per position where that is beyond memory."""
    outputs = z.shape[-1]
    require_memory(
        f"dense {outputs} x {outputs} matrices for {math.prod(z.shape[:-1])} positions",
        16 * z.numel() * outputs,
        remedy,
    )
