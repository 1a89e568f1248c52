"""What a workflow has done so far, in a folder, so that it goes on there after any kind of end.

Each finished piece is one safetensors file, written under another name and renamed, so that it is there whole or not at
all: ``begin`` (the untrained model), ``run`` (its number in the store), ``train`` (the last finished epoch),
``one_shot``, ``trial-1``, ``trial-2``, ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynaxx import tensorfile
from dynaxx.errors import InputError
from dynaxx.model.reading import generators_of

FORMAT = "dynaxx-workflow/1"


class Piece(NamedTuple):
    """Tensors by name, and JSON-able facts."""

    tensors: dict[str, Tensor]
    facts: Any

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {
            name.removeprefix(f"{prefix}/"): value
            for name, value in self.tensors.items()
            if name.startswith(f"{prefix}/")
        }


class Checkpoint:
    """A folder of finished pieces; without a folder nothing is kept and nothing found.

    Args:
        folder: made where it is missing; None to keep nothing.
        config: what the work was asked for. A folder that was begun with another one is refused.

    Raises:
        InputError: the folder cannot be written, or belongs to other work.
    """

    def __init__(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = json.loads(json.dumps(dict(config), default=str))
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write resume={str(folder)!r}: {error}; give a folder you may write to") from error
        begun = self.load("config")
        if begun is None:
            self.save("config", {}, self.config)
        elif begun.facts != self.config:
            differing = sorted(k for k in {*begun.facts, *self.config} if begun.facts.get(k) != self.config.get(k))
            raise InputError(
                f"resume={str(folder)!r} was begun with other options ({', '.join(differing)}); give the same ones, or "
                f"another folder"
            )

    def save(self, name: str, tensors: Mapping[str, Tensor], facts: Any) -> None:
        """Keep a piece.

        Raises:
            InputError: it cannot be written.
        """
        if self.folder is None:
            return
        path = self.folder / f"{name}.safetensors"
        # a scratch entry, because a file of metadata alone is no safetensors file to all readers
        tensorfile.write(path, {**tensors, "_": torch.zeros(1)}, {"format": FORMAT, "facts": facts})

    def load(self, name: str, device: torch.device | str = "cpu") -> Piece | None:
        """A piece, or None where it is not there.

        Raises:
            InputError: the file is damaged or not one of ours.
        """
        if self.folder is None or not (path := self.folder / f"{name}.safetensors").exists():
            return None
        try:
            tensors, header = tensorfile.read(path, FORMAT, "part of a workflow", device)
        except InputError as error:
            raise InputError(
                f"{error}; delete it to do that part again, or give resume= a folder of its own"
            ) from error
        del tensors["_"]
        return Piece(tensors, header["facts"])


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under a prefix."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def random_states(data: Any) -> dict[str, Tensor]:
    """Of torch's global generator and the data's own, as tensors."""
    own = {f"random/{i}": generator.get_state() for i, generator in enumerate(generators_of(data))}
    return {"random/global": torch.get_rng_state(), **own}


def put_back(piece: Piece, data: Any) -> None:
    """Restore what ``random_states`` saw."""
    states = piece.part("random")
    torch.set_rng_state(states["global"].cpu())
    for i, generator in enumerate(generators_of(data)):
        if str(i) in states:
            generator.set_state(states[str(i)].cpu())


def optimizer_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors and JSON-able facts."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    return tensors, {"state": plain, "param_groups": state["param_groups"]}


def optimizer_state(piece: Piece, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The state_dict again."""
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in facts["state"].items()}
    for name, value in piece.part("optimizer").items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": facts["param_groups"]}
