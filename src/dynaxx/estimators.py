"""An estimator is nothing but a choice of cotangents in output space.

Each gives cotangents U (K, N, P, C) with E[sum_k U_nk U_nk^T] = I(z_n) (or what it stands for), block-diagonal over
positions P, and the same thing as a product, ``product_at``. F = (1/N) sum_n sum_k (J_n^T U_nk)(J_n^T U_nk)^T follows,
whatever the model and the form.

Random estimators draw from a counter keyed by (seed, global example index), so batching and sharding change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial

import torch
from torch import Tensor

from dynaxx import counter
from dynaxx.errors import InputError, choose
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Output

SIGNS, LABELS = 0, 1  # streams of the counter
SIGN_ENTRIES = 2**23  # signs that exist at one time
FACTORS = ("symmetric", "householder", "cholesky", "eigen")


class Estimator:
    """Cotangents for one output.

    Args:
        likelihood: what the outputs mean.
        samples: draws per example; 0 for an estimator without randomness.
        seed: of the counter.
        group: examples whose gradients are summed before anything is squared: 1, another number, or 0 for the whole
            batch.
    """

    def __init__(self, likelihood: Likelihood, samples: int = 0, seed: int = 0, group: int = 1) -> None:
        self.likelihood, self.samples, self.seed, self.group = likelihood, samples, seed, group

    @property
    def samples_metric(self) -> bool:
        """Whether it is a random estimate of the metric itself, so that exact parts may stand in for sampled ones."""
        return False

    def number(self, output: Output) -> int:
        """K, how many cotangents an example has in all."""
        raise NotImplementedError

    def cotangents(self, output: Output, keys: Tensor, start: int, stop: int) -> Tensor:
        """Cotangents start to stop - 1, shape (stop - start, N, P, C), masked.

        Args:
            keys: (N,) global example indices.
        """
        raise NotImplementedError

    def chunks(self, output: Output, keys: Tensor, size: int) -> Iterator[Tensor]:
        """All cotangents, at most ``size`` at a time."""
        number = self.number(output)
        for start in range(0, number, size):
            yield self.cotangents(output, keys, start, min(start + size, number))

    def again(self, samples: int) -> Estimator:
        """The same estimator with another number of samples and draws of its own, to learn its error from."""
        twin = copy(self)
        twin.samples, twin.seed = samples, self.seed ^ 0x5EED5EED
        return twin

    def variance_factor(self, z: Tensor) -> float:
        """Variance of the mean over ``samples`` draws, relative to independent ones."""
        return 1.0

    def product_at(self, output: Output, keys: Tensor) -> Callable[[Tensor], Tensor]:
        """w -> sum_k U_nk (U_nk . w_n) for w of shape (N, P, C), groups of examples taken together."""
        return partial(self._apply, output, keys)

    def _apply(self, output: Output, keys: Tensor, w: Tensor) -> Tensor:
        total = torch.zeros_like(w)
        count = len(w)
        size = self.group or count
        where = torch.arange(count, device=w.device) // size
        for u in self.chunks(output, keys, 1):
            products = (u[0] * w).sum((1, 2))
            if size > 1:
                products = products.new_zeros(int(where[-1]) + 1).index_add_(0, where, products)[where]
            total += u[0] * products[:, None, None]
        return total


def _masked(u: Tensor, output: Output) -> Tensor:
    """A position of weight m contributes m I(z): its cotangents are scaled by sqrt m."""
    return u if output.mask is None else u * output.mask.sqrt()[..., None]


class Columns(Estimator):
    """All columns of a matrix B(z), one position at a time: F built from B B^T, without noise. K = P r."""

    def size(self, z: Tensor) -> int:
        """r, the number of columns."""
        raise NotImplementedError

    def factor(self, z: Tensor, xi: Tensor) -> Tensor:
        """B xi."""
        raise NotImplementedError

    def number(self, output: Output) -> int:
        return output.z.shape[1] * self.size(output.z)

    def cotangents(self, output: Output, keys: Tensor, start: int, stop: int) -> Tensor:
        z = output.z.detach()
        rank = self.size(z)
        out = z.new_zeros(stop - start, *z.shape)
        for place in range(start // rank, math.ceil(stop / rank)):
            first, last = max(start, place * rank), min(stop, (place + 1) * rank)
            basis = torch.zeros(last - first, 1, rank, dtype=z.dtype, device=z.device)
            basis[:, 0].diagonal(first - place * rank).fill_(1)
            out[first - start : last - start, :, place] = self.factor(z[:, place], basis)
        return _masked(out, output)


class Factor(Columns):
    """A square root of the metric, whose columns give F without noise.

    Args:
        kind: "symmetric", "householder", "cholesky" or "eigen". They differ in the variance of random signs; of the
            columns themselves Cholesky and Householder have the fewest (C - 1 for the categorical likelihood).
    """

    def __init__(self, likelihood: Likelihood, kind: str = "cholesky") -> None:
        super().__init__(likelihood)
        self.kind = choose("factor", kind, FACTORS)

    def size(self, z: Tensor) -> int:
        return self.likelihood.noise_size(z, self.kind)

    def factor(self, z: Tensor, xi: Tensor) -> Tensor:
        return self.likelihood.factor(z, xi, self.kind)

    def product_at(self, output: Output, keys: Tensor) -> Callable[[Tensor], Tensor]:
        product, mask = self.likelihood.product_at(output.z.detach()), output.mask
        return product if mask is None else lambda w: product(w) * mask[..., None]


class Lower(Columns):
    """Columns B with B B^T <= I(z): the operator is a lower bound of F in the Loewner order, for every input."""

    def __init__(self, likelihood: Likelihood, rank: int = 1, method: str = "eigen") -> None:
        super().__init__(likelihood)
        self.rank, self.method = rank, method

    def size(self, z: Tensor) -> int:
        return self.likelihood.lower_noise_size(z, self.rank, self.method)

    def factor(self, z: Tensor, xi: Tensor) -> Tensor:
        return self.likelihood.lower_factor(z, xi, self.rank, self.method)


class Upper(Lower):
    """Columns B with B B^T >= I(z): the operator is an upper bound of F in the Loewner order, for every input."""

    def size(self, z: Tensor) -> int:
        return self.likelihood.upper_noise_size(z, self.method, self.rank)

    def factor(self, z: Tensor, xi: Tensor) -> Tensor:
        return self.likelihood.upper_factor(z, xi, self.method, self.rank)


class Hutchinson(Estimator):
    """u = B xi with random signs xi: E u u^T = B B^T (Sun 2025). One sign vector per position, squares taken per
    example or group.

    Args:
        matrix: B as an estimator of columns: ``Factor`` for the metric itself, ``Lower`` or ``Upper`` for a bound of
            it.
        probes: "rademacher" (independent signs) or "hadamard" (an example's samples are orthogonal: rows of a Hadamard
            matrix, each entry times a sign of its own). With S samples of n rows the variance is (n - S) / (n - 1)
            times that of independent signs, and zero at S = n.
    """

    def __init__(
        self, matrix: Columns, samples: int = 1, seed: int = 0, group: int = 1, probes: str = "rademacher"
    ) -> None:
        super().__init__(matrix.likelihood, samples, seed, group)
        self.matrix, self.probes = matrix, choose("probes", probes, ("rademacher", "hadamard"))

    def number(self, output: Output) -> int:
        return self.samples

    def cotangents(self, output: Output, keys: Tensor, start: int, stop: int) -> Tensor:
        z = output.z.detach()
        signs = self._hadamard if self.probes == "hadamard" else self._rademacher
        positions, number = z.shape[1], stop - start

        def some(first: int, last: int) -> Tensor:
            part = z[:, first:last]
            drawn = [signs(part, keys, sample, first, positions) for sample in range(start, stop)]
            return self.matrix.factor(part, drawn[0][None] if number == 1 else torch.stack(drawn))

        # a few positions at a time: signs and their 64 bits never exist for a whole batch of tokens x vocabulary
        step = max(1, SIGN_ENTRIES // max(1, number * len(z) * z.shape[2]))
        if step >= positions:
            out = some(0, positions)
        else:
            out = z.new_empty(number, *z.shape)
            for first in range(0, positions, step):
                out[:, :, first : first + step] = some(first, first + step)
        return _masked(out if self.samples == 1 else out.div_(math.sqrt(self.samples)), output)

    def again(self, samples: int) -> Estimator:
        twin = super().again(samples)
        assert isinstance(twin, Hutchinson)
        twin.probes = "rademacher"  # orthogonal draws are not independent: their gain is variance_factor
        return twin

    @property
    def samples_metric(self) -> bool:
        return isinstance(self.matrix, Factor)

    def variance_factor(self, z: Tensor) -> float:
        if self.probes == "rademacher":
            return 1.0
        rows = _hadamard_rows(z.shape[1] * self.matrix.size(z))
        return (rows - self.samples) / (rows - 1) if rows > 1 else 0.0

    def _rademacher(self, z: Tensor, keys: Tensor, sample: int, first: int, positions: int) -> Tensor:
        # one stream per sample, so that more samples extend fewer
        size = self.matrix.size(z)
        return _signs(self.seed, keys, (z.shape[1], size), SIGNS + 2 * sample, z.dtype, first * size)

    def _hadamard(self, z: Tensor, keys: Tensor, sample: int, first: int, positions: int) -> Tensor:
        size = self.matrix.size(z)
        rows = _hadamard_rows(positions * size)
        if self.samples > rows:
            raise InputError(
                f"samples={self.samples} orthogonal probes do not exist among {rows} signs; ask for at most {rows}"
            )
        flips = _signs(self.seed, keys, (z.shape[1], size), SIGNS, z.dtype, first * size)
        order = counter.bits(self.seed, torch.zeros(1, dtype=torch.int64), (rows,), stream=SIGNS + 2)[0].argsort()
        # entry j of row i is (-1)^(number of ones that i and j share); j runs over positions and columns together
        shared = torch.arange(first * size, (first + z.shape[1]) * size) & order[sample]
        for shift in (32, 16, 8, 4, 2, 1):
            shared = shared ^ (shared >> shift)
        return flips * (1 - 2 * (shared & 1)).view(z.shape[1], size).to(z)


def _signs(seed: int, keys: Tensor, shape: tuple[int, int], stream: int, dtype: torch.dtype, skip: int) -> Tensor:
    """Rademacher signs (N, *shape), 64 from each hashed word: over a vocabulary, hashing would cost half a gradient.

    Args:
        skip: signs of each example that were taken before.
    """
    first, stop = skip // 64, -(-(skip + math.prod(shape)) // 64)
    words = counter.bits(seed, keys, (stop - first,), stream, skip=first)
    places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=words.device)
    bits = (words.view(torch.uint8)[:, :, None] & places).flatten(1).ne(0)
    start = skip - 64 * first
    return bits[:, start : start + math.prod(shape)].to(dtype).mul_(2).sub_(1).view(len(keys), *shape)


def _hadamard_rows(size: int) -> int:
    """The smallest power of two that is at least ``size``.

    Raises:
        InputError: beyond 2^20, where drawing rows without repetition would cost more than it gains.
    """
    if size > 2**20:
        raise InputError(f"orthogonal probes over {size} signs an example gain nothing; use probes='rademacher'")
    return 1 << max(0, size - 1).bit_length()


class MonteCarlo(Estimator):
    """Scores of labels drawn from the model: u = d log p(y|z)/dz with y ~ p(.|z)."""

    @property
    def samples_metric(self) -> bool:
        return True

    def number(self, output: Output) -> int:
        return self.samples

    def cotangents(self, output: Output, keys: Tensor, start: int, stop: int) -> Tensor:
        z = output.z.detach()
        shape = tuple(self.likelihood.uniform_shape(z)[1:])
        draws = []
        for sample in range(start, stop):
            uniform = counter.uniform(self.seed, keys, shape, stream=LABELS + 2 * sample)
            draws.append(self.likelihood.score(z, self.likelihood.quantile(z, uniform)))
        return _masked(torch.stack(draws) / math.sqrt(self.samples), output)


class Empirical(Estimator):
    """Scores of the observed labels.

    Not an estimate of the Fisher information unless the labels follow the model (Kunstner et al. 2019).
    """

    def number(self, output: Output) -> int:
        return 1

    def cotangents(self, output: Output, keys: Tensor, start: int, stop: int) -> Tensor:
        if output.targets is None:
            raise InputError(
                "estimator='empirical' needs labels, and the data has none; give batches (x, y), or use 'exact', "
                "'hutchinson' or 'monte_carlo'"
            )
        score = self.likelihood.score(output.z.detach(), output.targets)
        # a weight m on a position multiplies its log likelihood, so its score is scaled by m itself
        return (score if output.mask is None else score * output.mask[..., None])[None]


ESTIMATORS = ("exact", "hutchinson", "monte_carlo", "empirical", "lower", "upper")


def resolve(
    name: str,
    likelihood: Likelihood,
    *,
    samples: int = 1,
    seed: int = 0,
    factor: str = "symmetric",
    probes: str = "rademacher",
    group: str | int = "example",
    rank: int | None = None,
    method: str | None = None,
) -> Estimator:
    """The estimator of that name.

    Raises:
        InputError: an unknown name (the right ones are listed), or an option that is out of range or does not belong
            to it.
    """
    choose("estimator", name, ESTIMATORS)
    choose("factor", factor, (*FACTORS, "lower", "upper"))
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError(f"samples={samples!r}; expected a whole number of at least 1")
    size = _group_size(name, group)
    bound = name if name != "hutchinson" else factor
    if (rank is not None or method is not None) and bound not in ("lower", "upper"):
        raise InputError(f"rank= and method= belong to the bounds 'lower' and 'upper', not to estimator={name!r}")
    if name in ("exact", "lower", "upper"):
        return _columns(name, likelihood, rank, method)
    if name == "hutchinson":
        return Hutchinson(_columns(factor, likelihood, rank, method), samples, seed, size, probes)
    return MonteCarlo(likelihood, samples, seed, size) if name == "monte_carlo" else Empirical(likelihood)


def _columns(name: str, likelihood: Likelihood, rank: int | None, method: str | None) -> Columns:
    if name == "lower":
        return Lower(likelihood, 1 if rank is None else rank, method or "eigen")
    if name == "upper":
        return Upper(likelihood, 8 if rank is None else rank, method or "diagonal")
    return Factor(likelihood) if name == "exact" else Factor(likelihood, name)


def _group_size(name: str, group: str | int) -> int:
    size = {"example": 1, "batch": 0}.get(group, group) if isinstance(group, str) else group
    if isinstance(size, bool) or not isinstance(size, int) or size < 0 or (size == 0 and group != "batch"):
        raise InputError(f"group={group!r}; expected 'example', 'batch' or a number of examples")
    if size != 1 and name not in ("hutchinson", "monte_carlo"):
        raise InputError(
            f"group={group!r} sums cotangents of several examples, which is right only if they have mean zero; "
            f"estimator={name!r} has not: use 'hutchinson' or 'monte_carlo', or group='example'"
        )
    return size
