"""Model plus likelihood: from a batch to logits, and from a batch to which positions count."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.errors import InputError
from dynaxx.layout import Layout
from dynaxx.likelihoods import Categorical, Likelihood
from dynaxx.model.data import IGNORE_INDEX, Batch, tensors
from dynaxx.model.guards import require_eval, twice_differentiable, untouched
from dynaxx.model.selection import Selector, layout_of, select, unwrap

Predict = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Output:
    """What the model says of one batch.

    Args:
        z: (N, P, C) natural outputs at P positions (1 where there are none).
        targets: labels brought to z's positions, or None; ignored positions hold a valid filler.
        mask: (N, P) weights, 0 where a position does not count, or None where every position counts.
    """

    z: Tensor
    targets: Tensor | None
    mask: Tensor | None


class Network:
    """The user's model as a function of a batch, with the parameters that are looked at.

    Raises:
        InputError: the model is not a module, is in training mode where that matters, or params selects nothing
            sensible.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood | None,
        params: Selector = None,
        predict: Predict | None = None,
        evaluating: bool = True,
    ) -> None:
        self.parameters = select(unwrap(model) if isinstance(model, nn.Module) else model, params)
        self.model = unwrap(model)
        self._likelihood = likelihood
        self.predict = predict
        self.layout: Layout = layout_of(self.parameters)
        if evaluating:
            require_eval(self.model)

    @property
    def likelihood(self) -> Likelihood:
        """What the outputs mean; a loss needs none."""
        assert self._likelihood is not None
        return self._likelihood

    @property
    def device(self) -> torch.device:
        """Where the selected parameters, and so the batches, live."""
        return self.layout.device

    def versions(self) -> list[tuple[int, int]]:
        """Identifies the parameters' present values: storage and number of in-place changes."""
        return [(parameter.data_ptr(), parameter._version) for parameter in self.parameters.values()]

    def sound_second_derivatives(self) -> AbstractContextManager[None]:
        """A context in which every operation can be differentiated twice, and rightly."""
        return twice_differentiable()

    def guarded(self, twice: bool = False) -> AbstractContextManager[None]:
        """A context in which only the selected parameters require grad and after which the model is as it was."""
        return untouched(self.model, self.parameters.values(), twice)

    def raw(self, batch: Batch) -> Tensor:
        """The model's output tensor.

        Raises:
            InputError: it is neither a tensor nor carries ``.logits``.
        """
        if self.predict is not None:
            output = self.predict(self.model, batch.raw)
        else:
            kwargs = batch.kwargs
            if isinstance(batch.raw, dict) and "labels" in batch.raw and _requires(self.model, "labels"):
                kwargs = {**kwargs, "labels": batch.raw["labels"]}
            output = self.model(*batch.args, **kwargs)
        if isinstance(output, dict) and "logits" in output:
            output = output["logits"]
        output = getattr(output, "logits", output)
        if not isinstance(output, Tensor):
            raise InputError(
                f"the model returned a {type(output).__name__}; expected a tensor or an object with .logits. "
                f"Say which part counts with predict=lambda model, batch: model(batch[0])[0], for instance"
            )
        return output

    def __call__(self, batch: Batch) -> Output:
        """Forward pass, checked.

        Raises:
            InputError: NaN or infinite outputs (with the batch index), or a shape or labels the likelihood cannot take.
        """
        for tensor in tensors((batch.args, batch.kwargs)):
            if tensor.is_floating_point() and _unusable(tensor) is not None:
                raise InputError(
                    f"batch {batch.index}: its inputs hold nan or inf; clean the data. Nothing was computed"
                )
        return self.shape(self.raw(batch), batch)

    def shape(self, z: Tensor, batch: Batch) -> Output:
        """Bring raw outputs and targets to (N, P, C) and (N, P)."""
        count = batch.count
        if z.dim() == 0 or len(z) != count:
            raise InputError(
                f"batch {batch.index} has {count} examples, but the output has shape {tuple(z.shape)}; "
                f"its first axis must run over examples (predict= can rearrange it)"
            )
        where = _unusable(z.detach())
        if where is not None:
            overflow = "; float16 overflows beyond 65504: use bfloat16 or float32" if z.dtype == torch.float16 else ""
            raise InputError(
                f"batch {batch.index}: the output at {where} is {z[where].item()}{overflow}. Nothing was computed"
            )
        targets = batch.targets
        if z.dim() == 1:
            z = z[:, None]
            targets = targets[:, None] if isinstance(targets, Tensor) and targets.dim() == 1 else targets
        categorical = isinstance(self.likelihood, Categorical)
        positions = tuple(z.shape[1:-1])
        mask: Tensor | None = None
        attention = batch.attention
        if _shifts(self.model) and len(positions) == 1 and self.predict is None:
            # a causal language model's output at t speaks of token t + 1; its last output speaks of none in the batch
            z, positions = z[:, :-1], (positions[0] - 1,)
            targets = targets[:, 1:] if isinstance(targets, Tensor) else None
            attention = attention[:, 1:] if isinstance(attention, Tensor) else None
        if isinstance(attention, Tensor) and positions and attention.shape == z.shape[:-1]:
            mask = attention.to(z.dtype)
        if (
            isinstance(targets, Tensor)
            and categorical
            and not targets.is_floating_point()
            and targets.shape == z.shape[:-1]
        ):
            ignored = targets == IGNORE_INDEX
            if ignored.any():
                kept = (~ignored).to(z.dtype)
                mask = kept if mask is None else mask * kept
                targets = targets.masked_fill(ignored, 0)
        if batch.weights is not None:
            if batch.weights.shape not in (z.shape[:1], z.shape[:-1]):
                raise InputError(
                    f"batch {batch.index}: weights of shape {tuple(batch.weights.shape)} fit neither the {count} "
                    f"examples nor "
                    f"the positions {tuple(z.shape[:-1])}"
                )
            weights = batch.weights.to(z.dtype).reshape(
                *batch.weights.shape, *[1] * (z.dim() - 1 - batch.weights.dim())
            )
            mask = weights.expand(z.shape[:-1]) if mask is None else mask * weights
        try:
            self.likelihood.check(z, targets)
        except InputError as error:
            raise InputError(f"batch {batch.index}: {error}") from None
        flat = (count, -1, z.shape[-1])
        if isinstance(targets, Tensor):
            places = z.shape[1:-1].numel()
            targets = targets.reshape(count, places) if categorical else targets.reshape(count, places, -1)
        return Output(z.reshape(flat), targets, None if mask is None else mask.reshape(count, -1))


def _unusable(values: Tensor) -> tuple[int, ...] | None:
    """Where the first nan or inf stands; -inf masks a class or a position and is allowed.

    One cheap pass when all is well.
    """
    if torch.isfinite(values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)):
        return None
    bad = torch.isnan(values) | (values == torch.inf)
    return tuple(int(i) for i in bad.nonzero()[0]) if bad.any() else None


def _requires(model: nn.Module, name: str) -> bool:
    argument = signature(model.forward).parameters.get(name)
    return argument is not None and argument.default is Parameter.empty


def _shifts(model: nn.Module) -> bool:
    """HuggingFace's causal language models are recognised by the names that library gives them."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
