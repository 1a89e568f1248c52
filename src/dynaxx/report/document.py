"""What a report says, apart from how it looks: a document is sections, a section is blocks.

Blocks are plain frozen values. They check themselves when they are made, so that a page is either made whole or not
begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from dynaxx.errors import InputError, choose

LEVELS = ("info", "good", "warning", "bad")


@dataclass(frozen=True)
class Facts:
    """Single figures, large: (label, value, note) each; the note may be left out.

    >>> Facts([("dimension", 1210), ("effective rank", 31.4, "of 1210")]).items[0]
    ('dimension', 1210, '')
    """

    items: Sequence[tuple[Any, ...]]

    def __post_init__(self) -> None:
        items = [tuple(item) for item in self.items]
        for item in items:
            if len(item) not in (2, 3):
                raise InputError(f"a fact is (label, value) or (label, value, note); got {item!r:.80}")
        object.__setattr__(self, "items", tuple(item if len(item) == 3 else (*item, "") for item in items))


@dataclass(frozen=True)
class Table:
    """Rows under column heads.

    Args:
        columns: the heads.
        rows: each as long as ``columns``; a cell is text, a number, an Estimate (shown with its error), a bool or None.
        caption: one sentence above.
        highlight: indices of rows to set off.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    highlight: Iterable[int] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "rows", tuple(tuple(row) for row in self.rows))
        object.__setattr__(self, "highlight", frozenset(self.highlight))
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InputError(f"row {index} of the table has {len(row)} cells for {len(self.columns)} columns")
        if outside := [index for index in self.highlight if not 0 <= index < len(self.rows)]:
            raise InputError(f"highlight={sorted(outside)} is outside the table's {len(self.rows)} rows")


@dataclass(frozen=True, eq=False)
class Series:
    """One curve.

    Args:
        x, y: (n,) numbers; a y that is not finite is a gap. Sorted by x when made.
        low, high: (n,) an interval about y, drawn as a band; both or neither.
    """

    name: str
    x: Any
    y: Any
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise InputError(f"series {self.name!r} has one side of its band only; give low and high, or neither")
        parts = {"x": self.x, "y": self.y, "low": self.low, "high": self.high}
        columns = {key: _numbers(self.name, key, value) for key, value in parts.items() if value is not None}
        lengths = {key: len(value) for key, value in columns.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"series {self.name!r} has columns of different lengths: {lengths}")
        if not np.isfinite(columns["x"]).all():
            raise InputError(f"series {self.name!r} has an x that is not finite; only y may have gaps")
        order = np.argsort(columns["x"], kind="stable")
        for key, value in columns.items():
            object.__setattr__(self, key, value[order])


@dataclass(frozen=True)
class Marker:
    """A vertical line at ``x`` with a word on it: an alert, a change of the learning rate."""

    x: float
    label: str


