"""Inner products between the gradient rows of two models, layer by layer, without either Jacobian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynaxx.assembly.pullback import Pullback
from dynaxx.errors import require_memory
from dynaxx.model.rules.base import Use, gradients, inner, rows

Span = tuple[int, int, int, int, dict[str, list[Use]]]  # first example, examples, first cotangent, cotangents, uses


def cross_gram(left: Pullback, right: Pullback) -> Tensor:
    """G_left^T G_right, (M_left, M_right) in float64, rows ordered by example, then cotangent.

    Cost: one sweep over the data of each, and the products of one Gram matrix. Memory: 8 M_left M_right bytes, and per
    example the inputs and cotangents of every layer of both models.

    Raises:
        SizeError: the matrix would not fit.
    """
    one, two = _spans(left), _spans(right)
    (n, k), (m, l) = _shape(one), _shape(two)
    require_memory(f"inner products of {n * k} by {m * l} gradients", 8 * n * k * m * l, "use fewer examples")
    out = torch.zeros(n, k, m, l, dtype=torch.float64, device=left.layout.device)
    with torch.no_grad():
        for first, examples, start, columns, uses in one:
            for second, others, begin, width, against in two:
                for name in uses.keys() & against.keys():
                    block = _inner(uses[name], against[name]).permute(1, 0, 3, 2)
                    out[first : first + examples, start : start + columns, second : second + others][
                        ..., begin : begin + width
                    ] += block
    return out.view(n * k, m * l)


def _spans(source: Pullback) -> list[Span]:
    spans: list[Span] = []
    with source.network.guarded():
        for tape, keys in source.sweeper.tapes():
            start = 0
            for cotangents in source.sweeper.chunks(tape, keys):
                spans.append((int(keys[0]), len(keys), start, len(cotangents), tape.pulled(cotangents)))
                start += len(cotangents)
    return spans


def _shape(spans: list[Span]) -> tuple[int, int]:
    """Examples, and cotangents of each."""
    return max(first + examples for first, examples, *_ in spans), max(span[2] + span[3] for span in spans)


def _inner(left: Sequence[Use], right: Sequence[Use]) -> Tensor:
    if {type(use.rule) for use in left} == {type(use.rule) for use in right}:
        return inner(left, right)
    # one model's parameter went the generic way: gradients are the language that both speak
    return torch.tensordot(rows(gradients(left)).double(), rows(gradients(right)).double(), dims=([2], [2]))
