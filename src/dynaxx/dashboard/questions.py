"""What a request asks for, read from its address and checked."""

from __future__ import annotations

from starlette.requests import Request

from dynaxx.errors import InputError

MOST_CURVES = 64
POINTS = 1500


def number(request: Request, name: str, default: int | None = None, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    """A whole number between two ends.

    Raises:
        InputError: it is none, lies outside, or is missing without a default.
    """
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    try:
        value = int(text or "")
    except ValueError:
        raise InputError(f"{name}={text!r:.40} is no whole number") from None
    if not low <= value <= high:
        raise InputError(f"{name}={value} is not between {low} and {high}")
    return value


def numbers(request: Request, name: str, most: int = MOST_CURVES) -> list[int]:
    """All whole numbers given under one name, each once.

    Raises:
        InputError: none is given, too many are, or one is no number.
    """
    given = list(dict.fromkeys(request.query_params.getlist(name)))
    if not 1 <= len(given) <= most:
        raise InputError(f"{name} was given {len(given)} times; give it 1 to {most} times")
    try:
        return [int(text) for text in given]
    except ValueError:
        raise InputError(f"{name}={given!r:.80} are not all whole numbers") from None


def stretch(request: Request) -> tuple[float, float] | None:
    """The steps from ``from`` to ``to``; None for all.

    Raises:
        InputError: one of them is no number.
    """
    ends = [request.query_params.get(name) for name in ("from", "to")]
    if None in ends:
        return None
    try:
        low, high = (float(end or "") for end in ends)
    except ValueError:
        raise InputError(f"from={ends[0]!r:.40}, to={ends[1]!r:.40} are not numbers") from None
    return low, high


def share(request: Request, name: str, default: float) -> float:
    """A number strictly between 0 and 1.

    Raises:
        InputError: it is not.
    """
    text = request.query_params.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise InputError(f"{name}={text!r:.40} is no number between 0 and 1")
    return value
