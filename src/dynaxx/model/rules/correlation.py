"""The second moment of a convolution's patches without the patches.

A[(s, c), (s', c')] = sum over windows of x_c(window at s) x_c'(window at s') depends on the kernel positions s and s'
through the shift s' - s, but for windows at the border: (2k - 1)^2 shifts instead of k^4 pairs, half of them by
symmetry. With the correlation of the whole image at a shift, a pair of positions only has to take off the rows and
columns that its windows never reach, and add back their corners. Exact for stride 1; zero rows, which padding makes,
are skipped. Other strides, and few channels, go by patches.

With the pixels laid out flat, a shift is an offset, and its correlation one product of two slices: pixels that the
offset carries past the end of a line meet zeros as long as a line's ends hold enough of them.
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
    reach = [(kernel[i] - 1) * dilation[i] for i in (0, 1)]
    sizes = [x.shape[2 + i] - reach[i] for i in (0, 1)]  # positions a window can take
    places = list(product(range(kernel[0]), range(kernel[1])))
    out = x.new_zeros(*kernel, channels, *kernel, channels)
    # lines that some window never reaches, and that hold something
    lines = [
        [r for r in range(x.shape[2 + i]) if not reach[i] <= r < sizes[i] and bool(x.select(2 + i, r).any())]
        for i in (0, 1)
    ]
    image = _flattening(x, reach, lines)
    pixels = image.flatten(0, 2)
    for shift in product(range(kernel[0]), range(1 - kernel[1], kernel[1])):
        if shift < (0, 0):
            continue
        step = (shift[0] * dilation[0], shift[1] * dilation[1])
        offset = step[0] * image.shape[2] + step[1]
        whole = pixels[: len(pixels) - offset].T @ pixels[offset:]
        taken = [_lines_to_take_off(lines[i], shift[i], kernel[i], dilation[i], sizes[i]) for i in (0, 1)]
        rows = {r: _correlation(image[:, r : r + 1 + step[0]], step) for r in taken[0]}
        columns = {c: _column(image, c, step) for c in taken[1]}
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
            out[s[0], s[1], :, t[0], t[1]] = value
            out[t[0], t[1], :, s[0], s[1]] = value.T
    added = x.sum(0)
    for s in places:
        low = (s[0] * dilation[0], s[1] * dilation[1])
        first[:, s[0], s[1]] = added[:, low[0] : low[0] + sizes[0], low[1] : low[1] + sizes[1]].sum((1, 2))
    width = first.numel()
    moment = out.permute(2, 0, 1, 5, 3, 4).reshape(width, width)
    return moment, first.flatten(), len(x) * sizes[0] * sizes[1]


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


def _lines_to_take_off(lines: list[int], shift: int, kernel: int, dilation: int, size: int) -> list[int]:
    """Lines that hold something, and whose shifted line does, but which some pair of kernel positions never reaches."""
    reach, step = (kernel - 1) * dilation, shift * dilation
    starts = [s * dilation for s in range(kernel) if 0 <= s + shift < kernel]
    return [
        r
        for r in lines
        if (r + step in lines or reach <= r + step < size) and not all(start <= r < start + size for start in starts)
    ]


def _flattening(x: Tensor, reach: list[int], lines: list[list[int]]) -> Tensor:
    """The image (N, H, W, C) with as many zero lines at its ends together as a shift may be long.

    Args:
        lines: rows and columns near the ends that hold something.
    """
    height, width = (
        size + max(0, reach[i] - min(lines[i], default=reach[i]) - (size - 1 - max(lines[i], default=size - 1)))
        for i, size in enumerate(x.shape[2:])
    )
    if (height, width) == x.shape[2:]:
        return x.permute(0, 2, 3, 1).contiguous()
    image = x.new_zeros(len(x), height, width, x.shape[1])
    image[:, : x.shape[2], : x.shape[3]] = x.permute(0, 2, 3, 1)
    return image


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

    Args:
        homogeneous: every row has a 1 behind its entries, which is not written out: the sum is (I + 1, I + 1).
    """

    def __init__(self, homogeneous: bool = False) -> None:
        self.homogeneous = homogeneous
        self._sum: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add rows^T rows for rows (R, I)."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        total = self._started(rows)
        for start, stop in _strips(rows.shape[1]):
            total[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])
        if self.homogeneous:
            self._add_border(rows.sum(0), len(rows))

    def add_sum(self, moment: Tensor, first: Tensor | None = None, number: int = 0) -> None:
        """Add sums over ``number`` rows that are already there: of r r^T (I, I) and, where homogeneous, of r (I,)."""
        moment = moment.to(torch.promote_types(moment.dtype, torch.float32))
        self._started(moment)[: len(moment), : len(moment)] += moment
        if self.homogeneous and first is not None:
            self._add_border(first, number)

    def _started(self, like: Tensor) -> Tensor:
        if self._sum is None:
            size = like.shape[1] + self.homogeneous
            self._sum = like.new_zeros(size, size)
        return self._sum

    def _add_border(self, first: Tensor, number: int) -> None:
        assert self._sum is not None
        self._sum[-1, :-1] += first
        self._sum[-1, -1] += number

    def total(self) -> Tensor:
        """The whole matrix."""
        assert self._sum is not None
        width = len(self._sum) - self.homogeneous
        for start, stop in [*_strips(width), (width, len(self._sum))]:
            self._sum[:start, start:stop] = self._sum[start:stop, :start].T
        return self._sum


def _strips(width: int) -> list[tuple[int, int]]:
    """Rows of a block each; narrow matrices are not cut."""
    step = BLOCK if width >= 2 * BLOCK else width
    return [(start, min(start + step, width)) for start in range(0, width, step)]


BLOCK = 128  # columns of a strip: wide enough for a full-speed product
