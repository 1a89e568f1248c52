"""One look at a model's geometry, on a fixed and named set of examples."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import likelihoods
from dynaxx.assembly.pullback import Pullback
from dynaxx.errors import InputError, SizeError, require_memory
from dynaxx.estimate import Estimate
from dynaxx.fisher import fisher
from dynaxx.likelihoods import Likelihood
from dynaxx.linalg import quadrature
from dynaxx.model.data import Data, map_tensors, tensors
from dynaxx.model.network import Network, Predict
from dynaxx.operators.base import DENSE_SIZE
from dynaxx.operators.gram import Gram
from dynaxx.operators.implicit import GRAM_ROWS, Implicit
from dynaxx.spectrum import SampledSpectrum, Spectrum

GRAM_MEMORY = 2e9  # bytes; beside a training nobody expects a look to take more
QUADRATURE_STEPS = 64
TRACE_SAMPLES = 4  # reverse passes an example for a trace beyond 4096 rows, where all of them are out of reach
LANCZOS_VECTORS = 24  # of length p, for one eigenvalue


@dataclass(frozen=True, eq=False)
class Probe:
    """The examples on which geometry is measured, and how: the protocol behind a curve.

    Numbers of two snapshots can be compared only if they were taken on the same examples in the same way; ``digest``
    says whether.

    Args:
        name: for people; it is stored beside the numbers.
        batch: one batch, or a list of batches that can be read again.
        likelihood: what the outputs mean, as for ``dynaxx.fisher``.
        seed: of what has to be sampled where the exact answer would be too large.
        predict: as for ``dynaxx.fisher``.

    Raises:
        InputError: an empty name, data without examples or that cannot be read twice, or an unknown likelihood.

    >>> probe = Probe("first eight", (torch.ones(8, 2), torch.zeros(8, dtype=torch.long)))
    >>> probe.count, len(probe.digest)
    (8, 64)
    """

    name: str
    batch: Any = field(repr=False)
    likelihood: str | Likelihood = "categorical"
    seed: int = 0
    predict: Predict | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(
                f"probe name {self.name!r} says nothing; name the examples, such as 'digits validation, first 200'"
            )
        likelihoods.resolve(self.likelihood)
        if self.count == 0:
            raise InputError(f"probe {self.name!r} holds no examples; give at least one")

    @cached_property
    def count(self) -> int:
        """Examples."""
        stream = Data(self.batch, torch.device("cpu"), passes="several")
        return sum(batch.count for batch in stream)

    @cached_property
    def dtypes(self) -> frozenset[torch.dtype]:
        """Floating dtypes of its tensors."""
        leaves = [leaf for batch in Data(self.batch, torch.device("cpu")) for leaf in tensors(batch.raw)]
        return frozenset(leaf.dtype for leaf in leaves if leaf.is_floating_point())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the name, the seed, the likelihood and every tensor's shape, dtype and bytes; devices do not
        enter.
        """
        hasher = hashlib.sha256(f"{self.name}|{self.seed}|{likelihoods.resolve(self.likelihood)!r}".encode())

        def add(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                values = leaf.detach().cpu().contiguous()
                hasher.update(f"{tuple(values.shape)}{values.dtype}".encode())
                hasher.update(values.flatten().view(torch.uint8).numpy().tobytes())
            return leaf

        for batch in Data(self.batch, torch.device("cpu")):
            map_tensors(add, batch.raw)
            if isinstance(batch.raw, Mapping):
                hasher.update("|".join(map(str, batch.raw)).encode())
        return hasher.hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """What one look found.

    Args:
        values: name -> number; what was sampled is an Estimate with its standard error.
        spectrum: the eigenvalues, exact up to 4096 Gram rows, else sampled.
        rank_bound: what the rank on the probe cannot exceed, min(p, examples times columns of the metric's root).
        rows: examples times columns of the metric's root, n (C - 1) for a softmax.
        seconds: what it took.
    """

    values: dict[str, float]
    spectrum: Spectrum | SampledSpectrum
    rank_bound: int
    rows: int
    seconds: float

    @property
    def exact(self) -> bool:
        """Whether every eigenvalue was computed."""
        return isinstance(self.spectrum, Spectrum)


def snapshot(
    model: nn.Module,
    probe: Probe,
    *,
    prior_precision: float = 1.0,
    count: int | None = None,
    params: Any = None,
    memory: float | None = None,
) -> Snapshot:
    """Trace, top eigenvalue, effective rank and dimension, posterior and predictive entropy of a model on a probe.

        F = (1/n) sum over the probe of J^T I(z) J;   dynaxx/posterior_entropy = -1/2 sum ln(1 + N l / d),
        dynaxx/effective_dimension = sum N l / (N l + d),   dynaxx/effective_rank = exp(-sum q ln q),
        dynaxx/predictive_entropy = mean over the probe of the entropy of p(y|x), nats. The last stands beside the
        others because a softmax's Fisher goes to zero from mere confidence.

    The model is looked at in evaluation mode and left as it was found: modes, buffers, gradients and random state, so
    that a training with snapshots is bit-equal to one without.

    Args:
        model: any module.
        probe: the examples, and how to look at them.
        prior_precision: d > 0 of the Gaussian prior; with weight decay c on a mean loss over N examples it is c N.
        count: N, the examples the weights were fitted to; default those of the probe.
        params: which parameters, as for ``dynaxx.fisher``.
        memory: bytes that the Gram matrix may take while it is made; default 2 GB, and never more than half of what is
            free. Where it would take more, the spectrum is sampled.

    Returns:
        A Snapshot: ``values`` (six names that start with ``dynaxx/``) and ``spectrum``.

    Raises:
        InputError: as for ``dynaxx.fisher``; prior_precision or count is not positive.

    Cost: up to 4096 Gram rows two sweeps with all columns of the metric and one symmetric eigenvalue problem of that
    size; beyond, four reverse passes for the trace, Lanczos for the top eigenvalue and 512 products (stochastic Lanczos
    quadrature) for the rest.

    Source: Roy & Vetterli 2007 (effective rank); MacKay 1992 (effective dimension).

    >>> probe = Probe("ones", torch.ones(4, 2))
    >>> look = snapshot(nn.Linear(2, 3), probe, count=100)
    >>> sorted(look.values)[0], look.spectrum.dimension
    ('dynaxx/effective_dimension', 9)
    """
    if not prior_precision > 0 or (count is not None and not count > 0):
        raise InputError(f"prior_precision={prior_precision!r}, count={count!r}; both must be positive")
    start = time.perf_counter()
    options: dict[str, Any] = {
        "likelihood": probe.likelihood,
        "seed": probe.seed,
        "predict": probe.predict,
        "params": params,
    }
    with evaluating(model):
        held = spectral(fisher(model, probe.batch, form="implicit", **options), memory)
        spectrum = spectrum_of(held, memory)
        trace = trace_of(held, spectrum, model, probe.batch, options)
        top = top_of(held, spectrum, memory)
        entropy = predictive_entropy(model, probe, params)
    prior: dict[str, Any] = {"prior_precision": prior_precision, "count": count or probe.count}
    values = {
        "dynaxx/trace": trace,
        "dynaxx/top_eigenvalue": top,
        "dynaxx/effective_rank": spectrum.effective_rank(),
        "dynaxx/effective_dimension": spectrum.effective_dimension(**prior),
        "dynaxx/posterior_entropy": spectrum.posterior_entropy(**prior),
        "dynaxx/predictive_entropy": entropy,
    }
    return Snapshot(values, spectrum, held.rank_bound, held.rows, time.perf_counter() - start)


def spectral(operator: Implicit, memory: float | None = None) -> Gram | Implicit:
    """The operator through its Gram matrix where that has few rows and fits; else the operator itself.

    Args:
        memory: as for ``snapshot``.
    """
    if operator.rows > GRAM_ROWS:
        return operator
    needed = gram_bytes(operator)
    if needed > (GRAM_MEMORY if memory is None else memory):
        return operator
    try:
        require_memory("the Gram matrix of the probe", needed, "take a smaller probe")
    except SizeError:
        return operator
    return operator.as_gram


def gram_bytes(operator: Implicit) -> float:
    """What the Gram matrix takes while it is made: the layer inputs and cotangents behind every row, the matrix, its
    decomposition.
    """
    source = operator.source
    assert isinstance(source, Pullback)
    sweeper = source.sweeper
    tape = sweeper.ready
    if tape is None:
        with sweeper.network.guarded():
            tape = sweeper.tape(next(iter(sweeper.data)))
    held = (operator.rows + operator.count) * tape.entries / tape.count * tape.output.z.element_size()
    return held + 3 * 8 * operator.rows**2


def spectrum_of(operator: Gram | Implicit, memory: float | None = None) -> Spectrum | SampledSpectrum:
    """The spectrum, exact from a Gram matrix or few parameters, else sampled: with a basis where that takes no more
    than ``memory``.
    """
    if isinstance(operator, Gram) or operator.shape[0] <= DENSE_SIZE:
        return operator.spectrum()
    basis = QUADRATURE_STEPS * operator.shape[0] * operator.dtype.itemsize
    fits = basis <= (GRAM_MEMORY if memory is None else memory)
    measure = quadrature(operator, steps=QUADRATURE_STEPS, reorthogonalise=fits)
    return SampledSpectrum(measure, count=operator.count, rank_bound=operator.rank_bound)


def trace_of(
    operator: Gram | Implicit,
    spectrum: Spectrum | SampledSpectrum,
    model: nn.Module,
    batch: Any,
    options: Mapping[str, Any],
) -> Estimate:
    """The trace: exact where the spectrum is or rows are few, else from Hutchinson's cotangents, with its error."""
    if isinstance(spectrum, Spectrum) or operator.rows <= GRAM_ROWS:
        return operator.trace()
    found: Estimate = fisher(model, batch, estimator="hutchinson", samples=TRACE_SAMPLES, **options).trace()
    return found


def top_of(operator: Gram | Implicit, spectrum: Spectrum | SampledSpectrum, memory: float | None = None) -> float:
    """The largest eigenvalue; where Lanczos vectors would take more than ``memory``, the largest node of the sampled
    spectrum, which lies below it and after so many products usually at it.
    """
    if isinstance(spectrum, Spectrum):
        return float(spectrum.eigenvalues[:1].sum())
    basis = LANCZOS_VECTORS * operator.shape[0] * operator.dtype.itemsize
    if basis > (GRAM_MEMORY if memory is None else memory):
        return float(spectrum.nodes.max())
    return float(operator.eigenvalues(1)[0])


def predictive_entropy(model: nn.Module, probe: Probe, params: Any = None) -> float:
    """Mean over the probe's examples of the entropy of p(y|x), nats (differential for densities), summed over unmasked
    positions.

    The model must be in evaluation mode where that matters.
    """
    network = Network(model, likelihoods.resolve(probe.likelihood), params, probe.predict)
    total, count = 0.0, 0
    with network.guarded(), torch.no_grad():
        for batch in Data(probe.batch, network.device):
            output = network(batch)
            entropy = network.likelihood.entropy(output.z).double()
            total += float((entropy if output.mask is None else entropy * output.mask).sum())
            count += batch.count
    return total / count


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode is put back at the end, for models that are frozen in parts."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
