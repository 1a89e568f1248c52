"""From saliencies to a result: masks, what the rest does about them, and what that is predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dynaxx.compress.criteria import Saliency
from dynaxx.compress.masks import select
from dynaxx.compress.patterns import Pattern
from dynaxx.compress.result import PruningResult, layer_rows


def decide(
    found: Saliency,
    sparsity: float,
    scope: str = "global",
    details: dict[str, Any] | None = None,
    *,
    pattern: Pattern | None = None,
    live: Mapping[str, Tensor] | None = None,
) -> PruningResult:
    """Masks of one sparsity from saliencies that may serve several.

    Raises:
        InputError: as for ``dynaxx.compress.masks.select``.
    """
    masks = select(found.scores, found.ties, sparsity, scope, pattern, live)
    consequence = found.consequence(masks)
    layers = layer_rows(masks, consequence.predicted)
    remarks = [f"{row['name']} loses all of its {row['total']} weights" for row in layers if row["kept"] == 0]
    if found.criterion in ("obd", "fisher"):
        alive = {name: live[name] if live is not None and name in live else ... for name in found.scores}
        still = sum(int((score[alive[name]] == 0).sum()) for name, score in found.scores.items())
        if still:
            remarks.append(
                f"{still} weights have no curvature at all on this data (dead units or inputs); among them magnitude "
                f"decides"
            )
    if found.criterion in ("fisher", "random"):
        remarks.append(f"criterion={found.criterion!r} is a control, not a recommendation")
    if pattern is not None:
        remarks += [
            f"{name} of shape {tuple(score.shape)} is not divided by pattern {pattern.text} and stays whole"
            for name, score in found.scores.items()
            if not pattern.fits(score)
        ]
    report = {
        "criterion": found.criterion,
        "scope": scope,
        "sparsity": float(sparsity),
        "examples": found.count,
        "damping": found.damping,
        **(details or {}),
        "layers": layers,
        "remarks": remarks,
    }
    return PruningResult(masks, found.scores, report, consequence.weights, consequence.total, consequence.predicted)
