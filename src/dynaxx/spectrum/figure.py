"""A spectrum as a figure. The one module here that draws; matplotlib is imported when it does."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dynaxx.spectrum.eigenvalues import Spectrum


def draw(spectrum: "Spectrum", ax: Any, reference: "Spectrum | None", label: str | None, style: dict[str, Any]) -> Any:
    """Draw it; see ``Spectrum.plot``."""
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(layout="constrained").add_subplot()
    curves = [(spectrum, label or "spectrum", {"marker": ".", "linestyle": "none", **style})]
    if reference is not None:
        curves.append((reference, "reference", {"color": "0.6", "linewidth": 1.0}))
    for each, name, look in curves:
        values = each.eigenvalues.numpy()
        top = float(np.abs(values).max(initial=0.0))
        unit = top if reference is not None and top > 0 else 1.0
        index = np.arange(1, len(values) + 1)
        up, down = values > 0, values < -each.floor
        (line,) = ax.plot(index[up], values[up] / unit, label=name, **look)
        if down.any():
            ax.plot(
                index[down],
                -values[down] / unit,
                "o",
                mfc="none",
                ms=4,
                color=line.get_color(),
                label=f"{name}, negative (magnitude)",
            )
        if each.floor > 0:
            ax.axhline(
                each.floor / unit,
                color=line.get_color(),
                linestyle=":",
                linewidth=1,
                label=f"{name}, rounding floor",
            )
    ax.set(yscale="log", xlabel="index", ylabel="eigenvalue" if reference is None else "eigenvalue / largest")
    ax.legend()
    return ax


def draw_shapes(
    spectra: "Mapping[str, Spectrum]", ax: Any = None, references: "Mapping[str, Spectrum] | None" = None
) -> Any:
    """Draw spectra by shape alone: eigenvalue over the largest against the share of the rank.

    So matrices of different sizes and units (a Fisher matrix at three times, the data's correlation) lie over each
    other. What is at or below a spectrum's rounding floor is not drawn.

    Args:
        spectra: label -> spectrum, drawn from light to dark in this order.
        ax: matplotlib axes; default a new figure's.
        references: label -> spectrum drawn in dashes.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.figure(layout="constrained").add_subplot()
    colours = plt.get_cmap("viridis_r")(np.linspace(0.15, 0.9, max(1, len(spectra))))
    looks = [{"color": colour, "linewidth": 1.8} for colour in colours]
    dashes = [{"color": "0.25", "linewidth": 1.2, "linestyle": style} for style in ("--", ":", "-.")]
    curves = [*zip(spectra.items(), looks, strict=True)]
    curves += [(item, dashes[i % len(dashes)]) for i, item in enumerate((references or {}).items())]
    for (label, spectrum), look in curves:
        values = spectrum.eigenvalues.numpy()
        values = values[values > spectrum.floor]
        if len(values):
            ax.plot(np.arange(1, len(values) + 1) / len(values), values / values[0], label=label, **look)
    ax.set(yscale="log", xlabel="share of the rank", ylabel="eigenvalue / largest")
    ax.legend()
    return ax