@dataclass(frozen=True)
class Lines:
    """Curves over a common axis.

    Args:
        title: what is drawn.
        series: the curves; they need not share their x.
        x_label, y_label: with units.
        log_x, log_y: logarithmic scales; what is not positive is then a gap, and the chart says how many there were.
        markers: vertical lines.
        note: one sentence below.
    """

    title: str
    series: Sequence[Series]
    x_label: str = "step"
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    markers: Sequence[Marker] = ()
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "series", tuple(self.series))
        object.__setattr__(self, "markers", tuple(self.markers))
        _require_instances(f"chart {self.title!r}", "series", self.series, Series)
        _require_instances(f"chart {self.title!r}", "markers", self.markers, Marker)


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Eigenvalues of one matrix, and the floor below which they are rounding (None where it is not known).

    Anything with ``eigenvalues`` and ``floor``, such as a dynaxx.Spectrum, may stand in the place of the eigenvalues.
    """

    name: str
    eigenvalues: Any
    floor: float | None = None

    def __post_init__(self) -> None:
        if hasattr(self.eigenvalues, "eigenvalues"):
            object.__setattr__(self, "floor", getattr(self.eigenvalues, "floor", None))
            object.__setattr__(self, "eigenvalues", self.eigenvalues.eigenvalues)
        values = _numbers(self.name, "eigenvalues", self.eigenvalues)
        # NaN sorts last and counts as not drawn
        object.__setattr__(self, "eigenvalues", np.sort(values[np.isfinite(values)])[::-1])
        object.__setattr__(self, "missing", int((~np.isfinite(values)).sum()))
        if self.floor is not None:
            floor = float(self.floor)
            if not (np.isfinite(floor) and floor >= 0):
                raise InputError(f"spectrum {self.name!r} has floor={self.floor!r}; it is a positive number or None")
            object.__setattr__(self, "floor", floor or None)

    missing: int = field(init=False, default=0)


@dataclass(frozen=True)
class Spectra:
    """Spectra by index on a logarithmic scale, each with its rounding floor dashed and what lies below it faded.

    Args:
        spectra: :class:`Eigenvalues`, or tuples (name, eigenvalues), (name, eigenvalues, floor), (name,
            dynaxx.Spectrum).
    """

    title: str
    spectra: Sequence[Any]
    y_label: str = "eigenvalue"
    note: str = ""

    def __post_init__(self) -> None:
        made = tuple(item if isinstance(item, Eigenvalues) else Eigenvalues(*item) for item in self.spectra)
        object.__setattr__(self, "spectra", made)


@dataclass(frozen=True, eq=False)
class Scatter:
    """Points in a plane, or in space and then rotatable, on one scale for all axes, coloured by label.

    Args:
        title: what is drawn.
        points: (m, 2) or (m, 3) finite numbers.
        labels: (m,) words; points of one label share a colour and a place in the legend. Default: all alike.
        axes: the names of the coordinates, with units; default x, y, z.
        connect: join the points of a label in their order.
        note: one sentence below.
    """

    title: str
    points: Any
    labels: Sequence[str] = ()
    axes: Sequence[str] = ()
    connect: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        points = _finite_points(self.title, self.points)
        labels = tuple(map(str, self.labels)) or ("",) * len(points)
        axes = tuple(map(str, self.axes)) or ("x", "y", "z")[: points.shape[1]]
        if len(labels) != len(points) or len(axes) != points.shape[1]:
            raise InputError(
                f"scatter {self.title!r}: {len(points)} points in {points.shape[1]} coordinates have {len(labels)} "
                f"labels and {len(axes)} names of axes; give one of each for each"
            )
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "axes", axes)


@dataclass(frozen=True)
class Note:
    """A paragraph set off by its weight: "info", "good", "warning" or "bad"."""

    text: str
    level: str = "info"

    def __post_init__(self) -> None:
        choose("level", self.level, LEVELS)


@dataclass(frozen=True)
class Image:
    """A drawing as SVG source. It is shown as an image: scripts in it do not run and it loads nothing."""

    title: str
    svg: str
    note: str = ""

    def __post_init__(self) -> None:
        if "<svg" not in self.svg:
            raise InputError(f"image {self.title!r} is no SVG source; figure.savefig(..., format='svg') makes one")


Block = Facts | Table | Lines | Spectra | Scatter | Note | Image


@dataclass(frozen=True)
class Section:
    """Blocks under a heading, after a paragraph that may be empty (a blank line in it begins another)."""

    title: str
    text: str = ""
    blocks: Sequence[Block] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        _require_instances(f"section {self.title!r}", "blocks", self.blocks, get_args(Block))


@dataclass(frozen=True)
class Document:
    """A whole report.

    Args:
        title, subtitle: its head.
        sections: in order.
        footer: name -> value, what is needed to make it again: versions, seed, when.
    """

    title: str
    subtitle: str = ""
    sections: Sequence[Section] = ()
    footer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sections", tuple(self.sections))
        object.__setattr__(self, "footer", dict(self.footer))
        _require_instances(f"document {self.title!r}", "sections", self.sections, Section)


def _numbers(name: str, key: str, values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name!r}: {key} are not numbers; give a sequence of floats") from error
    if column.ndim != 1:
        raise InputError(f"{name!r}: {key} have shape {column.shape}; give one axis, shape (n,)")
    return column


def _finite_points(title: str, given: Any) -> np.ndarray:
    if hasattr(given, "detach"):
        given = given.detach().cpu().double()
    try:
        points = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"scatter {title!r}: points are not numbers; give (m, 2) or (m, 3) of them") from error
    if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all():
        raise InputError(f"scatter {title!r}: points of shape {points.shape}; give finite ones, (m, 2) or (m, 3)")
    return points


def _require_instances(where: str, what: str, items: Sequence[Any], kinds: Any) -> None:
    for item in items:
        if not isinstance(item, kinds):
            names = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
            raise InputError(f"{where}: {what} has a {type(item).__name__}; expected {', '.join(names)}")
