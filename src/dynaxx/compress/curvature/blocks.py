"""F as diagonal blocks of one size, the whole of it where it is small."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynaxx.compress.curvature.base import Curvature
from dynaxx.errors import InputError

CHUNK_BYTES = 2**26  # of blocks that are in float64 at one time


class Blocks(Curvature):
    """H = diag(F_1, F_2, ...) + damping I with blocks of one size; the last may be filled up with zeros.

    Blocks are decomposed when they are needed and not kept, so that memory is the blocks' own. What is decomposed is
    in float64 whatever the blocks' dtype.

    Args:
        blocks: (b, c, c).
        size: s, more than (b - 1) c and at most b c.
    """

    def __init__(self, blocks: Tensor, size: int, damping: float = 0.0) -> None:
        super().__init__(size, damping)
        self.blocks = blocks

    def trace(self) -> float:
        """Sum of the blocks' traces."""
        return float(self.blocks.diagonal(dim1=1, dim2=2).sum(dtype=torch.float64))

    def product(self, vector: Tensor) -> Tensor:
        """Block by block."""
        found = [(block @ v[..., None])[..., 0] for block, v in self._chunks(vector)]
        return self._joined(found) + self.damping * vector.double()

    def inverse_diagonal(self) -> Tensor:
        """By Cholesky factors; the filling counts as the identity.

        Raises:
            InputError: a block is singular; damping is too small.
        """
        found = []
        for (block,) in self._chunks():
            self._damp(block)
            found.append(torch.cholesky_inverse(self._factor(block)).diagonal(dim1=1, dim2=2).clone())
        return self._joined(found)

    def change(self, values: Tensor, dropped: Tensor) -> Tensor:
        """One small system per block, in which dropped weights have the identity's rows."""
        found = []
        for block, w, gone in self._chunks(values, dropped):
            self._damp(block)
            away = w * gone
            right = (block @ away[..., None]).masked_fill_(gone[..., None] > 0, 0)
            if len(block) == 1:  # one large block: leave the dropped out instead
                kept = (gone[0] == 0).nonzero()[:, 0]
                moved = torch.zeros_like(w)
                if len(kept):
                    factor = self._factor(block[:, kept[:, None], kept])
                    moved[0, kept] = torch.cholesky_solve(right[:, kept], factor)[0, :, 0]
            else:
                stays = 1 - gone
                block.mul_(stays[:, :, None]).mul_(stays[:, None, :]).diagonal(dim1=1, dim2=2).add_(gone)
                moved = torch.cholesky_solve(right, self._factor(block))[..., 0]
            found.append(moved - away)
        return self._joined(found)

    def _damp(self, block: Tensor) -> None:
        block.diagonal(dim1=1, dim2=2).add_(self.damping)

    def _factor(self, block: Tensor) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(block)
        if bool((info != 0).any()):
            raise InputError(
                f"damping={self.damping:g} leaves a Fisher matrix that is singular to rounding; give a larger one"
            )
        return factor

    def _chunks(self, *vectors: Tensor) -> Iterator[list[Tensor]]:
        """Blocks in float64 (copies), and what of the vectors belongs to them, (blocks, c)."""
        number, width, _ = self.blocks.shape
        padded = [pad(vector.double(), (0, number * width - self.size)).view(number, width) for vector in vectors]
        step = max(1, CHUNK_BYTES // (8 * width * width))
        for start in range(0, number, step):
            block = self.blocks[start : start + step].to(torch.float64, copy=True)
            spare = start + len(block) == number and number * width - self.size
            if spare:
                block[-1].diagonal()[-spare:] = 1
            yield [block, *(vector[start : start + step] for vector in padded)]

    def _joined(self, found: list[Tensor]) -> Tensor:
        return torch.cat(found).flatten()[: self.size]
