"""Convolutions and the norms that go with them."""

import torch
from torch import nn

from architectures.case import N, case, labels


@case()
def cnn():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, (2, 1), dilation=(2, 1), padding=(1, 0), groups=4),
        nn.Tanh(),
        nn.Conv2d(4, 3, 2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    )
    return model, (torch.randn(N, 2, 6, 7), labels(N))


@case()
def circular():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(3, 2, 3, padding="same", padding_mode="reflect"),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return model, (torch.randn(N, 1, 4, 5), labels(N))


class _TextConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.conv = nn.Embedding(9, 4, padding_idx=0), nn.Conv1d(4, 5, 3, padding="same")
        self.head = nn.Linear(5, 3)

    def forward(self, tokens):
        return self.head(torch.relu(self.conv(self.words(tokens).transpose(1, 2))).amax(2))


@case()
def text_convolution():
    tokens = labels(N, 6, classes=9)
    tokens[:, 4:] = 0
    return _TextConvolution(), (tokens, labels(N))


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv, self.again = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(3, 3)

    def forward(self, x):
        h = self.act(self.norm(self.stem(x)))
        h = self.act(h + self.again(self.conv(h)))
        return self.head(h.mean((2, 3)))


@case()
def residual_batch_norm():
    return _Residual(), (torch.randn(N, 2, 4, 4), labels(N))


class _Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.group = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)
        self.root, self.head = nn.RMSNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.root(torch.tanh(self.group(self.conv(x))).mean((2, 3))))


@case()
def group_and_rms_norm():
    return _Norms(), (torch.randn(N, 2, 4, 4), labels(N))


@case()
def instance_and_local_norm():
    model = nn.Sequential(
        nn.Conv1d(2, 3, 2),
        nn.InstanceNorm1d(3, affine=True),
        nn.BatchNorm1d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    return model, (torch.randn(N, 2, 5), labels(N))


@case()
def conv3d():
    model = nn.Sequential(nn.Conv3d(1, 3, 2, stride=(1, 2, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    return model, (torch.randn(N, 1, 3, 3, 3), labels(N))


@case()
def transposed_convolution():
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Tanh(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return model, (torch.randn(N, 2, 3, 3), labels(N))


class _Segmentation(nn.Module):
    """Two position axes: output (N, H, W, C)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))).movedim(1, -1)


@case()
def segmentation():
    y = labels(N, 3, 2)
    y[0, 0, 0] = y[1, 2, 1] = y[1, 0, 1] = -100
    return _Segmentation(), (torch.randn(N, 2, 3, 2), y)
