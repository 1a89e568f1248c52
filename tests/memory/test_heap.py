"""The model of the C library's heap, on cases small enough to follow by hand."""

import pytest

from dynaxx.memory.heap import MAPPED, Heap
from dynaxx.memory.ledger import Entry, Ledger


def played(steps, keeps=True):
    """Resident bytes after each step: (block, size) takes, block alone gives."""
    heap, sizes, seen = Heap(keeps), {}, []
    for step in steps:
        if isinstance(step, tuple):
            sizes[step[0]] = step[1]
            heap.take(*step)
        else:
            heap.give(step, sizes[step])
        seen.append(heap.resident)
    return seen


K = 1000  # sizes that make what surrounds a block, at most a few hundred bytes each, not matter


@pytest.mark.parametrize(("size", "resident"), [(99, 110), (101, 211)])
def test_a_hole_takes_what_is_a_little_smaller(size, resident):
    seen = played([("a", 100 * K), ("end", 10 * K), "a", ("b", size * K)])
    assert seen[2] == seen[1]  # what is freed stays
    assert seen[-1] / K == pytest.approx(resident, abs=0.5)


def test_the_smallest_hole_that_fits_is_taken():
    steps = [("a", 100 * K), ("x", K), ("b", 40 * K), ("y", K), "a", "b", ("c", 30 * K), ("d", 99 * K)]
    assert played(steps)[-1] / K == pytest.approx(142, abs=0.5)  # c went into b's hole, so d fits in a's


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_neighbouring_holes_become_one(order):
    steps = [("a", 20 * K), ("b", 30 * K), ("c", 40 * K), ("end", K), *order, ("d", 89 * K)]
    assert played(steps)[-1] / K == pytest.approx(91, abs=0.5)


def test_a_hole_at_the_end_grows():
    assert played([("a", 50 * K), ("b", 20 * K), "b", ("c", 60 * K)])[-1] / K == pytest.approx(110, abs=0.5)


def test_large_blocks_go_back_to_the_system():
    seen = played([("a", MAPPED), ("b", 7 * K), "a"])
    assert seen[0] == MAPPED
    assert seen[1] - MAPPED == seen[2] == pytest.approx(7 * K, abs=100)


def test_live_bytes_alone_where_nothing_is_kept():
    assert played([("a", 10), ("b", 5), "a", ("c", 4)], keeps=False) == [10, 15, 5, 9]


def test_the_peak_says_what_was_live_then_and_what_stays():
    ledger = Ledger()
    ledger.entries = [
        Entry(size, "dynaxx.estimators", name) for name, size in (("kept", 3), ("passing", 5), ("late", 4))
    ]
    ledger.events = [(0, True), (1, True), (1, False), (2, True)]
    peak = ledger.peak(keeps=False)
    assert (peak.resident, [e.function for e in peak.passing], [e.function for e in peak.kept]) == (
        8, ["passing"], ["kept"],
    )  # fmt: skip
