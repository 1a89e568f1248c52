"""How much of what a program frees stays with it: glibc's malloc, as far as tensors go.

Blocks from 32 MB on are mapped one by one and go back to the system when freed. Smaller ones share a heap, whose holes
are used again, best fit first, but whose end rarely comes down, because something small always lives there. Tensors
are aligned to 64 bytes, and glibc looks for a hole that has room for any alignment, so that the hole which a tensor
leaves is often too small for another of the same size, until a neighbour goes too.
"""

from __future__ import annotations

import bisect

MAPPED = 2**25  # bytes; glibc's threshold once a process has worked for a while (DEFAULT_MMAP_THRESHOLD_MAX)
ALIGNMENT, HEADER, LEAST = 64, 16, 32  # of torch's CPU allocator; of a block, and the least one, of glibc's


class Heap:
    """Resident bytes as blocks come and go.

    Args:
        keeps: whether freed blocks stay (the CPU); a GPU's figures count live blocks only.
    """

    def __init__(self, keeps: bool) -> None:
        self.keeps = keeps
        self.resident = self._end = 0
        self._starts: list[int] = []  # holes in the order of their addresses
        self._sizes: list[int] = []
        self._blocks: dict[int, tuple[int, int]] = {}  # start and size on the heap

    def take(self, block: int, size: int) -> None:
        """Place a block."""
        if not self.keeps or size >= MAPPED:
            self.resident += size
            return
        size = -(-(size + HEADER) // HEADER) * HEADER
        sought = size + ALIGNMENT + LEAST
        fits = [(hole, i) for i, hole in enumerate(self._sizes) if hole >= sought]
        i = min(fits)[1] if fits else len(self._starts)
        if fits:
            start, room = self._starts.pop(i), self._sizes.pop(i)
        else:  # the end of the heap rises, from the last hole where that one reaches it
            start, room = self._end, 0
            if self._starts and self._starts[-1] + self._sizes[-1] == self._end:
                start, room = self._starts.pop(), self._sizes.pop()
                i -= 1
        lead = (ALIGNMENT - HEADER - start) % ALIGNMENT
        lead += ALIGNMENT if 0 < lead < LEAST else 0
        if not fits:
            room = lead + size
            self.resident += start + room - self._end
            self._end = start + room
        self._blocks[block] = (start + lead, size)
        for first, length in ((start + lead + size, room - lead - size), (start, lead)):
            if length:
                self._starts.insert(i, first)
                self._sizes.insert(i, length)

    def give(self, block: int, size: int) -> None:
        """Free a block; neighbouring holes become one."""
        if block not in self._blocks:
            self.resident -= size
            return
        start, size = self._blocks.pop(block)
        i = bisect.bisect(self._starts, start)
        self._starts.insert(i, start)
        self._sizes.insert(i, size)
        for left in (i, i - 1):
            if 0 <= left < len(self._starts) - 1 and self._starts[left] + self._sizes[left] == self._starts[left + 1]:
                self._sizes[left] += self._sizes.pop(left + 1)
                del self._starts[left + 1]
