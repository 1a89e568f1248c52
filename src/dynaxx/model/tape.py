"""One forward pass, remembered: any number of cotangents pulled back in reverse mode, to layer outputs only.

Forward hooks note each known layer's input and the gradient edge of its output. Pulling a cotangent then asks autograd
for the gradients at those edges, so no parameter gradient is ever formed. Whether the hooks saw every use of a
parameter is not assumed but counted: the graph of the output has one edge into a parameter's leaf per use. Parameters
with more edges than noted uses go the generic way, but for bare ones whose every use the graph itself explains.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dynaxx.errors import InputError
from dynaxx.model.data import Batch
from dynaxx.model.generic import agree, example_gradients
from dynaxx.model.graph import Graph
from dynaxx.model.linear_maps import LARGE, FastLinear
from dynaxx.model.network import Network, Output
from dynaxx.model.rules.base import Given, Use
from dynaxx.model.rules.layers import Layer, Linear, layer_of

# below this many layer-output entries per cotangent, python costs more than arithmetic: pull several at once
BATCHED_ELEMENTS = 200_000


@dataclass
class Call:
    """One call of a known layer during the forward pass."""

    name: str
    number: int
    layer: Layer
    x: Tensor
    version: int
    edge: GradientEdge
    size: int
    spread: bool = False
    a: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Arrangement:
    """Where a layer's examples are.

    Args:
        axis: they run along this one.
        flattened: they share axis 0 with positions, examples first.
        alone: nowhere, as there is only one.
        spread: the layer is called once for all of them, with a leading axis of 1 (position embeddings). Its output is
            expanded to N there, which keeps the examples' cotangents apart and changes no value.
        checked: values have confirmed it; for bare parameters shapes say it first, and the first pull confirms.
    """

    axis: int = 0
    flattened: bool = False
    alone: bool = False
    spread: bool = False
    checked: bool = True

    def examples_first(self, x: Tensor, count: int, skip: int = 0) -> Tensor:
        """Bring examples to axis ``skip`` (cotangents carry their own axis before)."""
        if self.alone:
            return x.unsqueeze(skip)
        if self.flattened:
            return x.unflatten(skip, (count, -1))
        return x.movedim(self.axis + skip, skip)


Arrangements = dict[tuple[str, int], Arrangement]


class Layers:
    """The known layers among a network's modules, found once, and which of their parameters are selected."""

    def __init__(self, network: Network) -> None:
        canonical = {id(parameter): name for name, parameter in network.parameters.items()}
        self.layers: dict[str, Layer] = {}
        self.names: dict[str, dict[str, str]] = {}  # module name -> own parameter name -> canonical name
        for name, module in network.model.named_modules():
            own = {k: canonical[id(p)] for k, p in module.named_parameters(recurse=False) if id(p) in canonical}
            layer = layer_of(module) if own else None
            if layer is not None and set(own) <= set(layer.rules):
                self.layers[name], self.names[name] = layer, own
        weights = (layer.module.weight for layer in self.layers.values() if isinstance(layer, Linear))
        self.large = any(weight.numel() >= LARGE for weight in weights)

    @contextmanager
    def listening(
        self, calls: list[Call], silent: set[str], spread: set[tuple[str, int]], count: int
    ) -> Iterator[None]:
        """Append each call of a known layer to ``calls`` while it lasts, to ``silent`` what ran without gradients."""
        counter: Counter[str] = Counter()

        def listen(name: str, layer: Layer) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
                number, counter[name] = counter[name], counter[name] + 1
                if not isinstance(out, Tensor):
                    return None
                if not out.requires_grad:
                    silent.add(name)
                    return None
                x = args[0] if args else next(iter(kwargs.values()))
                noted, version, once = x.detach(), x._version, (name, number) in spread and len(out) == 1
                if once:
                    out, noted = (tensor.expand(count, *tensor.shape[1:]) for tensor in (out, noted))
                calls.append(Call(name, number, layer, noted, version, get_gradient_edge(out), out.numel(), once))
                return out if once else None

            # first in line: a hook of the user's may replace the output, and the cotangent wanted is the layer's own
            return layer.module.register_forward_hook(hook, with_kwargs=True, prepend=True)

        handles = [listen(name, layer) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class Tape:
    """The forward pass of one batch.

    Args:
        network, layers: the model and its known layers.
        batch: what goes in.
        group: examples whose gradients count as one; 0 for the whole batch.
        arrangements: where each call has its examples, from the rehearsal; None while rehearsing.
    """

    def __init__(
        self, network: Network, layers: Layers, batch: Batch, arrangements: Arrangements | None = None, group: int = 1
    ) -> None:
        self.network, self.layers, self.batch = network, layers, batch
        self.group = group or batch.count
        calls: list[Call] = []
        silent: set[str] = set()
        spread = {call for call, arrangement in (arrangements or {}).items() if arrangement.spread}
        self._maps = FastLinear(active=layers.large)
        with layers.listening(calls, silent, spread, batch.count), self._maps:
            self.output: Output = network(batch)
        self.count = len(self.output.z)
        graph = Graph(self.output.z, network.parameters)
        if any(node.name() == "CheckpointFunctionBackward" for node in graph.nodes):
            raise InputError(
                "torch.utils.checkpoint with use_reentrant=True hides what runs inside it from autograd, so parameters "
                "would silently count as unused; give it use_reentrant=False"
            )
        for name in silent:
            if not graph.edges.keys() & set(layers.names[name].values()):
                raise InputError(
                    f"{name!r} ran without gradients though its parameters are selected, so its Fisher information "
                    f"would silently be zero; leave it out with params=, or, if it is checkpointed, give "
                    f"torch.utils.checkpoint use_reentrant=False"
                )
        self.calls = [call for call in calls if call.edge.node in graph.nodes]
        self.reached = frozenset(graph.edges)
        noted = Counter(name for call in self.calls for name in layers.names[call.name].values())
        self._unseen = {name for name, number in graph.edges.items() if noted[name] != number}
        self.meetings = graph.meetings(name for name in self._unseen if not noted[name])
        self.witness: Tape | None = None  # the first few examples alone: what bare parameters are checked against
        self.arrange(arrangements or {})

    def fits(self, arrangements: Arrangements) -> bool:
        """Whether arrangements learnt on another batch are the only ones this batch's shapes allow."""
        return all(
            _possible(call, self.count) == [arrangements.get((call.name, call.number))] for call in self.calls
        ) and all(
            found.checked and meeting.axes(self.count) == [found.axis]
            for meeting in self.meetings
            if (found := arrangements.get((meeting.name, meeting.number))) is not None
        )

    def arrange(self, arrangements: Arrangements) -> None:
        """Settle which calls the rules take; parameters of any other call go the generic way."""
        self.arrangements = arrangements
        names = self.layers.names
        lost = [call for call in self.calls if (call.name, call.number) not in arrangements]
        self.generic = self._unseen | {name for call in lost for name in names[call.name].values()}
        unknown = {meeting.name for meeting in self.meetings if (meeting.name, meeting.number) not in arrangements}
        self._met = [meeting for meeting in self.meetings if meeting.name not in unknown]
        self.generic -= {meeting.name for meeting in self._met}
        self.known = [call for call in self.calls if not set(names[call.name].values()) <= self.generic]
        self._last: Tensor | None = None
        self._uses: dict[str, list[Use]] = {}
        self._sums: dict[str, Tensor] = {}
        self._pulled: list[tuple[Call, Tensor, Tensor]] = []

    @property
    def entries(self) -> int:
        """Layer-output entries that one cotangent is pulled to."""
        sizes = [call.size for call in self.known] + [meeting.shape.numel() for meeting in self._met]
        return sum(sizes) + self.output.z.numel()

    def pulled(self, cotangents: Tensor) -> dict[str, list[Use]]:
        """Uses of every reached parameter under cotangents (K, N, P, C) of the output.

        Cost: K reverse passes to layer outputs, no parameter gradients; memory K times the layer outputs. The answer
            is remembered for
        the last cotangents, so that several collectors share one reverse pass.
        """
        self._pull(cotangents)
        return self._uses

    def pulled_calls(self, cotangents: Tensor) -> list[tuple[Call, Tensor, Tensor]]:
        """(call, its layer's input, its layer's cotangent (K, N, ...)) of each call that the rules take."""
        self._pull(cotangents)
        return self._pulled

    def sums(self, cotangents: Tensor) -> dict[str, Tensor]:
        """Gradients of every reached parameter summed over examples, for one cotangent (1, N, P, C), by name; from the
        reverse pass that ``pulled`` needs, if they are asked for first."""
        self._pull(cotangents, whole=True)
        return {name: found[0] for name, found in self._sums.items()}

    def _pull(self, cotangents: Tensor, whole: bool = False) -> None:
        if self._last is cotangents and (self._sums.keys() == self.reached or not whole):
            return
        asked = self.reached if whole else {meeting.name for meeting in self._met}
        leaves = {name: get_gradient_edge(self.network.parameters[name]) for name in asked}
        edges = [call.edge for call in self.known], [meeting.edge for meeting in self._met]
        grads = self._gradients([*edges[0], *edges[1], *leaves.values()], cotangents, bool(leaves))
        self._uses, met = {}, grads[len(edges[0]) : len(grads) - len(leaves)]
        self._sums = dict(zip(leaves, grads[len(grads) - len(leaves) :], strict=True))
        wrong = self._meet(met, self._sums, cotangents)
        if wrong:
            # taken from the arrangements themselves, so that later batches know
            for key in [key for key in self.arrangements if key[0] in wrong]:
                del self.arrangements[key]
            self.arrange(self.arrangements)
            self._pull(cotangents, whole)
            return
        self._pulled = [(call, *self._arranged(call, g)) for call, g in zip(self.known, grads, strict=False)]
        for call, a, g in self._pulled:
            for own, use in call.layer.uses(a, g).items():
                name = self.layers.names[call.name].get(own)
                if name is not None and name not in self.generic:
                    self._uses.setdefault(name, []).append(use)
        if self.generic:
            names = [name for name in self.network.parameters if name in self.generic]
            given = example_gradients(self.network, self.batch, names, cotangents)
            self._uses |= {name: [Use(Given(), None, G)] for name, G in given.items()}
        if self.group > 1:
            self._uses = {name: [use.grouped(self.group) for use in uses] for name, uses in self._uses.items()}
        self._last = cotangents

    def _meet(self, grads: list[Tensor], sums: dict[str, Tensor], cotangents: Tensor) -> set[str]:
        """Uses of bare parameters from the cotangents where they meet the examples.

        Returns:
            the parameters whose gradients do not add up to the batch's, or differ from those of the first examples
            run alone: they must not be believed.
        """
        wrong, dtype = set(), self.output.z.dtype
        witness, self.witness = self.witness, None
        alone: list[Tensor] | list[None] = [None] * len(grads)
        number = 0 if witness is None else witness.count
        if witness is not None and grads:
            edges = {(m.name, m.number): m.edge for m in witness.meetings}
            wanted = [edges[m.name, m.number] for m in self._met]
            alone = witness._gradients(wanted, cotangents[:1, :number])
        totals: dict[str, Tensor] = {}
        for meeting, g, few in zip(self._met, grads, alone, strict=True):
            axis = self.arrangements[meeting.name, meeting.number].axis
            try:
                G = meeting.gradients(g, axis)
            except RuntimeError:  # the other factor was changed in place, or a view has no batching rule
                wrong.add(meeting.name)
                continue
            G = G.to(torch.promote_types(G.dtype, torch.float32))
            totals[meeting.name] = totals[meeting.name] + G if meeting.name in totals else G
            if few is not None:
                first = g[:1].movedim(axis + 1, 0)[:number]
                if not agree(first, few.movedim(axis + 1, 0), first, dtype):
                    wrong.add(meeting.name)
                self.arrangements[meeting.name, meeting.number] = Arrangement(axis)
        for name, G in totals.items():
            if not agree(G[0].sum(0), sums[name][0], G[0], dtype):
                wrong.add(name)
            self._uses[name] = [Use(Given(), None, G)]
        return wrong

    def _arranged(self, call: Call, g: Tensor) -> tuple[Tensor, Tensor]:
        arrangement = self.arrangements[call.name, call.number]
        if call.a is None:
            if call.x._version != call.version:
                raise InputError(
                    f"the input of {call.name!r} was changed in place after the layer had used it, so its gradient is "
                    f"not defined; "
                    f"use the out-of-place operation there"
                )
            with torch.no_grad():
                call.a = call.layer.input(arrangement.examples_first(call.x, self.count))
        a, g = call.a, call.layer.cotangent(arrangement.examples_first(g, self.count, skip=1))
        # autocast gives inputs and cotangents of several dtypes, and squares of half precision leave its range
        wide = torch.promote_types(torch.promote_types(a.dtype, g.dtype), torch.float32)
        return (a.to(wide) if a.is_floating_point() else a), g.to(wide)

    def _gradients(self, edges: list[GradientEdge], cotangents: Tensor, leaves: bool = False) -> list[Tensor]:
        """(K, *output shape) at each edge; ``leaves`` says whether parameters are among them."""
        self._maps.leaves = leaves
        try:
            return self._reverse(edges, cotangents)
        finally:
            self._maps.leaves = True

    def _reverse(self, edges: list[GradientEdge], cotangents: Tensor) -> list[Tensor]:
        if not edges:
            return []
        z = self.output.z
        if len(cotangents) > 1 and self.entries < BATCHED_ELEMENTS and not self._maps.used:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
                    grads = torch.autograd.grad(z, edges, cotangents, retain_graph=True, is_grads_batched=True)
                return [g.detach() for g in grads]
            except RuntimeError:
                pass  # an operation without a batching rule: one at a time
        columns = [torch.autograd.grad(z, edges, u, retain_graph=True) for u in cotangents]
        if len(columns) == 1:
            return [g.detach()[None] for g in columns[0]]
        return [torch.stack(gs).detach() for gs in zip(*columns, strict=True)]


def _possible(call: Call, count: int) -> list[Arrangement | None]:
    """Arrangements that the shape of a call's input allows."""
    if call.spread:
        return [Arrangement(spread=True)]
    leading = call.layer.leading(call.x)
    found: list[Arrangement | None] = [Arrangement(i) for i in range(max(1, leading)) if call.x.shape[i] == count]
    if leading and len(call.x) % count == 0 and len(call.x) > count:
        found.append(Arrangement(flattened=True))
    return found or [None]
