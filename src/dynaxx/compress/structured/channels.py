"""Which channels stand and fall together: Torch-Pruning's dependency graph, as plain data.

A unit is the least that can be taken out: a channel, or an attention head. It lives in several layers at once: as
outputs of those that make it, in the norms on its way, and as inputs of those that read it.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.errors import InputError
from dynaxx.model.data import Batch
from dynaxx.model.network import Network, Predict

INSTALL = "pip install --no-deps torch-pruning"
PROJECTIONS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
HEADS = ("num_attention_heads", "num_heads", "n_heads")
WIDTHS = ("all_head_size", "embed_dim", "inner_dim", "dim")  # attributes that count heads times their width


@dataclass(frozen=True, eq=False)
class Member:
    """One side of one layer.

    Args:
        module: its name.
        side: "out" for what it makes, or lets pass (norms, depthwise convolutions); "in" for what it reads.
        units: (channels,) unit of each of its channels, -1 for channels of other groups.
    """

    module: str
    side: str
    units: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be chosen freely, one by one.

    Args:
        name: of the layer that makes them, one of them where several do; for heads, of the attention.
        units: how many.
        members: all layers that know them.
        attention: the module that holds the number of heads, where units are heads.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    attention: str | None = None

    @property
    def readers(self) -> tuple[Member, ...]:
        """Members that read the units."""
        return tuple(member for member in self.members if member.side == "in")


def is_depthwise(module: nn.Module) -> bool:
    """A convolution with one filter to a channel."""
    return isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == module.out_channels


def groups_of(
    model: nn.Module, batch: Batch, predict: Predict | None = None, protect: Sequence[str] = ()
) -> tuple[list[Group], list[str]]:
    """The groups that can be pruned, and a remark on each that is left whole.

    Left whole are channels that reach the output; that pass a LayerNorm, GroupNorm, embedding, recurrent layer or
    nn.MultiheadAttention (whose heads always fill its width), or whose number forward has written down (zero-padded
    shortcuts); and those of protected, shared or parametrised layers.

    Args:
        batch: two examples are enough; the graph is read from a forward pass of a copy.
        protect: names of modules to leave whole, with all that is in them.

    Raises:
        InputError: Torch-Pruning is not installed, or a protected name is unknown.
    """
    dependency = _torch_pruning()
    known = dict(model.named_modules())
    for name in protect:
        if name not in known:
            raise InputError(f"protect names {name!r}, which the model does not have; it has {list(known)[1:6]}...")
    traced = copy.deepcopy(model).eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(True)
    network = Network(traced, None, None, predict, evaluating=False)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = dependency.DependencyGraph().build_dependency(
            traced, example_inputs=None, forward_fn=lambda model, _: network.raw(batch), verbose=False
        )
        found = [[(item.dep, item.idxs, item.root_idxs) for item in group] for group in graph.get_all_groups()]
    names = {module: name for name, module in traced.named_modules()}
    shared = Counter(id(p) for _, p in traced.named_parameters(remove_duplicate=False))
    groups, remarks = [], []
    for items in found:
        made = _group(traced, graph, items, names, shared, protect)
        if isinstance(made, str):
            remarks.append(f"{names.get(items[0][0].target.module, '?')} stays whole: {made}")
        elif made is not None:
            groups.append(made)
    place = {name: number for number, name in enumerate(known)}
    return sorted(groups, key=lambda group: place[group.name]), remarks


def _group(
    model: nn.Module, graph: Any, items: list[Any], names: dict[Any, str], shared: Counter[int], protect: Sequence[str]
) -> Group | str | None:
    """The group, or why it stays whole; None for the output itself."""
    root = items[0][0].target.module
    width = len(items[0][1])
    if any(isinstance(dep.target.module, nn.Parameter) for dep, _, _ in items):
        return "a bare parameter is added to its channels"
    if any(dep.target.type == graph.ops.OPTYPE.OUTPUT for dep, _, _ in items):
        return "its channels are part of the output"
    layers = [item for item in items if item[0].target.module in names]
    reading = graph.is_in_channel_pruning_fn
    heads = _attention(model, {names[d.target.module] for d, _, _ in layers if not reading(d.handler)})
    if isinstance(heads, str):
        return heads
    count = width if heads is None else heads[1]
    members, makers = [], []
    for dep, index, origin in layers:
        module, name = dep.target.module, names[dep.target.module]
        if any(name == p or name.startswith(p + ".") for p in protect):
            return f"{name} is protected"
        plain = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and not getattr(module, "transposed", False)
        single = plain and (getattr(module, "groups", 1) == 1 or is_depthwise(module))
        norm = isinstance(module, (nn.modules.batchnorm._NormBase, nn.PReLU))
        if not (single or norm):
            return f"its channels pass {name} ({type(module).__name__})"
        if hasattr(module, "parametrizations") or hasattr(module, "weight_orig"):
            return f"{name} is parametrised"
        if any(shared[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
            return f"{name} shares its parameters"
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            continue
        reads = single and not is_depthwise(module) and reading(dep.handler)
        channels = _channels(module, reads)
        if max(index) >= channels:
            return f"{name} has {channels} channels where {width} arrive; forward pads or cuts them"
        units = torch.full((channels,), -1, dtype=torch.long)
        units[torch.tensor(index)] = torch.tensor(origin) // (width // count)
        makes = single and not reads and not is_depthwise(module)
        if makes and bool((units < 0).any()):
            return f"{name} makes channels of several groups"
        members.append(Member(name, "in" if reads else "out", units))
        makers += [name] * makes
    if not any(member.side == "in" for member in members):
        return None
    if count < 2:
        return "it has a single unit"
    if heads is not None:
        return Group(heads[0], count, tuple(members), heads[0])
    name = names[root] if names[root] in makers else min(makers, key=list(names.values()).index)
    return Group(name, count, tuple(members))


def _channels(module: Any, reads: bool) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features if reads else module.out_features
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.in_channels if reads else module.out_channels
    return module.num_parameters if isinstance(module, nn.PReLU) else module.num_features


def _attention(model: nn.Module, makers: set[str]) -> tuple[str, int] | str | None:
    """(module, heads) if an attention's projections make the group; why not, if its heads cannot be told apart."""
    for name, module in model.named_modules():
        for triple in PROJECTIONS:
            parts = {f"{name}.{part}".lstrip("."): getattr(module, part, None) for part in triple}
            touched = makers & set(parts)
            if not touched or not all(isinstance(part, nn.Linear) for part in parts.values()):
                continue
            numbers = [getattr(module, key) for key in HEADS if isinstance(getattr(module, key, None), int)]
            widths = {part.out_features for part in parts.values() if isinstance(part, nn.Linear)}
            if touched != set(parts) or len(widths) > 1 or not numbers or min(widths) % numbers[0]:
                return f"the heads of {name or 'the model'} cannot be told apart"
            return name, numbers[0]
    return None


def _torch_pruning() -> Any:
    try:
        from torch_pruning import dependency
    except ImportError as error:
        raise InputError(
            f"structured pruning follows channels through the model with Torch-Pruning, which is not installed; "
            f"{INSTALL} (without dependencies, so that it brings no other torch)"
        ) from error
    return dependency
