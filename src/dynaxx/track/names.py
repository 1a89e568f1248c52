"""Names of projects, runs, metrics and arrays: the set that every tracker accepts."""

import re

from dynaxx.errors import InputError

_ALLOWED = "[A-Za-z0-9_./ -]"
_NAME = re.compile(rf"{_ALLOWED}+")
_OTHER = re.compile(r"[^A-Za-z0-9_./ -]+")
LONGEST = 250


def check_name(what: str, name: object) -> str:
    """Return ``name`` if every tracker would accept it.

    Args:
        what: what it names, for the message.
        name: 1 to 250 characters out of ``[A-Za-z0-9_./ -]``.

    Raises:
        InputError: otherwise, with the nearest name that would do.

    >>> check_name("metric", "dynaxx/layer/0.weight/trace")
    'dynaxx/layer/0.weight/trace'
    >>> check_name("metric", "blocks[0]")
    Traceback (most recent call last):
        ...
    dynaxx.errors.InputError: metric name 'blocks[0]' holds '[', ']'; names are 1 to 250 characters out of \
[A-Za-z0-9_./ -], so 'blocks_0_' would do (dynaxx.track.clean_name makes it)
    """
    if isinstance(name, str) and len(name) <= LONGEST and _NAME.fullmatch(name):
        return name
    if not isinstance(name, str):
        problem = f"is a {type(name).__name__}, not a string"
    elif not name:
        problem = "is empty"
    elif len(name) > LONGEST:
        problem = f"has {len(name)} characters"
    else:
        problem = "holds " + ", ".join(map(repr, sorted(set("".join(_OTHER.findall(name))))))
    shown = name if not isinstance(name, str) or len(name) <= 60 else name[:57] + "..."
    remedy = f", so {clean_name(name)!r} would do" if isinstance(name, str) and 0 < len(name) <= LONGEST else ""
    helper = " (dynaxx.track.clean_name makes it)" if remedy else ""
    raise InputError(
        f"{what} name {shown!r} {problem}; names are 1 to {LONGEST} characters out of {_ALLOWED}{remedy}{helper}"
    )


def clean_name(name: str) -> str:
    """The nearest name that :func:`check_name` accepts: runs of other characters become ``_``, a long one keeps its
    end.

    Two names may become one (``a[0]`` and ``a(0)``); the caller sees to it where that matters.

    >>> clean_name("model.blocks[0].weight"), clean_name("")
    ('model.blocks_0_.weight', '_')
    """
    return _OTHER.sub("_", name)[-LONGEST:] or "_"


def layer_of(name: str) -> str:
    """The layer in a metric's name ``.../layer/<module>/<quantity>``; empty where it is of no layer.

    >>> layer_of("dynaxx/layer/blocks.0.fc/trace"), layer_of("dynaxx/trace")
    ('blocks.0.fc', '')
    """
    return name.rpartition("/")[0].partition("/layer/")[2]


def is_spectrum(name: str) -> bool:
    """Whether an array's name says that it holds eigenvalues.

    >>> is_spectrum("dynaxx/spectrum"), is_spectrum("dynaxx/inpca")
    (True, False)
    """
    return "spectrum" in name.lower() or "eigenvalue" in name.lower()


def floor_names(array: str) -> tuple[str, str]:
    """The metrics that hold the rounding floor of a spectrum where its attributes do not.

    >>> floor_names("dynaxx/spectrum")
    ('dynaxx/spectrum/floor', 'dynaxx/spectrum_floor')
    """
    return f"{array}/floor", f"{array}_floor"
