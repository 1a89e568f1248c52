"""ResNet-20 as He et al. (2016) had it for CIFAR-10, for the pretrained weights in the data folder."""

import os
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[3]
PLACES = [os.environ.get("DYNAXX_DATA"), ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]


class Block(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.empty = stride, (width - inputs) // 2

    def forward(self, x):
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.empty, self.empty))
        return functional.relu(out + x)


class ResNet(nn.Module):
    def __init__(self, depth=3, widths=(16, 16, 32, 64)):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        for stage in (1, 2, 3):
            before, width = widths[stage - 1 : stage + 1]
            first = Block(before, width, 2 if stage > 1 else 1)
            setattr(self, f"layer{stage}", nn.Sequential(first, *(Block(width, width, 1) for _ in range(depth - 1))))
        self.linear = nn.Linear(widths[3], 10)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def pretrained(train, test):
    """ResNet-20 with its weights, and so many images to calibrate and to judge by; skips where they are absent."""
    data = next((Path(place) for place in PLACES if place is not None and Path(place).is_dir()), None)
    if data is None:
        pytest.skip("needs the data folder: shared/data in or beside the checkout, or DYNAXX_DATA")
    weights = data / "models" / "pytorch_resnet_cifar10" / "resnet20.safetensors"
    images = data / "cifar10" / "cifar10_lossless_4k_train_1k_test.npz"
    for path in (weights, images):
        if not path.is_file():
            pytest.skip(f"needs {path.name} in the data folder")
    model = ResNet()
    model.load_state_dict(load_file(weights), strict=False)  # the counts of batches are not in the file
    held = numpy.load(images, allow_pickle=False)
    parts = []
    for part, count in (("train", train), ("test", test)):
        x = torch.as_tensor(held[f"x_{part}"][:count]).float().permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        parts.append((((x - mean) / std).contiguous(), torch.as_tensor(held[f"y_{part}"][:count]).long()))
    return model.eval(), *parts
