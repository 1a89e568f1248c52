"""The head in closed form: where a linear layer's output is the logits, the diagonal of its block needs no sampling.

    F_{W[c,j]} = (1/N) sum_n sum_t I_cc(z_nt) a_ntj^2,      F_{b[c]} = (1/N) sum_n sum_t I_cc(z_nt)

one product per batch, exact, whatever the number of classes. With tied embeddings a row of the table collects h + e,
the head's and the embedding's share; h^2 is the closed form, 2 h e + e^2 is left to the estimator, on the rows of the
example's own tokens. Derived here; for the last layer the second-derivative form of the metric has no
variance (Soen & Sun 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from dynaxx.likelihoods import Categorical
from dynaxx.likelihoods.diagonal import DiagonalLikelihood
from dynaxx.matmul import matmul
from dynaxx.model.rules.base import Use
from dynaxx.model.rules.embedding import EmbeddingWeight
from dynaxx.model.rules.linear import LinearWeight, Shift
from dynaxx.model.tape import Tape

ROWS = 1024  # rows of the table that are looked at together
_RESHAPES = ("ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0", "AliasBackward0")


@dataclass(frozen=True)
class Head:
    """The linear layer whose output is the logits, at the same positions.

    Args:
        weight, bias: canonical names; bias is None where there is none or it is not selected.
        a: (N, P, I), its input.
        tied: the embedding's use comes with the head's under the weight's name.
    """

    weight: str
    bias: str | None
    a: Tensor
    tied: bool


def find_head(tape: Tape, uses: dict[str, list[Use]]) -> Head | None:
    """The head of this tape, if its weight's uses are the head's own and at most an embedding's besides."""
    if tape.group != 1:
        return None
    node: Node | None = tape.output.z.grad_fn
    reached = []
    while node is not None:
        reached.append(node)
        node = node.next_functions[0][0] if node.name() in _RESHAPES else None
    for call in tape.known:
        own = tape.layers.names[call.name]
        if call.edge.node not in reached or call.layer.weight_axes != "oi" or "weight" not in own:
            continue
        held = uses.get(own["weight"], [])
        mine = [use for use in held if type(use.rule) is LinearWeight]
        others = [use for use in held if isinstance(use.rule, EmbeddingWeight)]
        whole = len(mine) == 1 and len(mine) + len(others) == len(held) and len(others) <= 1
        if whole and mine[0].a.shape[1] == tape.output.z.shape[1]:
            bias = own.get("bias")
            single = bias is not None and len(uses.get(bias, [])) == 1 and isinstance(uses[bias][0].rule, Shift)
            return Head(own["weight"], bias if single else None, mine[0].a, bool(others))
    return None


def metric_diagonal(tape: Tape) -> Tensor | None:
    """I_cc(z), (N, P, C), masked; None for a likelihood that does not say."""
    likelihood, z = tape.network.likelihood, tape.output.z.detach()
    if isinstance(likelihood, Categorical):
        log_p = torch.log_softmax(z.to(torch.promote_types(z.dtype, torch.float32)), -1)
        values = log_p.exp() * -torch.expm1(log_p)
    elif isinstance(likelihood, DiagonalLikelihood):
        values = likelihood.information(z)
    else:
        return None
    return values.to(z.dtype) if tape.output.mask is None else values.to(z.dtype) * tape.output.mask[..., None]


def exact_squares(head: Head, metric: Tensor) -> dict[str, Tensor]:
    """Sums over examples and positions of the head's exact squares, by name. One product (C, N P) x (N P, I)."""
    out = {head.weight: matmul(metric.flatten(0, 1).T, head.a.flatten(0, 1).square())}
    if head.bias is not None:
        out[head.bias] = metric.sum((0, 1))
    return out


def tied_rest(uses: list[Use]) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """2 h e + e^2 on the rows that the embedding touches, a few at a time.

    Yields:
        cotangent k; examples (r,); tokens (r,), the rows' places in the table; values (r, D).
    """
    (head,) = (use for use in uses if not isinstance(use.rule, EmbeddingWeight))
    (table,) = (use for use in uses if isinstance(use.rule, EmbeddingWeight))
    assert isinstance(table.rule, EmbeddingWeight)
    examples, tokens, e = table.rule.rows(table.a, table.g)  # (R,), (R,), (K, R, D)
    for k in range(len(e)):
        for piece in torch.arange(len(tokens), device=e.device).split(ROWS):
            n, v = examples[piece], tokens[piece]
            h = torch.einsum("rt,rtd->rd", head.g[k, n, :, v], head.a[n])
            yield k, n, v, (2 * h + e[k, piece]) * e[k, piece]
