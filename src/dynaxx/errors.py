"""What dynaxx raises. Each message restates what was given, says what is wrong with it, and names the remedy."""

from collections.abc import Iterable


class InputError(ValueError):
    """The model, the data or an option cannot be used as given. Raised before work starts; nothing was changed."""


class SizeError(InputError, MemoryError):
    """The request would take more memory than is sensible. Raised before anything is allocated."""


class ConvergenceWarning(UserWarning):
    """An iteration stopped before it reached its tolerance; the result says so too."""


def choose(what: str, given: object, options: Iterable[str]) -> str:
    """Return ``given`` if it is one of ``options``.

    Raises:
        InputError: otherwise, with the list of right ones.

    >>> choose("form", "diag", ["dense", "diagonal"])
    Traceback (most recent call last):
        ...
    dynaxx.errors.InputError: form='diag' is not known; choose one of 'dense', 'diagonal'
    """
    names = list(options)
    if isinstance(given, str) and given in names:
        return given
    raise InputError(f"{what}={given!r} is not known; choose one of {', '.join(map(repr, names))}")


def bytes_as_text(count: float) -> str:
    """A number of bytes for people.

    >>> bytes_as_text(3.2e9)
    '3.2 GB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def require_memory(what: str, count: float, remedy: str, limit: float | None = None) -> None:
    """Refuse an allocation of ``count`` bytes above ``limit`` (default: half of the memory the machine has free).

    Raises:
        SizeError: with the bytes it would take and ``remedy``, the form or option that avoids it.
    """
    if limit is None:
        limit = _free_memory() / 2
    if count > limit:
        raise SizeError(f"{what} would take {bytes_as_text(count)} (limit here {bytes_as_text(limit)}); {remedy}")


def _free_memory() -> float:
    """Bytes available to this process, from the operating system; 8 GB where it cannot say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    return 8e9
