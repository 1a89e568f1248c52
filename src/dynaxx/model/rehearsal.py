"""A run on two examples before the real one: is the model deterministic, are examples independent, and where does each
layer keep them?

Nothing here is assumed from shapes alone: a time-first activation whose length happens to equal the batch size would
    fool that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.model.data import Batch
from dynaxx.model.network import Network
from dynaxx.model.tape import Arrangement, Arrangements, Layers, Tape

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # relative; half precision gets 5e-2


def rehearse(network: Network, layers: Layers, batch: Batch, full: Tape) -> Arrangements:
    """Hold a run on the first two examples (one, if there are only two) against the run of the whole batch.

    The shorter run becomes the ``witness`` of the whole one.

    Returns:
        where each call of a known layer, and each meeting of a bare parameter, has its examples; what fits no
        arrangement is left to the generic path.

    Raises:
        InputError: the same input gave two outputs, or an example's output depends on the other examples.
    """
    count = batch.count
    few = min(2, max(1, count - 1))
    part = batch.part(0, few)
    first = Tape(network, layers, part, {call: a for call, a in full.arrangements.items() if a.spread})
    if not _close(full.output.z[:few], first.output.z):
        require_deterministic(network, part)
        raise InputError(
            f"an example's output depends on the other examples of its batch: the first {few} alone give other outputs "
            f"than among {count}. "
            f"Look for batch statistics or for an axis other than 0 that runs over examples (predict= can rearrange it)"
        )
    if [(c.name, c.number) for c in full.calls] != [(c.name, c.number) for c in first.calls]:
        return {}
    out: Arrangements = {}
    for whole, piece in zip(full.calls, first.calls, strict=True):
        arrangement = _arrangement(whole.x, piece.x, count, few, whole.layer.leading(whole.x))
        once = len(whole.x) == 1 < count and whole.x.shape == piece.x.shape
        if whole.spread or (arrangement is None and once and whole.layer.spreads):
            arrangement = Arrangement(spread=True)
        if arrangement is not None:
            out[whole.name, whole.number] = arrangement
    return out | _meetings(full, first)


def _meetings(full: Tape, first: Tape) -> Arrangements:
    """Where bare parameters meet the examples: along the one axis that differs between the runs."""
    out: Arrangements = {}
    pieces = {(piece.name, piece.number): piece for piece in first.meetings}
    for whole in full.meetings:
        key = (whole.name, whole.number)
        if key in pieces and len(pieces[key].shape) == len(whole.shape):
            piece = pieces[key]
            differ = [axis for axis, size in enumerate(whole.shape) if size != piece.shape[axis]]
            if len(differ) == 1 and differ[0] in whole.axes(full.count) and differ[0] in piece.axes(first.count):
                out[key] = Arrangement(differ[0], checked=False)
    full.witness = first if out else None
    return out


def spread_out(tape: Tape, learnt: Arrangements) -> tuple[Tape, Arrangements]:
    """Run again with the outputs of layers that are called once for all examples expanded, if the model's outputs stay
    the same.

    Returns:
        the tape to use, arranged, and what holds for it; layers for which expanding did not work are left to the
        generic path.
    """
    if all(call.spread or not learnt[key].spread for call in tape.calls if (key := (call.name, call.number)) in learnt):
        tape.arrange(learnt)
        return tape, learnt
    try:
        again = Tape(tape.network, tape.layers, tape.batch, learnt, tape.group)
        if _close(again.output.z, tape.output.z):
            again.witness = tape.witness
            return again, learnt
    except RuntimeError:  # the axis of 1 was more than something to broadcast
        pass
    kept = {call: arrangement for call, arrangement in learnt.items() if not arrangement.spread}
    tape.arrange(kept)
    return tape, kept


def require_deterministic(network: Network, batch: Batch) -> None:
    """Run the model twice on the first two examples.

    Raises:
        InputError: the outputs differ.
    """
    part = batch.part(0, min(2, batch.count))
    with torch.no_grad():
        _same(network.raw(part), network.raw(part))


def _same(one: Tensor, two: Tensor) -> None:
    if not torch.equal(one.nan_to_num(), two.nan_to_num()):
        raise InputError(
            "the model is not deterministic: two runs on the same input differ. Its curvature is then not defined; "
            "look for sampling, noise, "
            "or dropout in functional form (F.dropout needs training=self.training) in forward, and call model.eval()"
        )


def _arrangement(whole: Tensor, piece: Tensor, count: int, few: int, leading: int) -> Arrangement | None:
    if count == 1:  # nothing to tell apart: everything belongs to the one example
        return Arrangement(alone=True) if leading else Arrangement() if len(whole) == 1 else None
    for axis in range(max(1, leading)):
        if whole.shape[axis] == count and piece.shape[axis] == few:
            same = [i for i in range(whole.dim()) if i != axis and whole.shape[i] != piece.shape[i]]
            if not same and _close(whole.movedim(axis, 0)[:few], piece.movedim(axis, 0)):
                return Arrangement(axis)
    if leading and len(whole) % count == 0 and len(piece) % few == 0 and whole.shape[1:] == piece.shape[1:]:
        whole, piece = whole.unflatten(0, (count, -1)), piece.unflatten(0, (few, -1))
        if whole.shape[1] == piece.shape[1] and _close(whole[:few], piece):
            return Arrangement(0, flattened=True)
    return None


def _close(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape:
        return False
    if not left.is_floating_point():
        return torch.equal(left, right)
    left, right = left.detach(), right.detach()
    if not left.numel():
        return True
    tolerance = TOLERANCE.get(left.dtype, 5e-2)
    gap, scale = _largest(left - right), _largest(right)
    if math.isfinite(gap):
        return gap <= tolerance * scale
    finite = torch.isfinite(left)  # infinite values must be the same ones
    if not torch.equal(finite, torch.isfinite(right)):
        return False
    left, right = left[finite], right[finite]
    return not left.numel() or _largest(left - right) <= tolerance * _largest(right)


def _largest(values: Tensor) -> float:
    return float(values.abs().max())  # the maximum norm of torch takes five times as long
