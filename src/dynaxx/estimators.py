"""An estimator is nothing but a choice of cotangents in output space.

Each gives cotangents U (K, N, P, C) with E[sum_k U_nk U_nk^T] = I(z_n) (or what it stands for), block-diagonal over
positions P, and the same thing as a product, ``apply``. F = (1/N) sum_n sum_k (J_n^T U_nk)(J_n^T U_nk)^T follows,
whatever the model and the form.

Random estimators draw from a counter keyed by (seed, global example index), so batching and sharding change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

from dynaxx import counter
from dynaxx.errors import InputError, choose
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Output

SIGNS, LABELS = 0, 1  # streams of the counter


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

    def apply(self, output: Output, keys: Tensor, w: Tensor) -> Tensor:
        """sum_k U_nk (U_nk . w_n) for w of shape (N, P, C), groups of examples taken together."""
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


class Exact(Columns):
    """A square root of the metric:

    r = C - 1 columns for the categorical likelihood (Cholesky factor), r = C otherwise.
    """

    def size(self, z: Tensor) -> int:
        return self.likelihood.noise_size(z, "cholesky")

    def factor(self, z: Tensor, xi: Tensor) -> Tensor:
        return self.likelihood.factor(z, xi, "cholesky")

    def apply(self, output: Output, keys: Tensor, w: Tensor) -> Tensor:
        product = self.likelihood.apply(output.z.detach(), w)
        return product if output.mask is None else product * output.mask[..., None]


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
    """u = L xi with random signs xi:

    E u u^T = I(z) (Sun 2025). One sign vector per position, squares taken per example or group.
    """

    def __init__(
        self, likelihood: Likelihood, samples: int = 1, seed: int = 0, group: int = 1, factor: str = "symmetric"
    ) -> None:
        super().__init__(likelihood, samples, seed, group)
        self.kind = choose("factor", factor, ("symmetric", "householder", "cholesky", "eigen"))

    def number(self, output: Output) -> int:
        return self.samples

    def cotangents(self, output: Output, keys: Tensor, start: int, stop: int) -> Tensor:
        z = output.z.detach()
        shape = (z.shape[1], self.likelihood.noise_size(z, self.kind))
        draws = []
        for sample in range(start, stop):
            # one stream per sample, so that more samples extend fewer
            xi = counter.signs(self.seed, keys, shape, stream=SIGNS + 2 * sample, dtype=z.dtype)
            draws.append(self.likelihood.factor(z, xi, self.kind))
        return _masked(torch.stack(draws) / math.sqrt(self.samples), output)


class MonteCarlo(Estimator):
    """Scores of labels drawn from the model: u = d log p(y|z)/dz with y ~ p(.|z)."""

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
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError(f"samples={samples!r}; expected a whole number of at least 1")
    size = {"example": 1, "batch": 0}.get(group, group) if isinstance(group, str) else group
    if isinstance(size, bool) or not isinstance(size, int) or size < 0 or (size == 0 and group != "batch"):
        raise InputError(f"group={group!r}; expected 'example', 'batch' or a number of examples")
    if size != 1 and name not in ("hutchinson", "monte_carlo"):
        raise InputError(
            f"group={group!r} sums cotangents of several examples, which is right only if they have mean zero; "
            f"estimator={name!r} has not: use 'hutchinson' or 'monte_carlo', or group='example'"
        )
    if (rank is not None or method is not None) and name not in ("lower", "upper"):
        raise InputError(f"rank= and method= belong to estimator='lower' and 'upper', not to {name!r}")
    if name == "hutchinson":
        return Hutchinson(likelihood, samples, seed, size, factor)
    if name == "monte_carlo":
        return MonteCarlo(likelihood, samples, seed, size)
    if name == "lower":
        return Lower(likelihood, 1 if rank is None else rank, method or "eigen")
    if name == "upper":
        return Upper(likelihood, 8 if rank is None else rank, method or "diagonal")
    return Exact(likelihood) if name == "exact" else Empirical(likelihood)
