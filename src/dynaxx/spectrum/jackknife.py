"""Error bars over the data."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate


def jackknife(spectra: Iterable[Any], functional: Callable[[Any], float], *, whole: Any = None) -> Estimate:
    """A quantity with its standard error over the data, from spectra that each leave out one equal part of the data.

        stderr^2 = (n - 1)/n sum_i (f_i - mean f)^2

    For the spectra of n disjoint parts themselves, each standing alone, ``Estimate.mean`` of the values is the right
    one instead.

    Args:
        spectra: n >= 2, the i-th made of all data but the i-th part.
        functional: spectrum -> number, such as ``Spectrum.entropy``.
        whole: the spectrum of all data, if at hand: gives the value; default the mean of the f_i.

    Returns:
        Estimate with samples = n.

    Raises:
        InputError: fewer than two spectra.

    Source: Efron & Stein, The jackknife estimate of variance, Ann. Stat. 9 (1981).

    >>> from dynaxx.spectrum import Spectrum
    >>> jackknife([Spectrum([3.0]), Spectrum([5.0])], Spectrum.trace)
    4 ± 1 (2 draws)
    """
    values = [float(functional(spectrum)) for spectrum in spectra]
    if len(values) < 2:
        raise InputError(
            f"a jackknife over {len(values)} spectra has no spread; give two or more, each leaving out a part of the "
            "data"
        )
    value = math.fsum(values) / len(values) if whole is None else float(functional(whole))
    return Estimate(value, jackknife_error(values), len(values), False)


def jackknife_error(values: list[float]) -> float:
    """sqrt((n - 1)/n sum_i (f_i - mean f)^2)."""
    n, centre = len(values), math.fsum(values) / len(values)
    return math.sqrt((n - 1) / n * math.fsum((value - centre) ** 2 for value in values))
