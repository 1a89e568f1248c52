"""Elementwise scales behind a normalisation: LayerNorm, GroupNorm, BatchNorm in evaluation mode, RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaxx.model.rules.base import Rule


class Scale(Rule):
    """``out = a * w + b`` with normalised a: (N, T, *S) and g: (K, N, T, *S); G = sum_t g_t * a_t."""

    positional = True

    def gradients(self, a: Tensor, g: Tensor) -> Tensor:
        if a.shape[1] == 1:
            return g[:, :, 0] * a[:, 0]
        return torch.einsum("knt...,nt...->kn...", g, a)
