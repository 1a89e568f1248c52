"""The second moment of a convolution's patches without the patches.

A[(s, c), (s', c')] = sum over windows of x_c(window at s) x_c'(window at s') depends on the kernel positions s and s'
through the shift s' - s, but for windows at the border: (2k - 1)^2 shifts instead of k^4 pairs, half of them by
symmetry. With the correlation of the whole image at a shift, a pair of positions only has to take off the rows and
columns that its windows never reach, and add back their corners. Exact for stride 1; zero rows, which padding makes,
are skipped. Other strides go by patches.

The correlations at all shifts together are the weight gradient of a convolution of the image with itself, which the
libraries that train networks are made for.
"""

from __future__ import annotations

from itertools import combinations, product

import torch
from torch import Tensor
from torch.nn import functional

from dynaxx.matmul import add_product, sliceable

PIECE_BYTES = 2**25  # patches that exist at one time: more leave the cache, fewer make products small


def patch_moments(x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    """Second and first moment sums of the patches of a padded image at stride 1.

    Args:
        x: (N, C, H, W).

    Returns:
        (I, I) and (I,) with I = C k l in the order of a flattened weight, and the number of windows.
        Cost: about k (2l - 1) products of (N H W) x C x C.
    """
    channels, width = x.shape[1], x.shape[1] * kernel[0] * kernel[1]
    first = _first_moments(x, kernel, dilation, (1, 1))
    if width == channels:
        return channel_moment(x.flatten(2)), first, x[:, 0].numel()
    reach = [(kernel[i] - 1) * dilation[i] for i in (0, 1)]
    sizes = [x.shape[2 + i] - reach[i] for i in (0, 1)]  # positions a window can take
    # lines that some window never reaches, and that hold something
    lines = [
        [r for r in range(x.shape[2 + i]) if not reach[i] <= r < sizes[i] and bool(x.select(2 + i, r).any())]
        for i in (0, 1)
    ]
    holds = [{*lines[i], *range(reach[i], sizes[i])} for i in (0, 1)]
    x = x.contiguous(memory_format=torch.channels_last)
    image = x.permute(0, 2, 3, 1)
    whole = _correlations(x, kernel, dilation)
    rows, columns = ({at: torch.zeros_like(whole) for at in lines[i]} for i in (0, 1))
    corners = {pair: torch.zeros_like(whole) for pair in product(*lines)}
    for i, j in product(range(kernel[0]), range(2 * kernel[1] - 1)):
        step = (i * dilation[0], (j + 1 - kernel[1]) * dilation[1])
        # what begins in a line that holds something, and ends in one
        met = [[at for at in lines[axis] if at + step[axis] in holds[axis]] for axis in (0, 1)]
        for r in met[0]:
            rows[r][i, j] = _correlation(image[:, r : r + 1 + step[0]], step)
        for c in met[1]:
            columns[c][i, j] = _column(image, c, step)
        for r, c in product(*met):
            corners[r, c][i, j] = image[:, r, c].T @ image[:, r + step[0], c + step[1]]
    out = x.new_zeros(*kernel, *kernel, channels, channels)
    for s in product(range(kernel[0]), range(kernel[1])):
        low = [s[i] * dilation[i] for i in (0, 1)]
        no_rows, no_columns = ([r for r in lines[i] if not low[i] <= r < low[i] + sizes[i]] for i in (0, 1))
        # shifts from s to every kernel position that is not above it
        shifts = slice(0, kernel[0] - s[0]), slice(kernel[1] - 1 - s[1], 2 * kernel[1] - 1 - s[1])
        value = out[s[0], s[1], s[0] :].copy_(whole[shifts])
        for taken in [*(rows[r] for r in no_rows), *(columns[c] for c in no_columns)]:
            value -= taken[shifts]
        for pair in product(no_rows, no_columns):
            value += corners[pair][shifts]
    for upper, lower in combinations(range(kernel[0]), 2):
        out[lower, :, upper] = out[upper, :, lower].permute(1, 0, 3, 2)
    moment = out.permute(4, 0, 1, 5, 2, 3).reshape(width, width)
    return moment, first, len(x) * sizes[0] * sizes[1]


def strided_moments(
    x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[Tensor, Tensor, int]:
    """The same at any stride, from patches laid out with channels last: they are copied in runs, twice as fast."""
    channels, width = x.shape[1], x.shape[1] * kernel[0] * kernel[1]
    moment, number = SecondMoment(), 0
    for part in x.split(max(1, PIECE_BYTES // (x[0].numel() * x.element_size() * kernel[0] * kernel[1]))):
        windows = part.permute(0, 2, 3, 1).contiguous()
        for axis in (0, 1):
            reach = dilation[axis] * (kernel[axis] - 1) + 1
            windows = windows.unfold(1 + axis, reach, stride[axis])[..., :: dilation[axis]]
        rows = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, width)
        moment.add(rows)
        number += len(rows)
    # kernel positions before channels, as copied, to channels before kernel positions, as in a flattened weight
    order = torch.arange(width, device=x.device).view(-1, channels).T.flatten()
    return moment.total()[order][:, order], _first_moments(x, kernel, dilation, stride), number


def channel_moment(x: Tensor) -> Tensor:
    """sum_nt x_nct x_nc't of x (N, C, T), (C, C): a convolution's weight gradient, which needs no transposed copy."""
    return _correlations(x[..., None], (1, 1), (1, 1))[0, 0]


def _first_moments(x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Sums over all windows at each kernel position, (I,)."""
    # with channels last in memory, torch adds images fifty times slower than they lie
    added = x.sum(0) if x.is_contiguous() else x.permute(0, 2, 3, 1).sum(0).permute(2, 0, 1)
    for axis in (0, 1):
        added = added.unfold(1 + axis, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])[..., :: dilation[axis]]
    return added.sum((1, 2)).flatten()  # (C, positions, positions, *kernel)


def _correlations(x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """sum_u x_c(u) x_c'(u + shift), (k, 2l - 1, C, C'): shifts down by 0 to k - 1 steps, sideways by 1 - l to l - 1."""
    channels = x.shape[1]
    down, aside = ((size - 1) * step for size, step in zip(kernel, dilation, strict=True))
    far = functional.pad(x, (aside, aside, 0, down)) if down or aside else x
    weight = x.new_empty(1).expand(channels, channels, kernel[0], 2 * kernel[1] - 1)  # only its shape is read
    return torch.ops.aten.convolution_backward(
        x, far, weight, None, [1, 1], [0, 0], dilation, False, [0, 0], 1, [False, True, False]
    )[1].permute(2, 3, 0, 1).contiguous()  # fmt: skip


def _correlation(image: Tensor, step: tuple[int, int]) -> Tensor:
    """The same of an image (N, H, W, C) at one shift, (C, C')."""
    height, width = image.shape[1:3]
    down, right = step
    near = image[:, : height - down, max(0, -right) : width - max(0, right)]
    far = image[:, down:, max(0, right) : width - max(0, -right)]
    return near.flatten(0, 2).T @ far.flatten(0, 2)


def _column(image: Tensor, column: int, step: tuple[int, int]) -> Tensor:
    """Its part whose first point lies in one column."""
    height = image.shape[1]
    near, far = image[:, : height - step[0], column], image[:, step[0] :, column + step[1]]
    return near.flatten(0, 1).T @ far.flatten(0, 1)


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
        beta = int(self._sum is not None)
        total = self._started(rows)
        if rows.shape[1] < 2 * BLOCK:  # nothing is gained by strips, nor by rows in another order
            total[: rows.shape[1], : rows.shape[1]].addmm_(rows.T, rows, beta=beta)
        else:
            columns = sliceable(rows.T)
            for start, stop in _strips(rows.shape[1]):
                add_product(total[start:stop, :stop], columns[start:stop], columns[:stop].T, beta)
        if self.homogeneous:
            self._add_border(rows.sum(0), len(rows))

    def add_sum(self, moment: Tensor, first: Tensor | None = None, number: int = 0) -> None:
        """Add sums over ``number`` rows that are already there: of r r^T (I, I) and, where homogeneous, of r (I,)."""
        moment = moment.to(torch.promote_types(moment.dtype, torch.float32))
        beta = int(self._sum is not None)
        total = self._started(moment)[: len(moment), : len(moment)]
        total.add_(moment) if beta else total.copy_(moment)
        if self.homogeneous and first is not None:
            self._add_border(first, number)

    def _started(self, like: Tensor) -> Tensor:
        if self._sum is None:
            size = like.shape[1] + self.homogeneous
            self._sum = like.new_empty(size, size)
            self._sum[like.shape[1] :] = 0
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
