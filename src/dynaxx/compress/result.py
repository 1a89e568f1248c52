"""What pruning decided: masks, the scores behind them, and how to put them on a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from dynaxx import tensorfile
from dynaxx.compress.masks import counts
from dynaxx.errors import InputError, choose
from dynaxx.model.calibrate import calibrate
from dynaxx.model.network import Predict
from dynaxx.model.selection import unwrap

FORMAT = "dynaxx-pruning/1"
MODES = ("zero", "prune", "parametrize")


class Masked(nn.Module):
    """A parametrisation w -> w * mask; gradients of dropped weights are zero."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Weight times mask."""
        return weight * self.mask


@dataclass(frozen=True, eq=False)
class PruningResult:
    """Masks for a model. Making it changed nothing; ``apply`` does.

    Args:
        masks: name -> boolean tensor of the parameter's shape, True where the weight stays.
        scores: name -> saliency of every prunable weight.
        report: JSON-able facts: criterion, scope, sparsity asked for, examples, damping, ``layers`` (name, kept, total)
            and ``remarks``.
        weights: name -> values that go with the masks (the compensation of "obs", or a fine-tuned model's), or None to
            keep the model's.
        predicted_loss_increase: nats per example by the criterion's own second-order model; None where it makes no
            prediction.
        predicted: name -> its share; shares add up to the whole. Pruned in several steps, each is a sum over steps.
    """

    masks: dict[str, Tensor]
    scores: dict[str, Tensor]
    report: dict[str, Any]
    weights: dict[str, Tensor] | None = None
    predicted_loss_increase: float | None = None
    predicted: dict[str, float] | None = None
    _counts: tuple[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_counts", counts(self.masks))

    @property
    def kept(self) -> int:
        """Prunable weights that stay."""
        return self._counts[0]

    @property
    def prunable(self) -> int:
        """Weights that could have been dropped."""
        return self._counts[1]

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is dropped."""
        return 1 - self.kept / self.prunable

    def apply(
        self, model: nn.Module, mode: str = "zero", *, data: Any = None, predict: Predict | None = None
    ) -> nn.Module:
        """Prune ``model`` in place and return it.

        Args:
            model: one with the parameters this result names.
            mode: "zero" writes zeros and nothing else, so training would fill them again unless the masks are kept;
                "prune" hangs the masks on the modules as ``torch.nn.utils.prune`` does (``weight_orig``,
                ``weight_mask``); "parametrize" as ``torch.nn.utils.parametrize``. In all three the Parameter objects
                stay the same, so an optimizer made before goes on working.
            data: re-estimates BatchNorm's running statistics, which belong to the dense model's activations; without
                it do so with ``dynaxx.model.calibrate.calibrate``. predict: as for ``dynaxx.fisher``.

        Raises:
            InputError: an unknown mode; a name or shape does not fit (nothing is changed then); or a shared parameter
                in a mode that would tear it apart.
        """
        choose("mode", mode, MODES)
        bare = unwrap(model)
        parameters = dict(bare.named_parameters())
        for name, value in {**(self.weights or {}), **self.masks}.items():
            if name not in parameters:
                raise InputError(
                    f"this result prunes {name!r}, which the model does not have (it has {list(parameters)[:5]}...); "
                    f"apply it to the model it was "
                    f"made from, before any other pruning"
                )
            if parameters[name].shape != value.shape:
                raise InputError(
                    f"{name!r} has shape {tuple(parameters[name].shape)} in this model and {tuple(value.shape)} in "
                    f"this result"
                )
        if mode != "zero":
            self._require_single_use(bare)
        with torch.no_grad():
            for name, value in (self.weights or {}).items():
                parameters[name].copy_(value)
            for name, mask in self.masks.items():
                parameters[name].mul_(mask.to(parameters[name].device))
        for name, mask in self.masks.items() if mode != "zero" else ():
            owner, _, attribute = name.rpartition(".")
            module, mask = bare.get_submodule(owner), mask.to(parameters[name].device)
            if mode == "prune":
                torch_prune.custom_from_mask(module, attribute, mask)
            else:
                parametrize.register_parametrization(module, attribute, Masked(mask.to(parameters[name].dtype)))
        if data is not None:
            calibrate(model, data, predict=predict)
        return model

    def _require_single_use(self, model: nn.Module) -> None:
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        for name in self.masks:
            shared = names[id(dict(model.named_parameters())[name])]
            if len(shared) > 1:
                raise InputError(
                    f"{name!r} is shared by {shared}; pruning one of them would untie them. Use mode='zero'"
                )

    def save(self, path: str | Path) -> Path:
        """Write as safetensors with JSON metadata, through a temporary file; ``PruningResult.load`` reads it back.

        Raises:
            InputError: the path cannot be written.
        """
        parts = {"mask": self.masks, "score": self.scores, "weight": self.weights or {}}
        tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        header = {
            "format": FORMAT,
            "report": self.report,
            "compensated": self.weights is not None,
            "predicted": self.predicted_loss_increase,
            "shares": self.predicted,
        }
        return tensorfile.write(path, tensors, header)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> PruningResult:
        """Read what ``save`` wrote.

        Raises:
            InputError: the file is missing, damaged, or not one of ours.
        """
        tensors, header = tensorfile.read(path, FORMAT, "pruning result", device)
        parts = tensorfile.parts(tensors, ("mask", "score", "weight"))
        # safetensors sorts its keys; the report remembers the model's order
        order = [layer["name"] for layer in header["report"]["layers"]]
        weights = parts["weight"] if header["compensated"] else None
        return cls(
            {name: parts["mask"][name] for name in order},
            {name: parts["score"][name] for name in order if name in parts["score"]},
            header["report"],
            weights,
            header["predicted"],
            header.get("shares"),
        )

    def __repr__(self) -> str:
        criterion, scope = self.report.get("criterion", "masks"), self.report.get("scope", "global")
        head = f"PruningResult({criterion}, {scope}: {self.kept} of {self.prunable} weights kept"
        head += f", sparsity {self.sparsity:.1%}"
        if self.predicted_loss_increase is not None:
            head += f", predicted loss increase {self.predicted_loss_increase:.3g} nats"
        return head + (", compensated)" if self.weights is not None else ")")


def layer_rows(masks: dict[str, Tensor], predicted: dict[str, float] | None = None) -> list[dict[str, Any]]:
    """Per parameter: name, weights kept, weights in all, and its share of the predicted loss increase."""
    shares = predicted or {}
    return [
        {"name": name, "kept": int(mask.sum()), "total": mask.numel()}
        | ({"predicted": shares[name]} if name in shares else {})
        for name, mask in masks.items()
    ]
