"""Eigenpairs at the ends of the spectrum: thick-restart Lanczos."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from dynaxx.errors import ConvergenceWarning, InputError, choose
from dynaxx.linalg.dense import eigh, to_dense
from dynaxx.linalg.orthogonal import project_out, vanished
from dynaxx.linalg.probes import gaussian
from dynaxx.linalg.protocol import Operator, dimension, product, require_count, require_room

# Up to this order the dense matrix costs no more than a restart or two.
_DENSE_MOST = 64
_ROWS = 2**16


class Eigenpairs(NamedTuple):
    """What ``lanczos`` found: ``values`` descending (k,), unit ``vectors`` (p, k), ``residuals`` |A v - value v| (k,),
    each computed anew from the answer (an eigenvalue of A lies that close to the value), ``converged`` (k,) bool, and
    ``iterations``, the products made (0: from the dense matrix).
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    iterations: int


def lanczos(
    op: Operator,
    k: int,
    *,
    which: str = "largest",
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    block: int = 1,
    seed: int = 0,
) -> Eigenpairs:
    """k eigenpairs of a symmetric operator, with multiplicities.

    A Krylov basis grows until it holds m = k + max(k, 20, 4 block) + block vectors, is condensed to its best Ritz
    vectors and what couples them to the rest, and grows again. The projected matrix is made of the very coefficients
    that orthogonalisation (full, twice) gives, so it is right whatever the basis came from.

    A Krylov space holds one vector (per column of the block) of each eigenspace, so convergence alone would miss copies
    of a multiple eigenvalue. Therefore, once k pairs have converged, they are locked and the search goes on from a
    fresh random vector orthogonal to them, for at least m - k - block vectors, until its own best Ritz value plus
    residual cannot enter the list. If one enters, the search is repeated. When the Krylov space is exhausted (an
    invariant subspace), a fresh random vector takes over likewise.

    Args:
        op: symmetric operator (p, p).
        k: how many, 1 <= k <= p. With m >= p, or p <= 64, the answer comes from the dense matrix, p products.
        which: "largest", "smallest" (algebraically) or "magnitude" (largest in magnitude).
        tolerance: on residuals relative to the largest eigenvalue in magnitude.
        max_iterations: products of the basis block; default max(1000, 20 m).
        block: vectors per product; more than 1 pays where a product with several columns costs little more than with
            one.
        seed: of the start vectors.

    Returns:
        Eigenpairs, values descending whatever ``which``. A ConvergenceWarning is issued where ``converged`` is not all
        True.

    Raises:
        InputError: k, tolerance or which cannot be used.
        SizeError: m + 2 k vectors of length p do not fit.

    Cost: one product with (p, block) per iteration, 4 p m flops per vector to stay orthogonal; memory p (m + 2 k).

    Source: Wu & Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIMAX 22 (2000).

    >>> pairs = lanczos(torch.diag(torch.arange(1., 101.)), 2)
    >>> pairs.values.round().tolist(), pairs.converged.tolist()
    ([100.0, 99.0], [True, True])
    """
    p = dimension(op)
    choose("which", which, ("largest", "magnitude", "smallest"))
    if require_count("k", k) > p:
        raise InputError(f"k={k} eigenpairs of an operator of shape {tuple(op.shape)}; there are {p}")
    if not tolerance > 0:
        raise InputError(f"tolerance={tolerance!r} is not a number > 0; 1e-6 is the default")
    size = k + max(k, 20, 4 * require_count("block", block)) + block
    if p <= max(size, _DENSE_MOST):
        return _dense(op, k, which, tolerance)
    limit = max(1000, 20 * size)
    if max_iterations is not None:
        limit = require_count("max_iterations", max_iterations, -(-k // block), f"k={k} vectors need as many at least")
    require_room("the Lanczos basis", op, size + 2 * k, "ask for fewer eigenpairs")
    space = _Krylov(op, size, block, seed)
    iterations, complete = _search(space, k, which, tolerance, limit)
    values, mixing, _ = space.ritz()
    order = _rank(values, which).argsort(descending=True)[:k]
    order = order[values[order].argsort(descending=True)]
    vectors = space.basis[:, : space.processed] @ mixing[:, order].to(space.basis)
    pairs = _answer(op, values[order], vectors, float(values.abs().max()), tolerance, iterations)
    missing = int((~pairs.converged).sum())
    if missing or not complete:
        warnings.warn(
            f"lanczos stopped after {iterations} products (max_iterations={limit}): {missing} of {k} eigenpairs have "
            f"residuals above tolerance={tolerance:g} (worst {float(pairs.residuals.max()):.2g}, largest eigenvalue "
            f"{float(values.abs().max()):.3g})"
            + ("" if complete else ", and the search for further copies of multiple eigenvalues had not ended")
            + f"; raise max_iterations, or a tolerance that {op.dtype} can meet",
            ConvergenceWarning,
            stacklevel=2,
        )
    return pairs


def _search(space: "_Krylov", k: int, which: str, tolerance: float, limit: int) -> tuple[int, bool]:
    """Grow and restart until k pairs have converged and a search beside them found no other: (products made, whether
    that ended).
    """
    rows = space.size - k - space.block
    keep = k + rows // 2
    locked: Tensor | None = None
    since = 0
    space.extend_at_random()
    for iteration in range(1, limit + 1):
        space.expand()
        since += space.block
        values, mixing, residuals = space.ritz()
        rank = _rank(values, which)
        order = rank.argsort(descending=True)
        best, rest = order[:k], order[k : k + 1]
        slack = tolerance * values.abs().max()
        if len(best) == k and bool((residuals[best] <= slack / 2).all()):
            if locked is None or bool(((rank[best] - locked).abs() > slack).any()):
                if locked is None or since >= rows:
                    locked, since = rank[best], 0
                    space.restart(best, values, mixing, fresh=True)
                    continue
            elif since >= rows and bool((rank[rest] + residuals[rest] <= rank[best].min() + slack).all()):
                return iteration, True
        if space.full and iteration < limit:
            space.restart(order[:keep], values, mixing)
    return limit, False


def _rank(values: Tensor, which: str) -> Tensor:
    """What makes an eigenvalue wanted: the larger the better."""
    return {"largest": values, "smallest": -values, "magnitude": values.abs()}[which]


class _Krylov:
    """An orthonormal basis (p, size), its projected matrix, and the block of vectors that A has not been applied to
    yet.
    """

    def __init__(self, op: Operator, size: int, block: int, seed: int) -> None:
        self.op, self.size, self.block, self.seed = op, size, block, seed
        # one vector after another in memory: products with a few columns then run at several times the speed
        self.basis = torch.zeros(size, op.shape[0], dtype=op.dtype, device=op.device).T
        # Row i, column j: <q_i, A q_j>, known for the first ``processed`` columns.
        self.projected = torch.zeros(size, size, dtype=torch.float64)
        self.processed = self.filled = 0
        self.drawn = 0
        self.scale = torch.zeros((), dtype=op.dtype, device=op.device)

    @property
    def full(self) -> bool:
        return self.filled + self.block > self.size

    def extend_at_random(self) -> None:
        """Append a block of random directions orthogonal to the basis."""
        for _ in range(self.block):
            self._append_random()

    def _append_random(self) -> None:
        draw = gaussian(self.op, self.drawn, seed=self.seed)[:, None]
        self.drawn += 1
        _, rest = project_out(self.basis[:, : self.filled], draw)
        self.basis[:, self.filled] = (rest / rest.norm())[:, 0]
        self.filled += 1

    def expand(self) -> None:
        """Apply A to the waiting block; what it adds to the basis becomes the next one."""
        first, last = self.processed, self.filled
        images = product(self.op, self.basis[:, first:last])
        self.scale = torch.maximum(self.scale, images.norm(dim=0).max())
        inside, rest = project_out(self.basis[:, :last], images)
        for i in range(last - first):
            column, left = first + i, rest[:, i : i + 1]
            if (
                self.filled > last
            ):  # against the block's own new vectors; where little is left, traces of the old ones return
                onto, left = project_out(self.basis[:, : self.filled], left)
                self.projected[last : self.filled, column] = onto[last:, 0].to(self.projected)
            norm = left.norm()
            if bool(vanished(norm, self.scale)):
                self._append_random()
            else:
                self.projected[self.filled, column] = norm.to(self.projected)
                self.basis[:, self.filled] = (left / norm)[:, 0]
                self.filled += 1
        self.projected[:last, first:last] = inside.to(self.projected)
        self.projected[first:last, :first] = self.projected[:first, first:last].T
        own = self.projected[first:last, first:last]
        self.projected[first:last, first:last] = (own + own.T) / 2
        self.processed = last

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values, their coordinates in the basis (columns), and the norms of their residuals."""
        values, mixing = torch.linalg.eigh(self.projected[: self.processed, : self.processed])
        coupling = self.projected[self.processed : self.filled, : self.processed]
        return values, mixing, (coupling @ mixing).norm(dim=0)

    def restart(self, chosen: Tensor, values: Tensor, mixing: Tensor, fresh: bool = False) -> None:
        """Condense the basis to the chosen Ritz vectors and the waiting block, or, ``fresh``, random directions in its
        place.
        """
        kept, waiting = len(chosen), 0 if fresh else self.filled - self.processed
        coupling = self.projected[self.processed : self.filled, : self.processed] @ mixing[:, chosen]
        turn = mixing[:, chosen].to(self.basis)
        for rows in self.basis.split(_ROWS):  # by rows, in place: no second basis
            rows[:, : kept + waiting] = torch.cat(
                [rows[:, : self.processed] @ turn, rows[:, self.processed : self.processed + waiting]], 1
            )
        self.projected.zero_()
        self.projected[:kept, :kept] = torch.diag(values[chosen])
        self.projected[kept : kept + waiting, :kept] = coupling[:waiting]
        self.processed, self.filled = kept, kept + waiting
        if fresh:
            self.extend_at_random()


def _dense(op: Operator, k: int, which: str, tolerance: float) -> Eigenpairs:
    values, vectors = eigh(to_dense(op))
    order = _rank(values, which).argsort(descending=True)[:k].sort().values
    return _answer(op, values[order], vectors[:, order].to(op.dtype), float(values.abs().max()), tolerance, 0)


def _answer(
    op: Operator, values: Tensor, vectors: Tensor, largest: float, tolerance: float, iterations: int
) -> Eigenpairs:
    values = values.to(dtype=op.dtype, device=op.device)
    residuals = (product(op, vectors) - values * vectors).norm(dim=0)
    converged = residuals <= tolerance * largest
    return Eigenpairs(values, vectors, residuals, converged, iterations)
