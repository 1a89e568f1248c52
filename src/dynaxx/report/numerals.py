"""Numbers for people: the page and the terminal write them alike."""

from __future__ import annotations

import math
import time
from typing import Any

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_THIN = "\N{NARROW NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


def number(value: float, digits: int = 4) -> str:
    """A number with ``digits`` significant digits; powers of ten where zeros would have to be counted.

    Below a million the whole part is given in full, since zeros in the place of digits look like digits.

    >>> [number(x) for x in (0.5, 1234567, -3.14159, 2.5e-7, 1e12, float("nan"), float("-inf"))]
    ['0.5', '1\u202f234\u202f567', '−3.142', '2.5×10⁻⁷', '1×10¹²', 'NaN', '−∞']
    """
    if isinstance(value, int) and abs(value) < 10**9:
        return f"{value:,}".replace(",", _THIN).replace("-", MINUS)
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if -4 <= power < 6:
        decimals = max(0, digits - 1 - power)
        text = f"{value:,.{decimals}f}"
        if "." in text:
            text = text.rstrip("0").rstrip(".")
        return text.replace(",", _THIN).replace("-", MINUS)
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}×10{str(power).translate(_RAISED)}".replace("-", MINUS)


def with_error(value: float, stderr: float) -> str:
    """A number to the place its standard error reaches, with that error to two digits.

    >>> with_error(3.14159, 0.021), with_error(1234.0, 56.0), with_error(2.0, 0.0)
    ('3.142 ± 0.021', '1\u202f234 ± 56', '2')
    """
    if not stderr or not (math.isfinite(value) and math.isfinite(stderr)):
        return number(value)
    place = math.floor(math.log10(abs(stderr)))
    digits = max(2, math.floor(math.log10(abs(value))) - place + 2) if value else 2
    return f"{number(value, min(digits, 15))} ± {number(stderr, 2)}"


def cell(value: Any) -> str:
    """One cell of a table, or one fact: text as it is, numbers for people, an Estimate with its error.

    >>> [cell(x) for x in (None, True, "text", 0.25)]
    ['–', 'yes', 'text', '0.25']
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        stderr = getattr(value, "stderr", None)
        if isinstance(stderr, (int, float)):
            return with_error(float(value), float(stderr))
        return number(value.item() if hasattr(value, "item") else value)
    return str(value)


def is_number(value: Any) -> bool:
    """Whether it is set as a number: to the right, in figures of one width."""
    if isinstance(value, (bool, str, bytes)) or value is None:
        return False
    if isinstance(value, (int, float)):
        return True
    return hasattr(value, "item") and getattr(value, "shape", None) == () and getattr(value.dtype, "kind", "f") in "iuf"


def duration(seconds: float) -> str:
    """A length of time, to two units.

    >>> duration(0.25), duration(75), duration(7320), duration(200000)
    ('0.25 s', '1 min 15 s', '2 h 2 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{number(seconds, 3)} s"
    for size, name, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = int(seconds % size // smaller)
            return f"{int(seconds // size)} {name}" + (f" {rest} {part}" if rest else "")
    raise AssertionError("unreachable")


def moment(seconds: float) -> str:
    """A time in UTC, given as seconds since 1970.

    >>> moment(0)
    '1970-01-01 00:00:00 UTC'
    """
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def plain(text: Any) -> str:
    """Text without control characters (they steer terminals and are not allowed in HTML); newlines and tabs stay.

    >>> plain("a\\x1b[31mb")
    'a[31mb'
    """
    kept = (
        c for c in str(text) if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000)
    )
    return "".join(kept)
