"""What a reduction keeps at each k, as records, as a figure, and as a block of a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynaxx.report.document import Lines, Series

if TYPE_CHECKING:
    from dynaxx.track import Run


@dataclass(frozen=True)
class Point:
    """One projection.

    Args:
        subspace: "eigenvectors", or a control's name.
        seed: of a random one.
        k: its dimension.
        share_of_parameters, share_of_rank: k / p and k / r.
        energy: |P_k d|^2 / |d|^2.
        score: what ``evaluate`` said of the projected model.
    """

    subspace: str
    seed: int
    k: int
    share_of_parameters: float
    share_of_rank: float
    energy: float
    score: float


@dataclass(frozen=True)
class Curve:
    """Score against k of a reduction and its controls.

    Args:
        points: in the order they were taken.
        reference: the full model's score.
        rank: r.
        dimension: p.
        exact: False where F was sampled.
    """

    points: tuple[Point, ...]
    reference: float
    rank: int
    dimension: int
    exact: bool = True

    def rows(self) -> list[dict[str, Any]]:
        """The points as JSON takes them."""
        return [asdict(point) for point in self.points]

    def series(self) -> Iterator[Series]:
        """One curve per subspace over k / p; several seeds are their mean, with the least and greatest as a band."""
        for name in dict.fromkeys(point.subspace for point in self.points):
            scores: dict[float, list[float]] = {}
            for point in self.points:
                if point.subspace == name:
                    scores.setdefault(point.share_of_parameters, []).append(point.score)
            x = np.array(list(scores))
            rows = [np.array(values) for values in scores.values()]
            mean = np.array([row.mean() for row in rows])
            if max(map(len, rows)) > 1:
                yield Series(name, x, mean, np.array([r.min() for r in rows]), np.array([r.max() for r in rows]))
            else:
                yield Series(name, x, mean)

    def block(self, title: str = "Model reduction", label: str = "score") -> Lines:
        """The curves as a chart of a report."""
        note = f"Full model: {self.reference:.4g}. p = {self.dimension}, rank {self.rank}"
        return Lines(
            title,
            list(self.series()),
            x_label="k / p",
            y_label=label,
            log_x=True,
            note=note + ("." if self.exact else " of a sampled Fisher matrix."),
        )

    def record(self, run: Run, step: int | None = None) -> None:
        """Keep the curves in a run of the store, where the dashboard finds them: arrays ``dynaxx/reduction/<subspace>``
        of rows (k / p, score) or (k / p, score, least, greatest).
        """
        for series in self.series():
            band = [] if series.low is None or series.high is None else [series.low, series.high]
            rows = np.stack([series.x, series.y, *band], axis=1)
            run.log_array(f"dynaxx/reduction/{series.name}", rows, step, {"x": "k / p", "y": "score"})

    def figure(self, ax: Any = None, *, label: str = "score") -> Any:
        """Draw the curves with matplotlib: k / p below, k / rank above, the full model's score in dots.

        Args:
            ax: axes; default a new figure's.
            label: of the score.

        Returns:
            The axes.
        """
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.figure(layout="constrained").add_subplot()
        for number, series in enumerate(self.series()):
            (line,) = ax.plot(
                series.x, series.y, marker="o", ms=4, label=series.name, linewidth=2.2 if number == 0 else 1.2
            )
            if series.low is not None:
                ax.fill_between(series.x, series.low, series.high, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.axhline(self.reference, color="0.4", linestyle=":", linewidth=1, label="full model")
        ax.set(xscale="log", xlabel="share of the parameters, k / p", ylabel=label)
        ratio = self.dimension / self.rank
        above = ax.secondary_xaxis("top", functions=(lambda x: x * ratio, lambda x: x / ratio))
        above.set_xlabel("share of the rank, k / r")
        for axis in (ax.xaxis, above.xaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        ax.legend()
        return ax
