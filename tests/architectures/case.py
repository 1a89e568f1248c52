"""A case: a model, one batch of data, the likelihood of its outputs; and the register of all cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

N = 5


@dataclass(frozen=True)
class Case:
    """A model, one batch of data and the likelihood of its outputs."""

    name: str
    make: Callable[[], tuple[nn.Module, Any]]
    kind: str = "categorical"
    variance: float = 1.0

    def build(self) -> tuple[nn.Module, Any]:
        """A fresh model and batch; the same numbers every time, the global random state left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            default = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                model, batch = self.make()
            finally:
                torch.set_default_dtype(default)
            with torch.no_grad():
                for value in model.parameters():  # away from the ones and zeros of initialisation
                    value.add_(0.15 * torch.randn_like(value))
                for name, buffer in model.named_buffers():
                    if name.endswith("running_mean"):
                        buffer.copy_(0.5 * torch.randn_like(buffer))
                    if name.endswith("running_var"):
                        buffer.copy_(0.5 + torch.rand_like(buffer))
        return model.eval(), batch

    @property
    def likelihood(self) -> Any:
        """What to pass as ``likelihood=``."""
        from dynaxx import likelihoods

        if self.kind == "gaussian" and self.variance != 1.0:
            return likelihoods.Gaussian(variance=self.variance)
        if self.kind == "heteroscedastic":
            return likelihoods.HeteroscedasticGaussian()
        return self.kind


CASES: dict[str, Case] = {}


def case(kind: str = "categorical", variance: float = 1.0) -> Callable:
    """Register a function that returns (model, batch) under its own name."""

    def register(make: Callable[[], tuple[nn.Module, Any]]) -> Callable:
        CASES[make.__name__] = Case(make.__name__, make, kind, variance)
        return make

    return register


@cache
def load(name: str) -> tuple[nn.Module, Any]:
    """Model and batch of a case, built once. Sharing is safe only because nothing may change them: test_untouched."""
    return CASES[name].build()


def labels(*shape: int, classes: int = 3) -> Tensor:
    return torch.randint(classes, shape)
