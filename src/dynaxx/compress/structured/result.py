"""What structured pruning made: a smaller model, what it kept of the larger one, and what that cost and saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import tensorfile
from dynaxx.compress.structured.bottleneck import Bottleneck
from dynaxx.compress.structured.cutting import Attributes, Kept, cut
from dynaxx.errors import InputError

FORMAT = "dynaxx-structured/1"
SIZES = ("small", "dense")


@dataclass(frozen=True)
class Architecture:
    """How the smaller model differs from the dense one, apart from the channels kept.

    Args:
        attributes: module -> attribute -> value, of attention modules that lost heads.
        bottlenecks: module -> directions kept of its input and of its output, None where there is no such part.
    """

    attributes: Attributes = field(default_factory=dict)
    bottlenecks: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StructuredResult:
    """A smaller model. The dense one was not changed.

    Args:
        model: the smaller model, in evaluation mode; fine-tune it in place, then ``save``.
        kept: module -> "in" and "out" -> indices of the channels that stay; for a bottleneck, of eigendirections.
        scores: group -> (units,) saliency.
        report: JSON-able facts: criterion, reduction asked for, ``parameters``, ``flops`` (of an example), ``bytes``
            and ``latency`` (seconds; median, low, high) of "dense" and "small", ``layers`` and ``remarks``.
        architecture: what rebuilds the model besides ``kept``.
        predicted: group -> nats per example that its units cost by the criterion's own second-order model; None where
            it makes no prediction.
    """

    model: nn.Module
    kept: Kept
    scores: dict[str, Tensor]
    report: dict[str, Any]
    architecture: Architecture
    predicted: dict[str, float] | None = None

    @property
    def predicted_loss_increase(self) -> float | None:
        """Sum over groups."""
        return None if self.predicted is None else sum(self.predicted.values())

    def save(self, path: str | Path) -> Path:
        """Write the smaller model, as it is now, and how to rebuild it: safetensors with JSON metadata, no pickle.

        Raises:
            InputError: the path cannot be written.
        """
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"score/{name}": value for name, value in self.scores.items()}
        tensors |= {f"{side}/{name}": index for name, sides in self.kept.items() for side, index in sides.items()}
        header = {
            "format": FORMAT,
            "report": self.report,
            "architecture": asdict(self.architecture),
            "predicted": self.predicted,
        }
        return tensorfile.write(path, tensors, header)

    @classmethod
    def load(
        cls, path: str | Path, factory: Callable[[], nn.Module], device: str | torch.device = "cpu"
    ) -> StructuredResult:
        """Rebuild the smaller model from the dense one's code and what ``save`` wrote.

        Args:
            factory: makes the dense model; its weights do not matter.

        Raises:
            InputError: the file is missing, damaged or not one of ours, or the factory makes another model.
        """
        tensors, header = tensorfile.read(path, FORMAT, "structured result", device)
        parts = tensorfile.parts(tensors, ("model", "score", "in", "out"))
        kept: Kept = {}
        for side in ("in", "out"):
            for name, index in parts[side].items():
                kept.setdefault(name, {})[side] = index
        found = header["architecture"]
        architecture = Architecture(
            found["attributes"], {name: (inner, outer) for name, (inner, outer) in found["bottlenecks"].items()}
        )
        model = rebuild(factory().to(device), kept, architecture)
        try:
            model.load_state_dict(parts["model"])
        except RuntimeError as error:
            raise InputError(
                f"the factory's model does not fit {path}: {error}; it must make the dense model the result is of"
            ) from error
        return cls(model.eval(), kept, parts["score"], header["report"], architecture, header["predicted"])

    def __repr__(self) -> str:
        facts = [f"{self.report['criterion']}, {len(self.kept)} layers smaller"]
        for name in ("parameters", "flops", "latency"):
            pair = self.report.get(name)
            if pair is not None:
                small, dense = (value["median"] if name == "latency" else value for value in map(pair.get, SIZES))
                facts.append(f"{small / dense:.1%} of the {name}")
        if self.predicted_loss_increase is not None:
            facts.append(f"predicted loss increase {self.predicted_loss_increase:.3g} nats")
        return f"StructuredResult({', '.join(facts)})"


def rebuild(model: nn.Module, kept: Kept, architecture: Architecture) -> nn.Module:
    """The smaller architecture from the dense model, in place; weights of bottlenecks are left to be loaded.

    Raises:
        InputError: the dense model has not the layers that this needs.
    """
    channels = {name: sides for name, sides in kept.items() if name not in architecture.bottlenecks}
    cut(model, channels, architecture.attributes)
    for name, (inner, outer) in architecture.bottlenecks.items():
        layer = dict(model.named_modules()).get(name)
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise InputError(f"the model has no Linear or Conv2d {name!r}; give the dense model the result is of")
        replace(model, name, Bottleneck(layer, inner, outer))
    return model


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in another's place."""
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, module)
