"""Tensors and the facts that go with them in one file: safetensors with JSON metadata, never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dynaxx.errors import InputError


def write(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write through a temporary file beside ``path``, so that an interrupted write leaves the old file whole.

    Args:
        tensors: name -> tensor; tensors that share memory are written once for each name.
        header: what JSON can carry; ``format`` says what kind of file it is.

    Raises:
        InputError: the path cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write(f"{folder}/a.safetensors", {"x": torch.ones(2)}, {"format": "one/1", "n": 3})
    ...     tensors, header = read(path, "one/1", "thing")
    >>> tensors["x"].tolist(), header["n"]
    ([1.0, 1.0], 3)
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    seen: set[int] = set()
    plain = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        # safetensors takes no tensors that share memory
        address = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if address in seen else value
        seen.add(address)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, temporary, {"dynaxx": json.dumps(dict(header))})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # where the folder is no folder, there is nothing to remove either
            temporary.unlink()
        raise InputError(
            f"cannot write {path}: {error}; give a path on a disk with room that you may write to"
        ) from error
    return path


def read(
    path: str | Path, kind: str, what: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write`` wrote.

    Args:
        kind: the ``format`` that the header must name.
        what: the thing it should hold, for messages: "pruning result".

    Raises:
        InputError: the file is missing, damaged, or of another format.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {}).get("dynaxx", "null"))
            names = list(file.keys())  # a safetensors handle is no dict
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read a {what} from {path}: {error}") from error
    found = header.get("format") if isinstance(header, dict) else None
    if found != kind:
        raise InputError(f"{path} holds no {what} of format {kind!r} (it says {found!r})")
    return tensors, header


def parts(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """Tensors named ``part/name`` by part and name; every part of ``names`` is there, if only empty."""
    found: dict[str, dict[str, Tensor]] = {part: {} for part in names}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        found[part][name] = value
    return found
