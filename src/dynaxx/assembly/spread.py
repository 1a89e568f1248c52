"""The standard error of a sampled diagonal, entry by entry, measured between independent draws."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from dynaxx.assembly.entries import DiagonalCollector
from dynaxx.assembly.sweep import Sweeper, bar
from dynaxx.errors import InputError
from dynaxx.model.data import Batch

FREEDOM = 32  # degrees of freedom that one batch gives: a standard error from 32 is right to about an eighth


@torch.inference_mode(False)
def diagonal_stderr(sweeper: Sweeper, *, head: bool = False) -> Tensor:
    """Root of the variance of every entry of the diagonal that ``sweeper`` samples, (p,).

        Var F_ii = (v / N^2) sum_b  (1 / (S (S - 1))) sum_s (D_bsi - mean_s D_bsi)^2,
        D_bsi = the squares of draw s summed over the examples of block b

    The draws are those the diagonal is the mean of. Differences between examples are no sampling error, so draws are
    compared within a block of the same examples; blocks are independent, so their variances add, and the more there
    are, the surer the sum. v is 1 for independent draws. Orthogonal ones are S of n rows without replacement, and v =
    (n - S)/n.

    Args:
        sweeper: of an estimator with at least two draws per example.
        head: whether the diagonal took the head in closed form; its entries then have no error.

    Raises:
        InputError: one draw per example, data that cannot be read again, or a model that has changed since.

    Cost: one sweep, a reverse pass for each draw; memory 2 p, and the squares of a draw.

    Source: the variance of a mean of independent draws; for orthogonal draws the finite population correction (Cochran,
    Sampling Techniques, 1977, section 2.6).
    """
    estimator, network = sweeper.estimator, sweeper.network
    samples = estimator.samples
    if samples < 2:
        raise InputError(
            f"samples={samples} draw per example has no spread to measure: squares of different examples differ, and "
            f"that is no sampling error; make the diagonal with fisher(..., samples=2) or more, or ask "
            f"predicted_error()"
        )
    sweeper.data.require_repeatable()
    try:
        sweeper.require_unchanged()
    except InputError:
        raise InputError(
            "the model's parameters have changed since this diagonal was sampled, so its error can no longer be "
            "measured; ask for F.diagonal_stderr() before the training goes on"
        ) from None
    layout, count = network.layout, 0
    dtype = torch.promote_types(layout.dtype, torch.float32)
    variance, mean = (torch.zeros(layout.size, dtype=dtype, device=layout.device) for _ in range(2))
    kept = 1.0
    with network.guarded(), bar(sweeper.data, sweeper.progress, "batches") as batches:
        for batch in batches:
            for block in _blocks(batch, estimator.group, -(-FREEDOM // (samples - 1))):
                tape, keys = sweeper.tape(block), sweeper.keys(block)
                draw = 0
                for cotangents in sweeper.chunks(tape, keys):
                    for one in cotangents.split(1):
                        collector = DiagonalCollector(layout, head)
                        collector.add(tape, keys, one)
                        square = collector.finish(1, None).diagonal().to(dtype)  # 1/S of the draw's squares
                        draw += 1
                        delta = square - mean if draw > 1 else square
                        mean = mean + delta / draw if draw > 1 else square
                        variance += delta * (square - mean)
                kept = estimator.variance_factor(tape.output.z)
            count += batch.count
    # v as the estimator has it is relative to independent draws, (n - S)/(n - 1); what is compared here are orthogonal
    # draws, which differ by n/(n - 1) more
    kept = kept * (samples - 1) / (samples - kept)
    return (variance * (kept * samples / (samples - 1))).sqrt_().div_(count)


def _blocks(batch: Batch, group: int, number: int) -> Iterator[Batch]:
    """The batch in at most ``number`` blocks of at least two examples, cut between groups; a group of 0 is the whole
    batch."""
    unit = batch.count if group == 0 else max(2, group)
    units = batch.count // unit
    if units < 2:
        yield batch
        return
    pieces = min(number, units)
    edges = [units * i // pieces * unit for i in range(pieces)] + [batch.count]
    for start, stop in pairwise(edges):
        yield batch.part(start, stop)
