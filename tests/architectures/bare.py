"""Parameters that belong to no layer: added, multiplied, expanded, used twice, seen through a view or a function."""

import torch
from torch import nn

from architectures.case import N, case, labels


class _Bare(nn.Module):
    """An encoder and a head with ``mix(h)`` in between, h: (N, 3, 4)."""

    def __init__(self, **shapes):
        super().__init__()
        self.encode, self.head = nn.Linear(2, 4), nn.Linear(4, 3)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def mix(self, h):
        raise NotImplementedError

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.encode(x))).mean(1))


def batch():
    return torch.randn(N, 3, 2), labels(N)


class _Positions(_Bare):
    """One table cut to the length of the sequence, and one whole; as many positions as examples."""

    def mix(self, h):
        h = torch.cat([h, h[:, :2].sin()], 1)
        return torch.sub(h + self.table[: h.shape[1]], self.whole, alpha=2) + self.column


@case()
def bare_positions():
    return _Positions(table=(7, 4), whole=(1, N, 4), column=(N, 1)), batch()


class _ClassToken(_Bare):
    def mix(self, h):
        token = self.repeated.repeat(len(h), 1, 1) if hasattr(self, "repeated") else self.token.expand(len(h), -1, -1)
        h = torch.cat([token, h], 1)
        return h * h.mean(1, keepdim=True)


@case()
def class_token():
    return _ClassToken(token=(1, 1, 4)), batch()


@case()
def class_token_repeated():
    return _ClassToken(repeated=(1, 1, 4)), batch()


class _Scales(_Bare):
    """A layer's scale used twice, one seen through a function, one made from two parameters."""

    def mix(self, h):
        h = torch.sin(h * self.twice) - self.shift * h
        made = self.left * self.right
        return self.log_scale.exp()[:, None] * (self.twice * h) + made * h


@case()
def bare_scales():
    return _Scales(twice=(4,), shift=(3, 1), log_scale=(3,), left=(4,), right=(4,)), batch()


class _Views(_Bare):
    """A view used twice; a matrix product; a parameter of a layer that is added as well."""

    def mix(self, h):
        view = self.viewed[0]
        return h + view + torch.sin(h) * view + h @ self.matrix + self.encode.bias


@case()
def bare_views():
    return _Views(viewed=(2, 4), matrix=(4, 4)), batch()


class _Reversed(_Bare):
    """Examples stand in another order where the parameter meets them."""

    def mix(self, h):
        return torch.sin(h.flip(0) + self.shift).flip(0)


@case()
def bare_reversed():
    return _Reversed(shift=(4,)), batch()


class _TimeFirst(_Bare):
    """Examples on axis 1, as many positions as examples."""

    def mix(self, h):
        h = torch.cat([h, h[:, :2].sin()], 1).transpose(0, 1)
        return (torch.sin(h * self.scale) + self.places[:, None]).transpose(0, 1)


@case()
def bare_time_first():
    return _TimeFirst(scale=(4,), places=(N, 4)), batch()
