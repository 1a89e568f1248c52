"""Operators on disk: numbers as safetensors, facts as JSON in its header. Never pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaxx import tensorfile
from dynaxx.errors import InputError
from dynaxx.layout import Layout
from dynaxx.operators.base import Operator, Sampling
from dynaxx.operators.block import BlockDiagonal
from dynaxx.operators.dense import Dense
from dynaxx.operators.diagonal import Diagonal
from dynaxx.operators.gram import Gram
from dynaxx.operators.kronecker import EigenKronecker, Kronecker

FORMAT = "dynaxx-operator/1"


def save(operator: Operator, path: str | Path) -> Path:
    """Write to ``path`` through a temporary file beside it, so that an interrupted write leaves the old file whole.

    Raises:
        InputError: the form holds no numbers, or the path cannot be written.
    """
    tensors, facts = operator.state()
    header = {
        "format": FORMAT,
        "kind": _kind(operator),
        "form": operator.form,
        "count": operator.count,
        "definite": operator.definite,
        "dtype": str(operator.dtype).removeprefix("torch."),
        "shapes": [[name, list(shape)] for name, shape in operator.layout.shapes.items()],
        "sampling": None if operator.sampling is None else [operator.sampling.samples, operator.sampling.trace_stderr],
        "facts": facts,
    }
    return tensorfile.write(path, tensors, header)


def load(path: str | Path, device: str | torch.device = "cpu") -> Operator:
    """Read an operator that ``save`` wrote.

    Raises:
        InputError: the file is missing, damaged, or not one of ours.

    >>> import tempfile, torch, dynaxx
    >>> F = dynaxx.fisher(torch.nn.Linear(2, 3), torch.ones(4, 2), form="kfac")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = dynaxx.load(F.save(f"{folder}/fisher.safetensors"))
    >>> bool(torch.equal(F.to_dense(), again.to_dense()))
    True
    """
    tensors, header = tensorfile.read(path, FORMAT, "dynaxx operator", device)
    try:
        shapes = {name: tuple(shape) for name, shape in header["shapes"]}
        layout = Layout(shapes, getattr(torch, header["dtype"]), torch.device(device))
        sampling = (
            None if header["sampling"] is None else Sampling(int(header["sampling"][0]), float(header["sampling"][1]))
        )
        return _build(
            header["kind"],
            header["form"],
            tensors,
            header["facts"],
            layout,
            header["count"],
            sampling,
            header["definite"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error


def _kind(operator: Operator) -> str:
    return "block" if isinstance(operator, BlockDiagonal) else operator.form


def _build(
    kind: str,
    form: str,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    layout: Layout,
    count: int,
    sampling: Sampling | None,
    definite: bool,
) -> Operator:
    if kind == "dense":
        return Dense(tensors["matrix"], layout, count, sampling, definite)
    if kind == "diagonal":
        return Diagonal(tensors["values"], layout, count, sampling, definite, stderr=tensors.get("stderr"))
    if kind == "gram":
        return Gram(tensors["matrix"], tensors["diagonal"], None, layout, count, sampling)
    if kind == "kfac":
        return Kronecker(tensors["left"], tensors["right"], facts["axes"], facts["bias"], layout, count, sampling)
    if kind == "ekfac":
        return EigenKronecker(
            tensors["left"], tensors["right"], tensors["scales"], facts["axes"], facts["bias"], layout, count, sampling
        )
    if kind == "block":
        parts = []
        for number, fact in enumerate(facts["parts"]):
            prefix = f"{number}."
            held = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            parts.append(
                _build(fact["kind"], fact["kind"], held, fact, layout.part(fact["names"]), count, None, definite)
            )
        return BlockDiagonal(parts, layout, count, sampling, form=form)
    raise InputError(f"unknown kind of operator {kind!r}")
