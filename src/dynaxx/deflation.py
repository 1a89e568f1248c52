"""``dynaxx.deflated``: diagonal and trace without the leading eigenspace, for matrices with few large eigenvalues."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynaxx import counter
from dynaxx.errors import InputError, require_memory
from dynaxx.estimate import Estimate
from dynaxx.operators.gram import Gram
from dynaxx.operators.implicit import Implicit

COLUMNS = 8  # columns pulled back together: each call makes every cotangent of the data anew


class Deflated(NamedTuple):
    """A diagonal (p,) with its standard errors (p,), and the trace. Both are unbiased and never negative."""

    diagonal: Tensor
    stderr: Tensor
    trace: Estimate


def deflated(F: Implicit | Gram, *, sketch: int = 16, samples: int = 16, seed: int = 0) -> Deflated:
    """Diagonal and trace of F = (1/N) G G^T by deflation in Gram coordinates.

        Q = orth(K Omega),   diag F = (1/N) [ sum_k (G q_k)^2 + E (G (I - Q Q^T) xi)^2 ]

    The part in the span of Q is exact, the rest is sampled, and because G (I - Q Q^T) is orthogonal to what was taken
    out there is no cross term. Works where the effective rank is well below ``sketch``; on a flat spectrum it is a
    waste, and plain per-example squares (``fisher(..., estimator="hutchinson", form="diagonal")``) are better:
    ``advise`` knows the difference.

    Args:
        F: from ``fisher(..., form="implicit" or "gram")``.
        sketch: columns of Omega; where it reaches the number of Gram rows the answer is exact.
        samples: sign vectors for the rest, at least 2.

    Raises:
        InputError: another operator, or sketch or samples out of range.

    Cost: 2 reverse-pass-sized products for each sketch column and one for each of ``sketch + samples``; memory 2 M
        sketch, 8 gradients and 3 p.

    Source: Meyer et al. 2021 (Hutch++), here in Gram form.
    """
    if not isinstance(F, (Implicit, Gram)):
        raise InputError(
            f"deflated() reads the model through an implicit or a Gram operator; got form={getattr(F, 'form', F)!r}"
        )
    if not (isinstance(sketch, int) and sketch >= 1 and isinstance(samples, int) and samples >= 2):
        raise InputError(f"sketch={sketch!r}, samples={samples!r}; expected sketch >= 1 and samples >= 2")
    source, rows, count = F.source, F.rows, F.count
    sketch = min(sketch, rows)
    require_memory(
        f"{sketch} sketch columns of {rows} Gram rows and {COLUMNS} gradients",
        8.0 * (2 * sketch * rows + (COLUMNS + 3) * F.shape[0]),
        "ask for a smaller sketch",
    )

    def draw(number: int, stream: int) -> Tensor:
        return counter.signs(seed, torch.arange(rows), (number,), stream, torch.float64).to(F.device)

    image = torch.cat(
        [source.to_rows(source.from_rows(some).to(F.dtype)) for some in draw(sketch, 0).split(COLUMNS, dim=1)], 1
    )
    Q = torch.linalg.qr(image.double()).Q
    inside = torch.zeros(F.shape[0], dtype=torch.float64, device=F.device)
    for q in Q.split(COLUMNS, dim=1):
        inside += source.from_rows(q).square().sum(1)
    if sketch == rows:
        diagonal = inside / count
        return Deflated(diagonal, torch.zeros_like(diagonal), Estimate(float(diagonal.sum())))
    mean = torch.zeros_like(inside)
    spread = torch.zeros_like(inside)
    traces = []
    xi = draw(samples, 1)
    xi -= Q @ (Q.T @ xi)
    for some in xi.split(COLUMNS, dim=1):
        for square in source.from_rows(some).square().T:
            traces.append(float(square.sum()))
            delta = square - mean
            mean += delta / len(traces)
            spread += delta * (square - mean)
    rest = Estimate.mean(traces)
    diagonal = (inside + mean) / count
    stderr = (spread / (samples - 1) / samples).sqrt() / count
    trace = Estimate((float(inside.sum()) + rest) / count, rest.stderr / count, samples, exact=False)
    return Deflated(diagonal, stderr, trace)
