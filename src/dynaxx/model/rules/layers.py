"""Which module uses its parameters how: the table of layer families.

A Layer is made for one module. Given the module's input and the cotangent of its output, both with examples first, it
says what each parameter's rule gets, and, where the parameters form one linear map, the rows its Kronecker factors are
made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynaxx.errors import InputError
from dynaxx.model.rules.base import Rule, Use
from dynaxx.model.rules.convolution import ConvolutionWeight, padded, patches
from dynaxx.model.rules.correlation import BLOCK, patch_moments, strided_moments
from dynaxx.model.rules.embedding import EmbeddingWeight
from dynaxx.model.rules.linear import LinearWeight, Shift, TransposedLinearWeight
from dynaxx.model.rules.normalization import Scale


class Layer:
    """One module's use of its parameters.

    Subclasses give ``rules`` and bring inputs and cotangents to the rules' shapes.
    """

    weight_axes: str | None = None  # "oi" or "io" where weight and bias are one linear map with Kronecker structure
    spreads = False  # whether it may be called once for all examples, with a leading axis of 1 (position embeddings)

    def __init__(self, module: Any) -> None:
        self.module = module  # Any: each family knows its own attributes
        self.rules: dict[str, Rule] = self.make_rules()

    def make_rules(self) -> dict[str, Rule]:
        """Rule by the module's own parameter name."""
        raise NotImplementedError

    def leading(self, x: Tensor) -> int:
        """How many of the input's first axes may run over examples and positions in any order; 0 if only (examples,
        ...) as is."""
        return 0

    def input(self, x: Tensor) -> Tensor:
        """Module input, examples first, to what the weight's rule takes."""
        raise NotImplementedError

    def cotangent(self, g: Tensor) -> Tensor:
        """Cotangent of the module output (K, N, ...) to what the weight's rule takes."""
        raise NotImplementedError

    def positions(self, g: Tensor) -> Tensor:
        """The weight's cotangent as (K, N, T, O)."""
        return g

    def rows(self, a: Tensor) -> Tensor:
        """The weight's input as (N, T, I), T the positions that share the weight."""
        return a

    def width(self, a: Tensor) -> int:
        """I, the length of one row."""
        return a.shape[-1]

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor, int] | None:
        """Sums over rows of r r^T (I, I) and r (I,), and the number of rows, where they need not be formed."""
        return None

    def uses(self, a: Tensor, g: Tensor) -> dict[str, Use]:
        """Use of each parameter by its own name, from ``input(x)`` and ``cotangent(g)``."""
        return {
            name: Use(rule, None, self.positions(g)) if isinstance(rule, Shift) else Use(rule, a, g)
            for name, rule in self.rules.items()
        }


class Linear(Layer):
    """nn.Linear on (N, *positions, I)."""

    weight_axes = "oi"

    def make_rules(self) -> dict[str, Rule]:
        return {"weight": LinearWeight(), "bias": Shift()}

    def leading(self, x: Tensor) -> int:
        return x.dim() - 1

    def input(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, x.shape[-1])

    def cotangent(self, g: Tensor) -> Tensor:
        return g.reshape(*g.shape[:2], -1, g.shape[-1])


class TransposedLinear(Linear):
    """HuggingFace's Conv1D: a linear map whose weight is stored as (I, O)."""

    weight_axes = "io"

    def make_rules(self) -> dict[str, Rule]:
        return {"weight": TransposedLinearWeight(), "bias": Shift()}


class Convolution(Layer):
    """nn.Conv1d, Conv2d, Conv3d on (N, C, *space)."""

    def make_rules(self) -> dict[str, Rule]:
        if self.module.groups == 1:
            self.weight_axes = "oi"
        return {"weight": ConvolutionWeight(self.module), "bias": Shift()}

    def input(self, x: Tensor) -> Tensor:
        return padded(self.module, x)

    def cotangent(self, g: Tensor) -> Tensor:
        return g

    def positions(self, g: Tensor) -> Tensor:
        return g.flatten(3).transpose(2, 3)

    def rows(self, a: Tensor) -> Tensor:
        return patches(self.module, a)

    def width(self, a: Tensor) -> int:
        return self.module.weight[0].numel()

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor, int] | None:
        module = self.module
        plane = a[:, :, None] if a.dim() == 3 else a
        if plane.dim() != 4 or module.groups != 1:
            return None
        kernel, dilation, stride = (
            (1,) * (2 - len(size)) + tuple(size) for size in (module.kernel_size, module.dilation, module.stride)
        )
        # strides would need one correlation per phase, and of many channels alone half the products are enough
        if stride != (1, 1) or (kernel == (1, 1) and a.shape[1] >= 2 * BLOCK):
            return strided_moments(plane, kernel, dilation, stride)
        return patch_moments(plane, kernel, dilation)


