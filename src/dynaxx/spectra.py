"""Three spectra on one scale: of the Fisher matrix, of the logits' tangent kernel, of the data.

All are means over examples, F = (1/N) sum J^T I J, Theta = (1/N) J J^T, X^T X / N, decomposed on their smaller side in
float64, with a rounding floor. Divide by the largest eigenvalue to lay their shapes over each other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.eigenspace import prepare, smaller_side, spectrum_of
from dynaxx.errors import InputError, require_memory
from dynaxx.estimators import Columns
from dynaxx.likelihoods import Likelihood
from dynaxx.linalg import symmetric_eigenvalues
from dynaxx.model.data import Batch, Data, tensors
from dynaxx.model.network import Output, Predict
from dynaxx.model.selection import Selector
from dynaxx.spectrum import Spectrum


class Outputs(Columns):
    """One unit cotangent per output: the identity in place of the metric, so that F becomes (1/N) sum J^T J."""

    def size(self, z: Tensor) -> int:
        """C."""
        return z.shape[-1]

    def factor(self, z: Tensor, xi: Tensor) -> Tensor:
        """xi itself."""
        return xi

    def apply(self, output: Output, keys: Tensor, w: Tensor) -> Tensor:
        """w, on the positions that count."""
        return w if output.mask is None else w * output.mask[..., None]


@torch.inference_mode(False)
def fisher_spectrum(
    model: nn.Module,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    estimator: str = "auto",
    params: Selector = None,
    samples: int = 1,
    seed: int = 0,
    predict: Predict | None = None,
    progress: bool = False,
) -> Spectrum:
    """Every eigenvalue of the Fisher matrix, from its smaller side.

        F = (1/N) sum_n J_n^T I(z_n) J_n: eigenvalues of the p x p matrix, or of the N K x N K Gram matrix

    ``fisher(...).spectrum()`` turns to stochastic Lanczos quadrature where neither side is small. This one keeps single
    eigenvalues, which slopes, gaps and pictures need: with both sides beyond 8,192 it combines each example's columns
    at random, as many as fit, and the result is then not marked exact. Such a spectrum is that of an unbiased estimate
    of F, whose rank is the number of combinations: trust its top, not its tail.

    Args, Returns, Raises and Cost: as for ``eigenspace``; eigenvalues alone, so 8 m^2 bytes.

    >>> fisher_spectrum(nn.Linear(3, 2).double(), torch.randn(10, 3).double()).rank
    4
    """
    network, source, chosen = prepare(model, data, likelihood, estimator, params, samples, seed, predict)
    return spectrum_of(smaller_side(network, source, chosen, seed=seed, progress=progress))


@torch.inference_mode(False)
def ntk_spectrum(
    model: nn.Module,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    params: Selector = None,
    seed: int = 0,
    predict: Predict | None = None,
    progress: bool = False,
) -> Spectrum:
    """Every eigenvalue of the tangent kernel of the outputs: the geometry of the Jacobian without the confidence.

        Theta = (1/N) J J^T,   J (N P C, p) the outputs' Jacobian

    A softmax's Fisher matrix goes to zero as the network becomes confident; this one does not. For a Gaussian
    likelihood of unit variance the two have the same spectrum.

    Args:
        likelihood: tells which outputs are masked; its metric is not used.
        others: as for ``fisher_spectrum``; beyond 8,192 on both sides it samples in the same way.

    Cost: as for ``fisher_spectrum`` with C columns per position.

    Source: Jacot, Gabriel & Hongler 2018.

    >>> ntk_spectrum(nn.Linear(3, 2).double(), torch.randn(10, 3).double()).rank
    8
    """
    network, source, _ = prepare(model, data, likelihood, "exact", params, 1, seed, predict)
    return spectrum_of(smaller_side(network, source, Outputs(network.likelihood), seed=seed, progress=progress))


def data_spectrum(data: Any, *, centred: bool = False) -> Spectrum:
    """Every eigenvalue of the correlation matrix of the inputs.

        X^T X / N, or (X - mean)^T (X - mean) / N if centred;   X (N, d) the flattened inputs

    Args:
        data: as for ``fisher``; real inputs, in one pass. Labels are not looked at.
        centred: take the mean out first (the covariance). Without, the first eigenvalue is mostly the mean.

    Returns:
        A Spectrum of dimension d.

    Raises:
        InputError: the inputs are token ids or no tensors, or differ in shape. SizeError: min(N, d) is too large.

    Cost: one pass; the smaller of d x d and N x N in float64, and N d numbers while N < d.

    >>> data_spectrum(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).eigenvalues.tolist()
    [2.0, 0.5]
    """
    rows: list[Tensor] = []
    held = count = 0
    scatter: Tensor | None = None  # of the rows less ``shift``
    shift = total = torch.zeros(0)
    for batch in Data(data, torch.device("cpu")):
        x = _inputs(batch)
        if not count:
            shift = x.mean(0) if centred else torch.zeros_like(x[0])
            total = torch.zeros_like(shift)
        if x.shape[1] != len(shift):
            raise InputError(
                f"batch {batch.index} has {x.shape[1]} inputs per example, the first had {len(shift)}; a correlation "
                f"matrix needs one shape: pad or crop"
            )
        # a shift near the mean, taken out first, keeps the digits that a difference of squares would lose
        require_memory(f"{held + len(x)} inputs of {len(shift)} numbers", 16 * (held + len(x)) * len(shift),
                       "use fewer examples")  # fmt: skip
        rows.append(x - shift)
        held, count = held + len(x), count + len(x)
        total += rows[-1].sum(0)
        if held >= len(shift):  # the d x d side is the smaller one
            if scatter is None:
                _require_side(len(shift))
                scatter = torch.zeros(len(shift), len(shift), dtype=torch.float64)
            for part in rows:
                scatter.addmm_(part.T, part)
            rows, held = [], 0
    d = len(shift)
    if scatter is not None:
        for part in rows:
            scatter.addmm_(part.T, part)
        matrix = scatter / count
        if centred:
            matrix -= torch.outer(total, total) / count**2
    else:
        _require_side(count)
        X = torch.cat(rows)
        matrix = X @ X.T / count
        if centred:
            mean = matrix.mean(0)
            matrix += mean.mean() - mean - mean[:, None]
    bound = min(d, count - 1 if centred else count)
    values = symmetric_eigenvalues(matrix)
    floor = torch.finfo(torch.float64).eps * len(values) * float(values[0].clamp(min=0))
    return Spectrum(values[:bound], dimension=d, count=count, floor=floor, rank_bound=bound)


def _inputs(batch: Batch) -> Tensor:
    """The inputs as rows (n, d), float64."""
    found = list(tensors((batch.args, batch.kwargs)))
    real = [tensor for tensor in found if tensor.is_floating_point() or tensor.dtype == torch.uint8]
    if not real:
        kinds = ", ".join(str(tensor.dtype) for tensor in found)
        raise InputError(
            f"batch {batch.index}: its inputs are {kinds or 'no tensors'}; a correlation matrix needs real numbers. "
            f"For token ids give their embeddings"
        )
    x = torch.cat([tensor.detach().double().flatten(1) if tensor.dim() > 1 else tensor.detach().double()[:, None]
                   for tensor in real], 1)  # fmt: skip
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"batch {batch.index}: its inputs hold nan or inf; clean the data")
    return x


def _require_side(size: int) -> None:
    require_memory(f"the {size} x {size} correlation matrix", 3 * 8 * size**2, "use fewer examples")
