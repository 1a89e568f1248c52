"""Stochastic Lanczos quadrature: tr f(A), log-determinants and the density of eigenvalues."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.linalg.dense import eigvalsh, to_dense
from dynaxx.linalg.probes import signs
from dynaxx.linalg.protocol import Operator, dimension, require_count
from dynaxx.linalg.tridiagonal import krylov, short_recurrence

# Above this order a dense eigendecomposition is no longer small change beside the products.
_DENSE_MOST = 2048
_BASIS_BYTES = 2**29


@dataclass(frozen=True)
class Quadrature:
    """A measure of the eigenvalues: (1/p) tr f(A) = E sum_j w_j f(t_j), one row of nodes t and weights w per probe.

    Args:
        nodes: (probes, steps) float64, CPU.
        weights: (probes, steps) float64, CPU, >= 0, each row sums to 1.
        dimension: p.
        precision: dtype of the products the nodes come from.
        exact: True when ``nodes`` is one row holding all p eigenvalues, each with weight 1/p.
    """

    nodes: Tensor
    weights: Tensor
    dimension: int
    precision: torch.dtype = torch.float64
    exact: bool = False

    def functional(self, f: Callable[[Tensor], Tensor]) -> Estimate:
        """tr f(A) with its standard error over probes.

        The standard error covers the draw of the probes. What remains of the quadrature's own truncation (too few steps
        for an f that is rough on the scale of the spectrum, such as log near 0) is not in it: double ``steps`` to see
        it.

        Args:
            f: elementwise on a float64 tensor.

        Raises:
            InputError: f is NaN or infinite at a node that carries weight.
        """
        values = torch.where(self.weights > 0, f(self.nodes), 0)
        if not bool(torch.isfinite(values).all()):
            worst = float(self.nodes[~torch.isfinite(values)][0])
            raise InputError(
                f"f is NaN or infinite at the eigenvalue {worst:.6g}; damp the operator, or take an f defined there"
            )
        draws = (self.dimension * (self.weights * values).sum(1)).tolist()
        return Estimate(draws[0]) if self.exact else Estimate.mean(draws)

    def density(self, grid: Tensor, width: float) -> Tensor:
        """The density of eigenvalues smoothed by a Gaussian: phi(x) = E sum_j w_j N(x; t_j, width^2).

        Args:
            grid: (g,) where to evaluate, in units of the eigenvalues.
            width: standard deviation of the Gaussian, in the same units; below the distance between nodes the density
                turns spiky.

        Returns:
            (g,) float64; integrates to 1.
        """
        if not width > 0:
            raise InputError(f"width={width!r} is not a number > 0; a hundredth of the range of eigenvalues is a start")
        x = (grid.detach().to("cpu", torch.float64)[:, None] - self.nodes.flatten()) / width
        bumps = torch.exp(-x.square() / 2) / (width * math.sqrt(2 * math.pi))
        return bumps @ self.weights.flatten() / len(self.weights)


def quadrature(
    op: Operator, *, probes: int = 8, steps: int = 64, seed: int = 0, reorthogonalise: bool = True
) -> Quadrature:
    """Measure the spectrum by Lanczos from random sign vectors.

    From the tridiagonal T of a probe x with |x|^2 = p, nodes are the eigenvalues of T and weights the squares of the
    first components of its eigenvectors, so that x^T f(A) x / p ~ sum_j w_j f(t_j), exact for polynomials of degree 2
    steps - 1; x^T f(A) x has the mean tr f(A). Where probes * steps >= p (and p is at most 2048) the eigenvalues
    themselves cost no more products: they are returned, with ``exact`` set.

    Args:
        op: symmetric operator (p, p).
        probes: independent sign vectors; more of them extend fewer.
        steps: Lanczos steps each, at most p are made.
        seed: of the probes.
        reorthogonalise: keep the basis of a probe, so that the rule is Gauss's to rounding. Without it three vectors of
            length p are enough; converged nodes come several times over and share their weight, so sums over the
            spectrum converge to the same, only later (Greenbaum 1989; Chen, Trogdon & Ubaru 2021).

    Returns:
        Quadrature. A row whose Krylov space is exhausted early is padded with nodes of weight 0.

    Raises:
        SizeError: the basis of one probe, steps vectors of length p, does not fit; reorthogonalise=False needs none.

    Cost: probes * steps products; the probes of a group advance together, one product with (p, group) a step, as many
    to a group as 0.5 GB of basis allows.

    Source: Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 38 (2017).

    >>> measure = quadrature(torch.diag(torch.tensor([1., 2., 3.])))
    >>> measure.exact, measure.functional(torch.square)
    (True, 14)
    """
    p = dimension(op)
    probes, steps = require_count("probes", probes), min(require_count("steps", steps), p)
    if probes * steps >= p and p <= _DENSE_MOST:
        values = eigvalsh(to_dense(op)).cpu()[None]
        return Quadrature(values, torch.full_like(values, 1 / p), p, op.dtype, exact=True)
    group = max(1, _BASIS_BYTES // ((steps if reorthogonalise else 3) * p * op.dtype.itemsize))
    rows = []
    for start in range(0, probes, group):
        x = signs(op, start, min(start + group, probes), seed=seed)
        process = krylov if reorthogonalise else short_recurrence
        alpha, beta, reached = process(op, x.div_(math.sqrt(p)), steps)
        alpha, beta = alpha.cpu().to(torch.float64), beta.cpu().to(torch.float64)
        rows += [_gauss(alpha[:j, i], beta[: j - 1, i], steps) for i, j in enumerate(reached.tolist())]
    nodes, weights = (torch.stack(part) for part in zip(*rows, strict=True))
    return Quadrature(nodes, weights, p, op.dtype)


def _gauss(alpha: Tensor, beta: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (steps,) of the Gauss rule of a tridiagonal matrix (Golub & Welsch 1969)."""
    nodes, vectors = torch.linalg.eigh(torch.diag(alpha) + torch.diag(beta, 1) + torch.diag(beta, -1))
    weights = vectors[0].square()
    missing = steps - len(nodes)
    # Padding repeats a node that is there already, so that an f undefined elsewhere meets nothing new.
    return torch.cat([nodes, nodes[-1:].expand(missing)]), torch.cat(
        [weights / weights.sum(), weights.new_zeros(missing)]
    )


def logdet(op: Operator, damping: float, *, probes: int = 8, steps: int = 64, seed: int = 0) -> Estimate:
    """log det(A + damping I) of a PSD operator, nats, with its standard error over probes.

    Gauss quadrature of the logarithm errs upwards for every probe (its even derivatives are negative), by an amount
    that falls geometrically in steps * sqrt(damping / largest eigenvalue); the standard error does not cover it.

    Args:
        op: symmetric PSD operator (p, p).
        damping: > 0: a singular operator has no log-determinant.
        probes, steps, seed: see ``quadrature``; its exact case holds here.

    Raises:
        InputError: damping is not positive, or the operator has an eigenvalue below -damping.
    """
    if not damping > 0:
        raise InputError(
            f"damping={damping!r} is not a number > 0; without it the log-determinant of a singular operator is "
            "-infinity"
        )
    measure = quadrature(op, probes=probes, steps=steps, seed=seed)
    least = float(measure.nodes.min())
    if least <= -damping:
        raise InputError(
            f"the operator has an eigenvalue near {least:.3g}; log det(A + damping I) needs damping above "
            f"{-least:.3g}, not {damping:g}"
        )
    return measure.functional(lambda t: torch.log(t + damping))
