"""A small training loop that repeats itself bit for bit and keeps masked weights at zero."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import likelihoods
from dynaxx.compress.checkpoint import Piece, named, optimizer_state, optimizer_tensors, put_back, random_states
from dynaxx.compress.reader import Reader
from dynaxx.errors import InputError
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Predict
from dynaxx.model.reading import batches, require_rereadable

MakeOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
Keep = Callable[[dict[str, Tensor], dict[str, Any]], object]
MOMENTUM = 0.9


@dataclass(frozen=True)
class Epoch:
    """One pass: its number from 1, optimizer steps done in all, mean loss over the pass (nats per example), learning
    rate, seconds.
    """

    number: int
    step: int
    loss: float
    lr: float
    seconds: float


def sgd(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with heavy-ball momentum 0.9."""
    return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM)


def fit(
    model: nn.Module,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    epochs: int,
    lr: float,
    weight_decay: float = 0.0,
    optimizer: MakeOptimizer = sgd,
    masks: Mapping[str, Tensor] | None = None,
    callback: Callable[[Epoch], None] | None = None,
    predict: Predict | None = None,
    seed: int = 0,
    start: int = 0,
    keep: Keep | None = None,
    go_on: Piece | None = None,
) -> list[Epoch]:
    """Minimise the mean negative log likelihood plus weight_decay/2 |w|^2, the learning rate falling as a half cosine
    over the epochs.

    Args:
        model: trained in place, in training mode; its modes are put back at the end.
        data: labelled batches that can be read every epoch.
        epochs, lr: passes, and the learning rate of the first.
        optimizer: optimizer(parameters, lr) -> torch optimizer; default SGD with momentum 0.9.
        masks: name -> boolean tensor; weights outside stay exactly zero and their gradients are zeroed before the
            optimizer sees them.
        callback: called after every epoch with the model in training mode. What it raises ends the training,
            KeyboardInterrupt included; the weights are then those of the last whole step.
        seed: of dropout and of loaders that shuffle with torch's global generator; the caller's random state is put
            back.
        start: optimizer steps done before.
        keep: called after every epoch and its callback with everything that going on from there needs, as tensors and
            JSON-able facts.
        go_on: what ``keep`` was given, to go on from; the result is that of a run that was never interrupted.

    Returns:
        One Epoch per pass.

    Raises:
        InputError: an option out of range, data that can be read once only, no labels, a mask that does not fit, or a
            loss that is no longer finite.
    """
    require_positive("epochs", epochs, zero=True)
    require_positive("lr", lr)
    require_positive("weight_decay", weight_decay, zero=True)
    require_rereadable("data", data)
    reader = Reader(model, likelihoods.resolve(likelihood), predict)
    parameters = {name: parameter for name, parameter in reader.model.named_parameters() if parameter.requires_grad}
    pairs = [
        (dict(reader.model.named_parameters())[name], mask)
        for name, mask in _fitting(reader.model, masks or {}).items()
    ]
    chooser = optimizer(list(parameters.values()), lr)
    modes = [(module, module.training) for module in model.modules()]
    cuda = sorted({p.device.index for p in parameters.values() if p.device.type == "cuda"})
    done, step = [], start
    _mask(pairs)
    try:
        with torch.random.fork_rng(devices=cuda), torch.enable_grad():
            torch.manual_seed(seed)
            if go_on is not None:
                done = _restore(go_on, reader.model, chooser, data)
                step = done[-1].step
            for number in range(len(done) + 1, epochs + 1):
                begun = time.perf_counter()
                rate = lr * 0.5 * (1 + math.cos(math.pi * (number - 1) / epochs))
                for group in chooser.param_groups:
                    group["lr"] = rate
                model.train()
                total, count = 0.0, 0
                for batch in batches(model, data):
                    loss = _step(reader, batch, chooser, pairs, list(parameters.values()), weight_decay, number, rate)
                    total, count, step = total + loss * batch.count, count + batch.count, step + 1
                done.append(Epoch(number, step, total / count, rate, time.perf_counter() - begun))
                if callback is not None:
                    callback(done[-1])
                if keep is not None:
                    keep(*_everything(reader.model, chooser, data, done))
    finally:
        chooser.zero_grad(set_to_none=True)
        for module, mode in modes:
            module.training = mode
    return done


def _everything(
    model: nn.Module, chooser: torch.optim.Optimizer, data: Any, done: list[Epoch]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, facts = optimizer_tensors(chooser.state_dict())
    tensors = tensors | named("model", model.state_dict()) | random_states(data)
    return tensors, {"optimizer": facts, "epochs": [asdict(epoch) for epoch in done]}


def _restore(piece: Piece, model: nn.Module, chooser: torch.optim.Optimizer, data: Any) -> list[Epoch]:
    model.load_state_dict(piece.part("model"))
    chooser.load_state_dict(optimizer_state(piece, piece.facts["optimizer"]))
    put_back(piece, data)
    return [Epoch(**epoch) for epoch in piece.facts["epochs"]]


def _step(
    reader: Reader,
    batch: Any,
    chooser: torch.optim.Optimizer,
    pairs: list[tuple[nn.Parameter, Tensor]],
    parameters: list[nn.Parameter],
    weight_decay: float,
    epoch: int,
    lr: float,
) -> float:
    chooser.zero_grad(set_to_none=True)
    try:
        output = reader(batch)
    except InputError as error:
        if "nan" not in str(error) and "inf" not in str(error):
            raise
        raise InputError(f"training diverged in epoch {epoch} at learning rate {lr:.3g} ({error}); lower lr") from error
    loss = -reader.log_likelihood(output).mean()
    penalty = (
        sum((parameter.square().sum() for parameter in parameters), loss.new_zeros(()))
        if weight_decay
        else loss.new_zeros(())
    )
    if not torch.isfinite(loss):
        raise InputError(
            f"training diverged in epoch {epoch}: the loss is {float(loss.detach())} at learning rate {lr:.3g}; "
            f"lower lr"
        )
    (loss + 0.5 * weight_decay * penalty).backward()
    # the gradient too, or momentum and adaptive steps would be driven by weights that are gone
    for parameter, mask in pairs:
        if parameter.grad is not None:
            parameter.grad.mul_(mask)
    chooser.step()
    _mask(pairs)
    return float(loss.detach())


def _mask(pairs: list[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for parameter, mask in pairs:
            parameter.mul_(mask)


def _fitting(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            found = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise InputError(
                f"the mask of {name!r} has shape {tuple(mask.shape)}, the model has {found}; take masks from this "
                f"model's own pruning"
            )
    return {name: mask.to(parameters[name].device) for name, mask in masks.items()}


def require_positive(name: str, given: Any, zero: bool = False) -> None:
    """Refuse what is no finite number > 0 (>= 0 where zero is allowed).

    Raises:
        InputError: it is not.
    """
    good = isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)
    if not good or given < 0 or (given == 0 and not zero):
        raise InputError(f"{name}={given!r} is not a finite number {'>=' if zero else '>'} 0")
