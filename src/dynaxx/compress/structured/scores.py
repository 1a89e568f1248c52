"""How much a unit matters: by the metric, by the size of its weights, by its norm's scale, or by chance.

    fisher     1/2 F_mm,  F_mm = (1/N) sum_n sum_k (sum_positions a_nm g_nmk)^2

is the curvature along a gate m that multiplies the unit where it is read: to second order the loss in nats of closing
the gate, 1/2 w_Q^T F w_Q for the weights Q that read the unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import counter
from dynaxx.assembly.sweep import bar
from dynaxx.compress.structured.channels import Group, is_depthwise
from dynaxx.errors import InputError
from dynaxx.estimators import Estimator
from dynaxx.model.data import Data
from dynaxx.model.guards import untouched
from dynaxx.model.network import Network

CRITERIA = ("fisher", "magnitude", "slimming", "random")
CHUNK = 16  # cotangents drawn at a time


def fisher_scores(
    network: Network, data: Data, groups: Sequence[Group], estimator: Estimator, progress: bool = False
) -> tuple[dict[str, Tensor], int]:
    """1/2 F_mm of every unit, (units,) float64 by group, and the number of examples.

    Cost: a forward pass, and as many reverse passes as the estimator has cotangents, to gates alone: no gradient of a
    parameter is formed. Memory: the activations of a batch.

    Source: Theis et al. 2018, eq. 5, there with the observed labels; Molchanov et al. 2019.
    """
    sums = {group.name: torch.zeros(group.units, dtype=torch.float64, device=network.device) for group in groups}
    count = 0
    with untouched(network.model, ()), bar(data, progress, "batches") as batches:
        for batch in batches:
            keys = torch.arange(batch.start, batch.start + batch.count, device=network.device)
            with gated(network.model, groups, batch.count) as gates:
                output = network(batch)
            held = list(gates.values())
            if count == 0:
                _require_separate(output.z, gates)
            for cotangents in estimator.chunks(output, keys, CHUNK):
                for u in cotangents:
                    found = torch.autograd.grad(output.z, held, u, retain_graph=True, allow_unused=True)
                    for name, g in zip(gates, found, strict=True):
                        if g is not None:
                            sums[name] += g.double().square().sum(0)
            count += batch.count
    return {name: total / (2 * count) for name, total in sums.items()}, count


@contextmanager
def gated(model: nn.Module, groups: Sequence[Group], count: int) -> Iterator[dict[str, Tensor]]:
    """Gates (count, units) of ones by group, which multiply every unit where it is read."""
    gates: dict[str, Tensor] = {}
    handles = []

    def gating(name: str, units: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs["input"]
            if len(x) != count:
                raise InputError(
                    f"the input of the layer that reads {name!r} has shape {tuple(x.shape)}, and its first axis should "
                    f"run over the {count} examples; protect that layer"
                )
            gate = gates[name]
            # the last column is for channels of other groups, whose unit is -1
            factor = torch.cat([gate, gate.new_ones(count, 1)], 1)[:, units.to(x.device)].to(x.dtype)
            middle = (1,) * (x.dim() - 2)
            last = isinstance(module, nn.Linear)
            x = x * (factor.view(count, *middle, -1) if last else factor.view(count, -1, *middle))
            return ((x, *args[1:]), kwargs) if args else ((), {**kwargs, "input": x})

        return hook

    try:
        for group in groups:
            weight = next(model.parameters())
            dtype = torch.promote_types(weight.dtype, torch.float32)
            gates[group.name] = torch.ones(count, group.units, device=weight.device, dtype=dtype, requires_grad=True)
            for member in group.readers:
                hook = gating(group.name, member.units)
                reader = model.get_submodule(member.module)
                handles.append(reader.register_forward_pre_hook(hook, with_kwargs=True))
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def _require_separate(z: Tensor, gates: Mapping[str, Tensor]) -> None:
    """An example's output may depend on its own gates alone.

    Raises:
        InputError: it does on others', as where the first axis runs over time and happens to have the batch's length.
    """
    found = torch.autograd.grad(z[0].sum(), list(gates.values()), retain_graph=True, allow_unused=True)
    for name, g in zip(gates, found, strict=True):
        if g is not None and bool(g[1:].count_nonzero()):
            raise InputError(
                f"the layers that read {name!r} do not have the examples on axis 0 of their input; protect them, or "
                f"build the model with batch_first=True"
            )


def magnitudes(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """L2 norm of the filters that make a unit, (units,) float64 by group."""
    return {group.name: _sums(model, group, _filters).sqrt() for group in groups}


def slimming(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """|gamma| of the BatchNorm that a unit passes, of groups that have one (Liu et al. 2017).

    Raises:
        InputError: no group has one.
    """
    found = {group.name: _sums(model, group, _scales).sqrt() for group in groups if _normed(model, group)}
    if not found:
        raise InputError("criterion='slimming' reads BatchNorm's scales, and no channels pass one; use 'magnitude'")
    return found


def random(groups: Sequence[Group], seed: int) -> dict[str, Tensor]:
    """Uniform numbers keyed by the unit's place."""
    found, start = {}, 0
    for group in groups:
        keys = torch.arange(start, start + group.units)
        found[group.name], start = counter.uniform(seed, keys).double(), start + group.units
    return found


def _normed(model: nn.Module, group: Group) -> bool:
    return any(_scales(model.get_submodule(member.module)) is not None for member in group.members)


def _filters(module: Any) -> Tensor | None:
    made = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and not is_depthwise(module)
    return module.weight.detach().double().flatten(1).square().sum(1) if made else None


def _scales(module: Any) -> Tensor | None:
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    return module.weight.detach().double().square() if norm else None


def _sums(model: nn.Module, group: Group, squares: Any) -> Tensor:
    total = torch.zeros(group.units, dtype=torch.float64)
    for member in group.members:
        values = squares(model.get_submodule(member.module)) if member.side == "out" else None
        if values is not None:
            mine = member.units >= 0
            total.index_add_(0, member.units[mine], values.cpu()[mine])
    return total
