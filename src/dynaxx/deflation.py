"""``dynaxx.deflated``:

diagonal and trace with the leading eigenspace taken out, for matrices with few large eigenvalues.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynaxx import counter
from dynaxx.errors import InputError, require_memory
from dynaxx.estimate import Estimate
from dynaxx.operators.gram import Gram
from dynaxx.operators.implicit import Implicit


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

    Cost: 2 reverse-pass-sized products for each sketch column and one for each of ``sketch + samples``; memory M x
        sketch and 2 p.

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
        f"{sketch} sketch columns of {rows} Gram rows and as many gradients",
        8.0 * sketch * (rows + F.shape[0]),
        "ask for a smaller sketch",
    )

    def draw(number: int, stream: int) -> Tensor:
        return counter.signs(seed, torch.arange(rows), (number,), stream, torch.float64).to(F.device)

    image = source.to_rows(source.from_rows(draw(sketch, 0)).to(F.dtype))
    Q = torch.linalg.qr(image.double()).Q
    inside = torch.zeros(F.shape[0], dtype=torch.float64, device=F.device)
    for q in Q.split(8, dim=1):
        inside += source.from_rows(q).square().sum(1)
    if sketch == rows:
        diagonal = inside / count
        return Deflated(diagonal, torch.zeros_like(diagonal), Estimate(float(diagonal.sum())))
    mean = torch.zeros_like(inside)
    spread = torch.zeros_like(inside)
    traces = []
    xi = draw(samples, 1)
    xi -= Q @ (Q.T @ xi)
    for number, column in enumerate(xi.T):
        square = source.from_rows(column[:, None])[:, 0].square()
        traces.append(float(square.sum()))
        delta = square - mean
        mean += delta / (number + 1)
        spread += delta * (square - mean)
    rest = Estimate.mean(traces)
    diagonal = (inside + mean) / count
    stderr = (spread / (samples - 1) / samples).sqrt() / count
    trace = Estimate((float(inside.sum()) + rest) / count, rest.stderr / count, samples, exact=False)
    return Deflated(diagonal, stderr, trace)
