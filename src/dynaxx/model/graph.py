"""What autograd's graph says of parameters: how often each is used, and where a bare one meets the examples.

A parameter that belongs to no layer (learnt positions, a class token, a layer's scale) is mostly added to, multiplied
with, or expanded over activations. Its cotangent at that operation still has an axis of examples, which only the
operation's own backward sums over: per-example gradients are the pulled cotangent, summed over the other axes that the
parameter was broadcast along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

# what the cotangent is multiplied with, from the operation's node and the parameter's place among its operands
FACTORS: dict[str, Any] = {
    "AddBackward0": lambda node, place: node._saved_alpha if place else 1,
    "SubBackward0": lambda node, place: -node._saved_alpha if place else 1,
    "MulBackward0": lambda node, place: node._saved_self if place else node._saved_other,
    "ExpandBackward0": lambda node, place: 1,
}


@dataclass(frozen=True)
class Meeting:
    """The operation that broadcasts a parameter, or a view or function of it alone, over what examples hold.

    Args:
        name: of the parameter.
        number: which of its meetings.
        parameter: itself.
        node: of the operation.
        place: of the operand in it.
        shape: of the operation's output.
        operand: the edge where the operand was made; None where it is the parameter.
        operand_shape: of the operand.
    """

    name: str
    number: int
    parameter: nn.Parameter
    node: Node
    place: int
    shape: torch.Size
    operand: GradientEdge | None
    operand_shape: torch.Size

    @property
    def edge(self) -> GradientEdge:
        """Of the operation's output, where the cotangent is wanted."""
        return GradientEdge(self.node, 0)

    def axes(self, count: int) -> list[int]:
        """Axes of the output that may run over ``count`` examples: the operand was broadcast along them."""
        padded = _padded(self.operand_shape, len(self.shape))
        return [axis for axis, size in enumerate(self.shape) if size == count and padded[axis] == 1]

    def gradients(self, g: Tensor, axis: int) -> Tensor:
        """Per-example gradients (K, N, *S) from the cotangent g (K, *shape) with examples along ``axis`` of shape."""
        factor = FACTORS[self.node.name()](self.node, self.place)
        if isinstance(factor, Tensor) or factor != 1:
            g = g * (factor.detach() if isinstance(factor, Tensor) else factor)
        padded = _padded(self.operand_shape, len(self.shape))
        shared = [i + 1 for i, size in enumerate(padded) if size == 1 and i != axis]
        G = (g.sum(shared, keepdim=True) if shared else g).movedim(axis + 1, 1)
        G = G.reshape(*G.shape[:2], *self.operand_shape)
        if self.operand is None:
            return G
        made = torch.autograd.grad(
            [self.operand], [self.parameter], [G.flatten(0, 1)], retain_graph=True, is_grads_batched=True
        )
        return made[0].detach().unflatten(0, G.shape[:2])


class Graph:
    """The graph under an output z, walked once.

    Attributes:
        nodes: all that z was computed by.
        edges: name -> number of edges into the parameter's leaf, one for each use.
    """

    def __init__(self, z: Tensor, parameters: dict[str, nn.Parameter]) -> None:
        canonical = {id(parameter): name for name, parameter in parameters.items()}
        self.parameters, self.edges = parameters, Counter[str]()
        self._consumers: dict[Node | str, list[tuple[Node, int]]] = {}
        self.nodes: set[Node] = set() if z.grad_fn is None else {z.grad_fn}
        stack = list(self.nodes)
        while stack:
            consumer = stack.pop()
            for place, (node, _) in enumerate(consumer.next_functions):
                if node is None:
                    continue
                variable = getattr(node, "variable", None)
                name = None if variable is None else canonical.get(id(variable))
                if name is not None:
                    self.edges[name] += 1
                self._consumers.setdefault(node if name is None else name, []).append((consumer, place))
                if variable is None and node not in self.nodes:
                    self.nodes.add(node)
                    stack.append(node)

    def meetings(self, names: Iterable[str]) -> list[Meeting]:
        """Of those of these parameters whose every use is one."""
        out: list[Meeting] = []
        for name in sorted(names):
            found = [self._meeting(name, *use, number) for number, use in enumerate(self._consumers[name])]
            out += found if None not in found else []  # type: ignore[arg-type]
        return out

    def _meeting(self, name: str, node: Node, place: int, number: int) -> Meeting | None:
        """Follow what is made of the parameter alone, and used once, up to the operation that broadcasts it."""
        parameter = self.parameters[name]
        operand, shape = None, parameter.shape
        while (output := _shape(node)) is not None:
            if node.name() in FACTORS and output != shape:
                return Meeting(name, number, parameter, node, place, output, operand, shape)
            consumers = self._consumers.get(node, [])
            if len(consumers) != 1 or sum(other is not None for other, _ in node.next_functions) != 1:
                return None
            operand, shape = GradientEdge(node, 0), output
            node, place = consumers[0]
        return None


def _shape(node: Node) -> torch.Size | None:
    """Of a node's only output; None where it has several, or torch does not say."""
    outputs: Any = getattr(node, "_input_metadata", ())
    return torch.Size(outputs[0].shape) if len(outputs) == 1 else None


def _padded(shape: torch.Size, dims: int) -> tuple[int, ...]:
    return (1,) * (dims - len(shape)) + tuple(shape)
