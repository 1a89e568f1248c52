"""Criteria for a model that has not been trained yet: SNIP, GraSP, SynFlow.

They stay below magnitude after training, and shuffling their masks within each layer costs little (Frankle, Dziugaite,
Roy & Carbin, ICLR 2021): hold them against ``masks.shuffled``.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import likelihoods
from dynaxx.compress.reader import Reader
from dynaxx.errors import InputError
from dynaxx.model.reading import batches, forward, unmoved

TEMPERATURE = 200.0  # of GraSP's outputs, as published


def snip(
    model: nn.Module, data: Any, weights: dict[str, nn.Parameter], likelihood: Any, predict: Any
) -> tuple[dict[str, Tensor], int]:
    """|w g|, g the gradient of the mean negative log likelihood; and how many examples it took.

    Source: Lee, Ajanthan & Torr, ICLR 2019.
    """
    gradient, count = _gradient(model, data, weights, likelihood, predict)
    return {name: (weight.detach() * gradient[name]).abs().double() for name, weight in weights.items()}, count


def grasp(
    model: nn.Module, data: Any, weights: dict[str, nn.Parameter], likelihood: Any, predict: Any
) -> tuple[dict[str, Tensor], int]:
    """w * (H g), H the Hessian and g the gradient of the loss with outputs divided by 200; the lowest go.

    Dropping the weights of lowest score keeps the gradient's norm largest: its first-order change is -w * (H g).

    Source: Wang, Zhang & Grosse, ICLR 2020. Two passes over the data, the second with a second derivative.
    """
    gradient, count = _gradient(model, data, weights, likelihood, predict, TEMPERATURE)
    reader = Reader(model, likelihoods.resolve(likelihood), predict)
    product: dict[str, Tensor] = {}
    for batch in _passes(model, data):
        loss = _loss(reader, batch, TEMPERATURE) * (batch.count / count)
        first = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
        inner = sum((g * gradient[name]).sum() for name, g in zip(weights, first, strict=True))
        second = torch.autograd.grad(inner, list(weights.values()), materialize_grads=True)  # type: ignore[arg-type]
        for name, value in zip(weights, second, strict=True):
            product[name] = product[name] + value if name in product else value
    return {name: (weight.detach() * product[name]).double() for name, weight in weights.items()}, count


def synflow(
    model: nn.Module, data: Any, weights: dict[str, nn.Parameter], predict: Any
) -> tuple[dict[str, Tensor], int]:
    """|w dR/dw| with R the sum of the outputs of the model of |w| on an input of ones; no data but its shape.

    Taken 100 times over, with an exponential schedule, no layer is emptied. In double precision: R is a product over
    the layers.

    Source: Tanaka, Kunin, Yamins & Ganguli, NeurIPS 2020.

    Raises:
        InputError: the model's input is not one floating-point tensor.
    """
    first = next(iter(_passes(model, data))).part(0, 1)
    if len(first.args) != 1 or first.kwargs or not first.args[0].is_floating_point():
        raise InputError("criterion='synflow' feeds ones; it needs a model of one floating-point tensor")
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        for value in double.parameters():
            value.abs_()
    named = dict(double.named_parameters())
    chosen = [named[name].requires_grad_() for name in weights]
    ones = replace(first, args=(torch.ones_like(first.args[0], dtype=torch.float64),), raw=None)
    answer = forward(double, ones) if predict is None else predict(double, ones.args[0])
    total = (answer if isinstance(answer, Tensor) else answer.logits).sum()
    flow = torch.autograd.grad(total, chosen, materialize_grads=True)
    return {n: (w.detach() * g).abs() for n, w, g in zip(weights, chosen, flow, strict=True)}, 0


def _passes(model: nn.Module, data: Any) -> Any:
    with unmoved(data):
        yield from batches(model, data)


def _loss(reader: Reader, batch: Any, temperature: float) -> Tensor:
    output = reader(batch)
    return -reader.log_likelihood(replace(output, z=output.z / temperature)).mean()


def _gradient(
    model: nn.Module,
    data: Any,
    weights: dict[str, nn.Parameter],
    likelihood: Any,
    predict: Any,
    temperature: float = 1.0,
) -> tuple[dict[str, Tensor], int]:
    frozen = [name for name, weight in weights.items() if not weight.requires_grad]
    if frozen:
        raise InputError(
            f"{frozen[:5]} do not require grad, and this criterion is a gradient; leave them out of params="
        )
    reader, count = Reader(model, likelihoods.resolve(likelihood), predict), 0
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in _passes(model, data):
        found = torch.autograd.grad(_loss(reader, batch, temperature), list(weights.values()), materialize_grads=True)
        for name, value in zip(weights, found, strict=True):
            total[name] += value * batch.count
        count += batch.count
    return {name: value / count for name, value in total.items()}, count
