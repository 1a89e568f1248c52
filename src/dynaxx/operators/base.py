"""The verbs every form answers, derived from one thing: the product with a vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dynaxx import linalg
from dynaxx.errors import InputError, choose, require_memory
from dynaxx.estimate import Estimate
from dynaxx.layout import Layout
from dynaxx.spectrum import SampledSpectrum, Spectrum

TOLERANCE = 1e-6  # of iterative eigenvalues, relative to the largest
DENSE_SIZE = 1024  # up to this many parameters p products and one dense decomposition beat any iteration

Vector = TypeVar("Vector", Tensor, Mapping[str, Tensor])


class Eigenpairs(NamedTuple):
    """Eigenvalues (k,) in descending order and their vectors (p, k)."""

    values: Tensor
    vectors: Tensor


class Sampling:
    """What randomness an operator carries. ``None`` in its place stands for no randomness.

    Args:
        samples: draws per example.
        trace_stderr: standard error of the trace, or a function that measures it when it is first asked for: with one
            draw per example it takes extra draws, which nobody should pay for who wants a diagonal.
    """

    def __init__(self, samples: int, trace_stderr: float | Callable[[], float]) -> None:
        self.samples, self._stderr = samples, trace_stderr

    @property
    def trace_stderr(self) -> float:
        """Standard error of the trace."""
        if callable(self._stderr):
            self._stderr = self._stderr()
        return self._stderr


class Operator:
    """A symmetric p x p operator over named parameters.

    Subclasses give ``product``; each overrides the verbs that its structure makes exact or cheap. Vectors come and go
    as tensors (p,) or (p, k), or as dicts name -> tensor with an optional last column axis.

    Args:
        layout: names and shapes of the parameters.
        count: examples behind the operator; it is their mean.
        sampling: randomness of the estimator, or None.
        definite: whether it is positive semi-definite.
    """

    form = "operator"

    def __init__(self, layout: Layout, count: int, sampling: Sampling | None = None, definite: bool = True) -> None:
        self.layout, self.count, self.sampling, self.definite = layout, count, sampling, definite

    # what it is

    @property
    def shape(self) -> tuple[int, int]:
        """(p, p)."""
        return self.layout.size, self.layout.size

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in the order of the coordinates."""
        return self.layout.names

    @property
    def dtype(self) -> torch.dtype:
        """Of vectors that go in and come out."""
        return self.layout.dtype

    @property
    def device(self) -> torch.device:
        """Where vectors live."""
        return self.layout.device

    @property
    def rank_bound(self) -> int:
        """An upper bound on the rank; p where nothing better is known."""
        return self.layout.size

    def ravel(self, values: Mapping[str, Tensor]) -> Tensor:
        """A dict name -> tensor as one vector (p,) or (p, k)."""
        return self.layout.ravel(values)

    def unravel(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector (p,) or (p, k) as a dict name -> tensor."""
        return self.layout.unravel(vector)

    def coverage(self) -> dict[str, str]:
        """How each parameter is represented."""
        return dict.fromkeys(self.names, self.form)

    def __repr__(self) -> str:
        p = self.layout.size
        return f"{type(self).__name__}({p} x {p}, {len(self.names)} parameters, {self.count} examples)"

    # products

    def product(self, vectors: Tensor) -> Tensor:
        """A @ vectors for vectors of shape (p, k)."""
        raise NotImplementedError

    def __matmul__(self, vector: Vector) -> Vector:
        """A @ v, answered in kind."""
        return self._in_kind(self.product, vector)

    def _in_kind(self, function: Any, vector: Any) -> Any:
        if isinstance(vector, Mapping):
            return self.unravel(self._in_kind(function, self.ravel(vector)))
        if not isinstance(vector, Tensor) or vector.dim() not in (1, 2) or len(vector) != self.layout.size:
            got = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise InputError(
                f"expected a tensor of shape ({self.layout.size},) or ({self.layout.size}, k), or a dict by name; got "
                f"{got}"
            )
        with torch.inference_mode(False):
            columns = vector.detach().to(self.device, self.dtype)
            columns = columns.clone() if columns.is_inference() else columns
            out = function(columns if columns.dim() == 2 else columns[:, None])
        return out if vector.dim() == 2 else out[:, 0]

    def quadratic(self, vector: Tensor | Mapping[str, Tensor]) -> Tensor:
        """v^T A v: a scalar tensor for one vector, (k,) for k columns."""
        v = self.ravel(vector) if isinstance(vector, Mapping) else vector
        product = self @ v
        return (v.detach().to(self.device, self.dtype) * product).sum(0)

    def solve(self, vector: Vector, *, damping: float, method: str = "exact") -> Vector:
        """(A + damping I)^{-1} v, answered in kind.

        Args:
            vector: v.
            damping: > 0.
            method: "exact"; or "factored", which differs for K-FAC blocks only: each Kronecker factor is damped by
                itself, which solves another system than A + damping I, for a tenth of the time or less (see
                ``Kronecker``). What a solve prepares is kept for the next one with the same damping.

        Raises:
            InputError: damping is not positive (A is singular for every network of interest), or an unknown method.
        """
        self._require_damping(damping)
        solver = self._solve if choose("method", method, ("exact", "factored")) == "exact" else self._solve_factored
        return self._in_kind(lambda v: solver(v, damping), vector)

    def _solve_factored(self, vectors: Tensor, damping: float) -> Tensor:
        return self._solve(vectors, damping)

    def _solve(self, vectors: Tensor, damping: float) -> Tensor:
        return linalg.cg(self, vectors, damping=damping, tolerance=1e-10 if self.dtype == torch.float64 else 1e-5).value

    @staticmethod
    def _require_damping(damping: float) -> None:
        if not (isinstance(damping, (int, float)) and damping > 0 and math.isfinite(damping)):
            raise InputError(
                f"damping={damping!r}; expected a positive number: a Fisher matrix is singular for every network of "
                f"interest, "
                f"so it has an inverse and a log-determinant only with damping"
            )

    @staticmethod
    def _require_real_log(values: Tensor, damping: float) -> None:
        least = float(values.min())
        if least <= -damping:
            raise InputError(
                f"A + damping I has eigenvalue {least + damping:.3g}, so its log-determinant is not real; raise damping"
            )

    # entries

    def to_dense(self) -> Tensor:
        """The p x p matrix.

        Raises:
            SizeError: it would not fit; products, the diagonal and spectra need no matrix.
        """
        p = self.layout.size
        require_memory(
            f"the dense {p} x {p} matrix",
            p * p * self.dtype.itemsize,
            "use F @ v, F.diagonal(), F.trace() or F.eigenvalues(k), which need no matrix",
        )
        eye = torch.eye(p, dtype=self.dtype, device=self.device)
        out = torch.cat([self.product(block) for block in eye.split(256, dim=1)], 1)
        return (out + out.T) / 2

    def diagonal(self) -> Tensor:
        """The diagonal (p,)."""
        return self.to_dense().diagonal().clone()

    # spectra

    def eigh(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Eigenpairs:
        """The k largest eigenvalues (all without k) with their vectors.

        Args:
            k: how many.
            tolerance: of an iteration: bound on |A v - value v| relative to the largest eigenvalue in magnitude, and
                so on the errors of the values; what structure or size make exact needs none.

        Cost: one dense decomposition for up to 1024 parameters or without k; Lanczos beyond, about 3 k products and
            more the smaller the tolerance.

        Raises:
            InputError: k is not between 1 and p, or the tolerance is not positive.
        """
        k = self._require_k(k)
        if k is None or self.layout.size <= DENSE_SIZE:
            values, vectors = torch.linalg.eigh(self.to_dense().double())
            keep = slice(None, k)
            return Eigenpairs(values.flip(0)[keep].to(self.dtype), vectors.flip(1)[:, keep].to(self.dtype))
        pairs = linalg.lanczos(self, k, tolerance=tolerance)
        return Eigenpairs(pairs.values.to(self.dtype), pairs.vectors)

    def eigenvalues(self, k: int | None = None, *, tolerance: float = TOLERANCE) -> Tensor:
        """The k largest eigenvalues, or all that are known not to be zero by structure, in descending order.

        ``tolerance`` as for ``eigh``.
        """
        k = self._require_k(k)
        if k is None or self.layout.size <= DENSE_SIZE:
            return linalg.symmetric_eigenvalues(self.to_dense().double())[:k].to(self.dtype)
        return self.eigh(k, tolerance=tolerance).values

    def _require_k(self, k: int | None) -> int | None:
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.layout.size):
            raise InputError(f"k={k!r}; expected a whole number between 1 and p = {self.layout.size}")
        return k

    def spectrum(self, k: int | None = None) -> Spectrum | SampledSpectrum:
        """The spectrum, with error bars where it is sampled.

        Exact where structure or size allow, the top k if asked, else by stochastic Lanczos quadrature.
        """
        if k is not None:
            return self._spectrum_of(self.eigenvalues(k), k)
        if self.layout.size <= DENSE_SIZE:
            return self._spectrum_of(self.eigenvalues())
        return SampledSpectrum(linalg.quadrature(self), count=self.count, rank_bound=self.rank_bound)

    def _spectrum_of(self, values: Tensor, k: int | None = None, floor: float | None = None) -> Spectrum:
        """Eigenvalues known one by one, all that are not zero by structure or the k largest."""
        return Spectrum(
            values.double().cpu(),
            dimension=self.layout.size,
            count=self.count,
            exact=self.sampling is None,
            precision=self.dtype,
            floor=floor,
            rank_bound=self.rank_bound,
            partial=k is not None and k < self.rank_bound,
        )

    # scalars

    def trace(self) -> Estimate:
        """Sum of the eigenvalues; exact up to 1024 parameters, else Hutch++ with its standard error."""
        if self.layout.size <= DENSE_SIZE:
            return self._scalar(float(self.diagonal().double().sum()))
        return self._sampled(linalg.hutch_plus_plus(self))

    def logdet(self, damping: float) -> Estimate:
        """log det(A + damping I), nats.

        Raises:
            InputError: damping is not positive.
        """
        self._require_damping(damping)
        if self.layout.size <= DENSE_SIZE:
            values = self.eigenvalues().double()
            self._require_real_log(values, damping)
            return self._scalar(float(torch.log(values + damping).sum()), derived=True)
        return self._sampled(linalg.quadrature(self).functional(lambda x: torch.log(x.clamp(min=0) + damping)))

    def frobenius(self) -> Estimate:
        """Square root of the sum of squared entries."""
        if self.layout.size <= DENSE_SIZE:
            return self._scalar(float(self.to_dense().double().norm()), derived=True)
        return self._sampled(linalg.frobenius(self))

    def _scalar(self, value: float, derived: bool = False) -> Estimate:
        """A number computed without further sampling; where the operator itself was sampled, it carries that error
        (unknown if derived)."""
        if self.sampling is None:
            return Estimate(value)
        return Estimate(value, math.nan if derived else self.sampling.trace_stderr, self.sampling.samples, exact=False)

    def _sampled(self, estimate: Estimate) -> Estimate:
        """A number sampled from the operator; where that was sampled too, its error is not known."""
        if self.sampling is None:
            return estimate
        return Estimate(float(estimate), math.nan, estimate.samples, exact=False)

    # storage

    def save(self, path: str | Path) -> Path:
        """Write the operator as safetensors with JSON metadata; ``dynaxx.load(path)`` reads it back."""
        from dynaxx.operators.storage import save  # storage knows every form, so it stands above them

        return save(self, path)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able facts that rebuild the operator.

        Raises:
            InputError: the form holds no numbers of its own.
        """
        raise InputError(
            f"form={self.form!r} holds the model, not numbers, so it cannot be saved; save form='diagonal', 'kfac', "
            f"'dense' or 'gram'"
        )
