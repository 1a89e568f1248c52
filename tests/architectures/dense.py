"""Dense layers, and parameters that belong to no layer or to no gradient."""

import torch
from torch import nn

from architectures.case import N, case, labels


@case()
def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (torch.randn(6, 4), labels(6))


@case()
def layer_norm_mlp():
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3, bias=False))
    return model, (torch.randn(N, 4), labels(N))


@case()
def prelu():
    model = nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3))
    return model, (torch.randn(N, 4), labels(N))


@case()
def in_place():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.ELU(inplace=True), nn.Linear(5, 3)
    )
    return model, (torch.randn(N, 4), labels(N))


class _AddsInPlace(nn.Module):
    """Writes into what a layer returned."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x)
        h += x
        h.mul_(0.5).tanh_()
        return self.second(h)


@case()
def adds_in_place():
    return _AddsInPlace(), (torch.randn(N, 4), labels(N))


@case()
def frozen():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model, (torch.randn(N, 4), labels(N))


class _Unused(nn.Module):
    """One layer never runs."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.used(x)


@case()
def unused_parameters():
    return _Unused(), (torch.randn(N, 4), labels(N))


@case()
def non_contiguous():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, (torch.randn(2, N, 3).transpose(0, 1), labels(2 * N)[::2])


class _ScaleShift(nn.Module):
    """Parameters that belong to no layer."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(5) + 0.5), nn.Parameter(torch.randn(5))
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x) * self.scale + self.shift)) * self.temperature


@case()
def bare_parameters():
    return _ScaleShift(), (torch.randn(N, 4), labels(N))


class Conv1D(nn.Module):
    """A dense layer that stores its weight as (inputs, outputs), as GPT-2's do."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class _TransposedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(4, 3), Conv1D(3, 4)

    def forward(self, x):
        return self.c_proj(torch.tanh(self.c_fc(x))).mean(1)


@case()
def transposed_weights():
    return _TransposedWeights(), (torch.randn(N, N, 3), labels(N))


@case()
def weight_norm():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))
    return model, (torch.randn(N, 4), labels(N))


class _Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Bilinear(3, 2, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.mix(x[:, :3], x[:, 3:])))


@case()
def bilinear():
    return _Bilinear(), (torch.randn(N, 5), labels(N))
