"""The second moment of a convolution's patches without the patches.

A[(s, c), (s', c')] = sum over windows of x_c(window at s) x_c'(window at s') depends on the kernel positions s and s'
through the shift s' - s, but for windows at the border: (2k - 1)^2 shifts instead of k^4 pairs, half of them by
symmetry. With the correlation of the whole image at a shift, a pair of positions only has to take off the rows and
columns that its windows never reach, and add back their corners. Exact for stride 1; zero rows, which padding makes,
are skipped. Other strides, and few channels, go by patches.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from dynaxx.model.rules.base import CHUNK_BYTES


def patch_moments(x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    """Second and first moment sums of the patches of a padded image at stride 1.

    Args:
        x: (N, C, H, W).

    Returns:
        (I, I) and (I,) with I = C k l in the order of a flattened weight, and the number of windows.
        Cost: about (2k - 1)(2l - 1)/2 products of (N H W) x C x C.
    """
    channels = x.shape[1]
    first = x.new_empty(channels, *kernel)
    image = x.permute(0, 2, 3, 1).contiguous()  # (N, H, W, C)
    sizes = [x.shape[2 + i] - (kernel[i] - 1) * dilation[i] for i in (0, 1)]  # positions a window can take
    places = list(product(range(kernel[0]), range(kernel[1])))
    out = x.new_zeros(channels, *kernel, channels, *kernel)
    # lines that some window never reaches, and that hold something
    lines = [
        [r for r in range(x.shape[2 + i]) if not reach <= r < sizes[i] and bool(x.select(2 + i, r).any())]
        for i, reach in enumerate((kernel[j] - 1) * dilation[j] for j in (0, 1))
    ]
    for shift in product(range(kernel[0]), range(1 - kernel[1], kernel[1])):
        if shift < (0, 0):
            continue
        step = (shift[0] * dilation[0], shift[1] * dilation[1])
        whole = _correlation(image, step)
        rows = {r: _correlation(image[:, r : r + 1 + step[0]], step) for r in lines[0] if r + step[0] < x.shape[2]}
        columns = {c: _column(image, c, step) for c in lines[1] if 0 <= c + step[1] < x.shape[3]}
        corners = {(r, c): _corner(image, r, c, step) for r in rows for c in columns}
        for s in places:
            t = (s[0] + shift[0], s[1] + shift[1])
            if not (t[0] < kernel[0] and 0 <= t[1] < kernel[1]):
                continue
            low = (s[0] * dilation[0], s[1] * dilation[1])
            no_rows = [r for r in rows if not low[0] <= r < low[0] + sizes[0]]
            no_columns = [c for c in columns if not low[1] <= c < low[1] + sizes[1]]
            value = whole.clone()
            for r in no_rows:
                value -= rows[r]
            for c in no_columns:
                value -= columns[c]
            for pair in product(no_rows, no_columns):
                value += corners[pair]
            out[:, s[0], s[1], :, t[0], t[1]] = value
            out[:, t[0], t[1], :, s[0], s[1]] = value.T
    for s in places:
        low = (s[0] * dilation[0], s[1] * dilation[1])
        seen = x[:, :, low[0] : low[0] + sizes[0], low[1] : low[1] + sizes[1]]
        first[:, s[0], s[1]] = seen.sum((0, 2, 3))
    width = first.numel()
    return out.reshape(width, width), first.flatten(), len(x) * sizes[0] * sizes[1]


def strided_moments(
    x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[Tensor, Tensor, int]:
    """The same at any stride, from patches laid out with channels last: they are copied in runs, twice as fast."""
    channels, width = x.shape[1], x.shape[1] * kernel[0] * kernel[1]
    moment, first, number = SecondMoment(), x.new_zeros(width), 0
    for part in x.split(max(1, CHUNK_BYTES // (x[0].numel() * x.element_size() * kernel[0] * kernel[1]))):
        windows = part.permute(0, 2, 3, 1).contiguous()
        for axis in (0, 1):
            reach = dilation[axis] * (kernel[axis] - 1) + 1
            windows = windows.unfold(1 + axis, reach, stride[axis])[..., :: dilation[axis]]
        rows = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, width)
        moment.add(rows)
        first, number = first + rows.sum(0), number + len(rows)
    # kernel positions before channels, as copied, to channels before kernel positions, as in a flattened weight
    order = torch.arange(width, device=x.device).view(-1, channels).T.flatten()
    return moment.total()[order][:, order], first[order], number


def _correlation(image: Tensor, step: tuple[int, int]) -> Tensor:
    """sum_u X[u]^T X[u + step] over all u with both inside, (C, C)."""
    height, width = image.shape[1:3]
    down, right = step
    near = image[:, : height - down, max(0, -right) : width - max(0, right)]
    far = image[:, down:, max(0, right) : width - max(0, -right)]
    return near.flatten(0, 2).T @ far.flatten(0, 2)


def _column(image: Tensor, column: int, step: tuple[int, int]) -> Tensor:
    """The part of the correlation whose first point lies in one column."""
    height = image.shape[1]
    near, far = image[:, : height - step[0], column], image[:, step[0] :, column + step[1]]
    return near.flatten(0, 1).T @ far.flatten(0, 1)


def _corner(image: Tensor, row: int, column: int, step: tuple[int, int]) -> Tensor:
    """The part whose first point is one pixel."""
    return image[:, row, column].T @ image[:, row + step[0], column + step[1]]


class SecondMoment:
    """A running sum of rows^T rows, at least in float32.

    torch has no symmetric product: wide sums are kept by the blocks on and below the diagonal and mirrored at the end.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add rows^T rows for rows (R, I)."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if self._sum is None:
            self._sum = rows.new_zeros(rows.shape[1], rows.shape[1])
        for start, stop in _strips(rows.shape[1]):
            self._sum[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])

    def add_sum(self, moment: Tensor) -> None:
        """Add a sum (I, I) that is already there."""
        moment = moment.to(torch.promote_types(moment.dtype, torch.float32))
        self._sum = moment if self._sum is None else self._sum.add_(moment)

    def total(self) -> Tensor:
        """The whole matrix (I, I)."""
        assert self._sum is not None
        for start, stop in _strips(len(self._sum)):
            self._sum[:start, start:stop] = self._sum[start:stop, :start].T
        return self._sum


def _strips(width: int) -> list[tuple[int, int]]:
    """Rows of a block each; narrow matrices are not cut."""
    step = BLOCK if width >= 2 * BLOCK else width
    return [(start, min(start + step, width)) for start in range(0, width, step)]


BLOCK = 256  # columns of a strip: wide enough for a full-speed product
