"""Second moments of patches from correlations at shifts, against the patches themselves."""

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.model.rules import correlation
from dynaxx.model.rules.convolution import padded, patches

SETTINGS = [
    # kernel, padding, dilation, height, width
    ((3, 3), (1, 1), (1, 1), 6, 7),
    ((3, 3), (0, 0), (1, 1), 6, 7),
    ((5, 3), (2, 0), (1, 2), 9, 8),
    ((1, 1), (0, 0), (1, 1), 4, 4),
    ((2, 4), (1, 3), (2, 1), 7, 9),
    ((3, 3), (1, 1), (1, 1), 2, 2),  # fewer windows than the kernel is wide
    ((3, 3), (0, 2), (2, 2), 5, 5),
    ((1, 5), (0, 2), (1, 1), 1, 6),
]


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_moments_are_those_of_the_patches(setting, mode):
    kernel, padding, dilation, height, width = setting
    if mode != "zeros" and (padding[0] >= height or padding[1] >= width):
        pytest.skip("torch pads no further than the image")
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, padding=padding, dilation=dilation, padding_mode=mode).double()
    a = padded(layer, torch.randn(4, 2, height, width, dtype=torch.float64))
    rows = patches(layer, a).flatten(0, 1)
    second, first, number = correlation.patch_moments(a, layer.kernel_size, layer.dilation)
    torch.testing.assert_close(second, rows.T @ rows, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first, rows.sum(0), rtol=1e-12, atol=1e-12)
    assert number == len(rows)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1), (1, 2)])
@pytest.mark.parametrize("chunk", [2**27, 1])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_moments_at_any_stride(setting, stride, chunk, monkeypatch):
    monkeypatch.setattr(correlation, "PIECE_BYTES", chunk)
    kernel, padding, dilation, height, width = setting
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, stride, padding, dilation).double()
    a = padded(layer, torch.randn(4, 2, height, width, dtype=torch.float64))
    rows = patches(layer, a).flatten(0, 1)
    second, first, number = correlation.strided_moments(a, kernel, dilation, stride)
    torch.testing.assert_close(second, rows.T @ rows, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first, rows.sum(0), rtol=1e-12, atol=1e-12)
    assert number == len(rows)


@pytest.mark.parametrize("width", [3, 40, 41, 64, 100])
def test_symmetric_product(width, monkeypatch):
    monkeypatch.setattr(correlation, "BLOCK", 16)
    rows, more, other = torch.randn(3, 7, width, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
    moment = correlation.SecondMoment()
    moment.add(rows)
    moment.add_sum(other.T @ other)
    moment.add(more)
    found = moment.total()
    torch.testing.assert_close(found, sum(r.T @ r for r in (rows, more, other)), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found, found.T, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_kfac_of_wide_convolutions_takes_the_same_factors(dimensions, bias, monkeypatch):
    """From 16 channels the factor comes from correlations; with that way closed, from patches."""
    from dynaxx.model.rules.layers import Convolution

    kind, pool = (nn.Conv1d, nn.AdaptiveAvgPool1d) if dimensions == 1 else (nn.Conv2d, nn.AdaptiveAvgPool2d)
    torch.manual_seed(0)
    model = nn.Sequential(
        kind(16, 4, 3, padding=1, bias=bias), nn.Tanh(), pool(1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    x = torch.randn(5, 16, *[6] * dimensions, dtype=torch.float64)
    quick = dynaxx.fisher(model, x, form="kfac").to_dense()
    monkeypatch.setattr(Convolution, "moments", lambda self, a: None)
    slow = dynaxx.fisher(model, x, form="kfac").to_dense()
    torch.testing.assert_close(quick, slow, rtol=1e-11, atol=1e-13)