class Embedding(Layer):
    """nn.Embedding on token indices (N, *positions)."""

    spreads = True

    def make_rules(self) -> dict[str, Rule]:
        if self.module.max_norm is not None or self.module.scale_grad_by_freq:
            raise InputError(
                "an Embedding with max_norm changes its table while it runs, and scale_grad_by_freq makes gradients "
                "depend on the batch; "
                "turn both off to measure the Fisher information"
            )
        return {"weight": EmbeddingWeight(tuple(self.module.weight.shape), self.module.padding_idx)}

    def leading(self, x: Tensor) -> int:
        return x.dim()

    def input(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)

    def cotangent(self, g: Tensor) -> Tensor:
        return g.reshape(*g.shape[:2], -1, g.shape[-1])


class LastAxesNorm(Layer):
    """nn.LayerNorm and nn.RMSNorm: the normalised axes are the last ones and the parameters have their shape."""

    def make_rules(self) -> dict[str, Rule]:
        return {"weight": Scale(), "bias": Shift()}

    def leading(self, x: Tensor) -> int:
        return x.dim() - len(self.module.normalized_shape)

    def input(self, x: Tensor) -> Tensor:
        shape = tuple(self.module.normalized_shape)
        norm = functional.rms_norm if isinstance(self.module, nn.RMSNorm) else functional.layer_norm
        return norm(x, shape, eps=self.module.eps).reshape(len(x), -1, *shape)

    def cotangent(self, g: Tensor) -> Tensor:
        return g.reshape(*g.shape[:2], -1, *self.module.normalized_shape)


class ChannelNorm(Layer):
    """nn.GroupNorm and nn.BatchNorm in evaluation mode: one scale per channel, axis 1."""

    def make_rules(self) -> dict[str, Rule]:
        return {"weight": Scale(), "bias": Shift()}

    def input(self, x: Tensor) -> Tensor:
        module = self.module
        if isinstance(module, nn.GroupNorm):
            x = functional.group_norm(x, module.num_groups, eps=module.eps)
        else:
            x = functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)
        return x.flatten(2).transpose(1, 2) if x.dim() > 2 else x[:, None]

    def cotangent(self, g: Tensor) -> Tensor:
        return g.flatten(3).transpose(2, 3) if g.dim() > 3 else g[:, :, None]


FAMILIES: dict[type[nn.Module], Callable[[nn.Module], Layer]] = {
    nn.Linear: Linear,
    nn.Conv1d: Convolution,
    nn.Conv2d: Convolution,
    nn.Conv3d: Convolution,
    nn.Embedding: Embedding,
    nn.LayerNorm: LastAxesNorm,
    nn.RMSNorm: LastAxesNorm,
    nn.GroupNorm: ChannelNorm,
    nn.BatchNorm1d: ChannelNorm,
    nn.BatchNorm2d: ChannelNorm,
    nn.BatchNorm3d: ChannelNorm,
}


def layer_of(module: nn.Module) -> Layer | None:
    """The layer family of a module, or None where only the generic path knows it.

    A subclass is taken for its parent only while it keeps the parent's forward; a parametrised weight is not a
    parameter of its own.
    """
    if hasattr(module, "parametrizations"):
        return None
    for family, make in FAMILIES.items():
        if isinstance(module, family) and type(module).forward is family.forward:
            return make(module)
    if type(module).__name__ == "Conv1D" and hasattr(
        module, "nf"
    ):  # transformers.pytorch_utils.Conv1D, without importing it
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() == 2:
            return TransposedLinear(module)
    return None
