"""What a preset looks at, and the parts of a look that every preset has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import likelihoods
from dynaxx.fisher import module_groups
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Network, Output
from dynaxx.monitor.snapshot import Probe
from dynaxx.track.names import clean_name

CHUNK = 2**22  # entries of a diagonal in float64 at a time


@dataclass(frozen=True)
class Subject:
    """A model and how to look at it.

    Args:
        model: the module itself, without wrappers.
        probe: the examples.
        params: which parameters, as for ``dynaxx.fisher``.
        prior_precision, count: d and N of the posterior, see ``snapshot``.
        loss: loss(output, targets) for what needs a Hessian; None for the likelihood's own.
        memory: bytes that a Gram matrix may take while it is made.
        preconditioner: diagonal of the optimizer's preconditioner by name, or None; asked for when it is needed.
    """

    model: nn.Module
    probe: Probe
    params: Any = None
    prior_precision: float = 1.0
    count: int | None = None
    loss: Callable[..., Tensor] | None = None
    memory: float | None = None
    preconditioner: Callable[[], dict[str, Tensor] | None] | None = None

    @property
    def likelihood(self) -> Likelihood:
        """What the outputs mean."""
        return likelihoods.resolve(self.probe.likelihood)

    @property
    def information(self) -> float:
        """N / d."""
        return (self.count or self.probe.count) / self.prior_precision

    def network(self) -> Network:
        """The model as a function; in evaluation mode where that matters."""
        return Network(self.model, self.likelihood, self.params, self.probe.predict)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``dynaxx.fisher``."""
        probe = self.probe
        return {
            "likelihood": probe.likelihood,
            "seed": probe.seed,
            "predict": probe.predict,
            "params": self.params,
        }

    def protocol(self, preset: Any, every: Any) -> dict[str, Any]:
        """How numbers are measured, so that those of different runs can be compared or not."""
        probe = self.probe
        return {
            "preset": preset if isinstance(preset, str) else getattr(preset, "__name__", "own"),
            "every": every,
            "probe": {
                "name": probe.name,
                "count": probe.count,
                "digest": probe.digest,
                "seed": probe.seed,
                "likelihood": repr(self.likelihood),
            },
            "prior_precision": self.prior_precision,
            "count": self.count or probe.count,
        }


def of_outputs(likelihood: Likelihood, output: Output) -> dict[str, Tensor]:
    """Per example (N,): the entropy of p(y|x), and the loss -log p(y|x) where there are labels, nats, summed over
    unmasked positions.
    """
    z = output.z.detach()

    def total(values: Tensor) -> Tensor:
        values = values.double()
        return (values if output.mask is None else values * output.mask).sum(1)

    found = {"dynaxx/predictive_entropy": total(likelihood.entropy(z))}
    if output.targets is not None:
        found["dynaxx/probe_loss"] = total(-likelihood.log_prob(z, output.targets))
    return found


def layers(network: Network) -> dict[str, tuple[str, ...]]:
    """Name of a layer as metrics carry it -> its parameters."""
    out: dict[str, tuple[str, ...]] = {}
    for group in module_groups(network):
        owner = group[0].rpartition(".")[0] if len(group) > 1 else group[0].removesuffix(".weight")
        name = label = clean_name(owner or group[0])[:180]
        number = 2
        while name in out:  # two names that differ in characters no tracker accepts
            name, number = f"{label}_{number}", number + 1
        out[name] = group
    return out


def shares(traces: Mapping[str, float]) -> dict[str, float]:
    """Layer -> trace as metrics: each layer's trace and its share of the whole."""
    total = sum(traces.values())
    out = {}
    for name, value in traces.items():
        out[f"dynaxx/layer/{name}/trace"] = value
        out[f"dynaxx/layer/{name}/share"] = float(value) / total if total > 0 else 0.0
    return out


def diagonal_summary(diagonal: Tensor, information: float) -> dict[str, float]:
    """What the diagonal of F says by itself.

    The posterior entropy of the exact diagonal is a lower bound of the whole matrix's (Hadamard's inequality); the
    others are numbers of their own, not to be compared with those of the spectrum.
    """
    sums = torch.zeros(5, dtype=torch.float64)
    for piece in diagonal.detach().split(CHUNK):
        d = piece.double()
        information_each = information * d
        sums += torch.stack(
            [
                d.sum(),
                d.square().sum(),
                (d <= 0).double().sum(),
                (information_each / (information_each + 1)).sum(),
                -0.5 * torch.log1p(information_each).sum(),
            ]
        ).cpu()
    total, squares, zeros, dimension, entropy = sums.tolist()
    numbers = (total**2 / squares if squares > 0 else 0.0, zeros / len(diagonal), dimension, entropy)
    names = ("participation_ratio", "zero_fraction", "effective_dimension", "posterior_entropy")
    return {f"dynaxx/diagonal/{name}": value for name, value in zip(names, numbers, strict=True)}
