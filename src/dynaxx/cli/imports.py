"""Import strings, ``package.module:factory``: how the command line is given models and data."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from dynaxx.errors import InputError


def load(what: str, text: str) -> Callable[[], Any]:
    """The callable that ``text`` names. Modules of the current directory can be imported.

    Raises:
        InputError: ``text`` has no such form, the module is not there or fails to import, or the name is missing or
            cannot be called.

    >>> load("MODEL", "torch.nn:Identity")()
    Identity()
    """
    module_name, colon, attribute = text.partition(":")
    if (
        not colon
        or not module_name
        or not attribute
        or not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split(".")))
    ):
        hint = " (a path is no module: write package.module without .py)" if "/" in text or text.endswith(".py") else ""
        raise InputError(f"{what}={text!r} is no import string; write package.module:factory{hint}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            raise InputError(
                f"{what}={text!r}: there is no module {missing!r} in the current directory or among those installed; "
                f"run dynaxx where it can be imported from"
            ) from error
        raise InputError(
            f"{what}={text!r}: importing {module_name} needs the module {missing!r}, which is not installed"
        ) from error
    except Exception as error:
        raise InputError(
            f"{what}={text!r}: importing {module_name} failed with {type(error).__name__}: {error}; --debug shows where"
        ) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))][:8]
            raise InputError(
                f"{what}={text!r}: {module_name} has no {attribute!r}; it has {', '.join(public) or 'nothing to call'}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            f"{what}={text!r} is a {type(found).__name__}, not a function; name one that returns it, called without "
            f"arguments"
        )
    return found


def call(what: str, text: str) -> Any:
    """Call what ``text`` names, without arguments.

    Raises:
        InputError: as for ``load``, or the call fails.
    """
    factory = load(what, text)
    try:
        return factory()
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{what}={text!r}: calling it without arguments failed with {type(error).__name__}: {error}; --debug "
            f"shows where"
        ) from error


def model(text: str) -> Any:
    """The module that a factory returns.

    Raises:
        InputError: as for ``call``, or it returns something else.
    """
    from torch import nn

    made = call("MODEL", text)
    if not isinstance(made, nn.Module):
        raise InputError(f"MODEL={text!r} returned a {type(made).__name__}; it must return a torch.nn.Module")
    return made


def data(what: str, text: str) -> tuple[Any, ...]:
    """What a data factory returns, as (train,), (train, validation) or (train, validation, test).

    A tuple of loaders, or of batches (x, y), is taken apart; a tuple of two tensors is one batch.

    Raises:
        InputError: as for ``call``, or it returns nothing that can be read.
    """
    from torch import Tensor

    made = call(what, text)
    if made is None or isinstance(made, (str, bytes, int, float)):
        raise InputError(
            f"{what}={text!r} returned {made!r:.60}; it must return a loader, or a tuple (train, validation) of "
            f"loaders or batches"
        )
    if isinstance(made, tuple) and not any(isinstance(part, Tensor) for part in made):
        if not 1 <= len(made) <= 3:
            raise InputError(
                f"{what}={text!r} returned a tuple of {len(made)}; expected (train, validation) or (train, "
                f"validation, test)"
            )
        return made
    return (made,)
