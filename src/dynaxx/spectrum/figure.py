"""A spectrum as a figure. The one module here that draws; matplotlib is imported when it does."""

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
