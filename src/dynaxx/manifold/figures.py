"""Maps and distance matrices as figures, and as a block of a report. matplotlib is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.manifold.checks import shape
from dynaxx.manifold.scaling import Embedding
from dynaxx.report import Scatter

if TYPE_CHECKING:
    from dynaxx.track import Run


def plot_map(
    embedding: Embedding | Tensor,
    labels: Sequence[Any] | Tensor | None = None,
    *,
    axes: Sequence[int] = (0, 1),
    connect: bool = False,
    ax: Any = None,
    **style: Any,
) -> Any:
    """Draw a map in two or three coordinates on equal scales, one colour per label.

    Args:
        embedding: what ``inpca`` returned, or (m, k) coordinates.
        labels: (m,) of anything that prints; points of one label share a colour.
        axes: which coordinates, two or three of them, from 0.
        connect: join the points of a label in their order, for trajectories.
        ax: matplotlib axes (with projection="3d" for three coordinates); default a new figure's.
        style: passed to ``ax.plot``.

    Returns:
        The axes. A time-like coordinate is marked on its axis.

    Raises:
        InputError: axes or labels do not fit.
    """
    points, names = _chosen(embedding, axes)
    groups = _groups(labels, len(points))
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(layout="constrained").add_subplot(projection="3d" if len(axes) == 3 else None)
    look = {"marker": ".", "linestyle": "-" if connect else "none", "linewidth": 1.0, **style}
    for name, index in groups.items():
        ax.plot(*points[index].T, label=None if labels is None else name, **look)
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.set_aspect("equal", adjustable="datalim" if len(axes) == 2 else "box")
    if len(axes) == 3:
        ax.set_zlabel(names[2])
    if labels is not None and len(groups) <= 24:
        ax.legend()
    return ax


def plot_distances(
    distances: Tensor, labels: Sequence[Any] | Tensor | None = None, *, ax: Any = None, **style: Any
) -> Any:
    """Draw a distance matrix, sorted by label, with lines between labels.

    Args:
        distances: (m, m); infinite entries are left blank.
        labels: (m,) of anything that prints.
        ax: matplotlib axes; default a new figure's.
        style: passed to ``ax.imshow``.

    Returns:
        The axes.

    Raises:
        InputError: it is no square matrix, or labels do not fit.
    """
    if not isinstance(distances, Tensor) or distances.dim() != 2 or distances.shape[0] != distances.shape[1]:
        raise InputError(f"distances {shape(distances)} must be a square matrix (m, m)")
    groups = _groups(labels, len(distances))
    order = np.concatenate(list(groups.values()))
    matrix = distances.detach().cpu().double().numpy()[np.ix_(order, order)]
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(layout="constrained").add_subplot()
    image = ax.imshow(np.where(np.isfinite(matrix), matrix, np.nan), **{"interpolation": "nearest", **style})
    ax.figure.colorbar(image, ax=ax, label="distance")
    if labels is not None:
        ends = np.cumsum([len(index) for index in groups.values()])
        for end in ends[:-1]:
            ax.axhline(end - 0.5, color="white", linewidth=0.5)
            ax.axvline(end - 0.5, color="white", linewidth=0.5)
        if len(groups) <= 24:
            middles = ends - np.array([len(index) for index in groups.values()]) / 2 - 0.5
            ax.set_xticks(middles, list(groups))
            ax.set_yticks(middles, list(groups))
    return ax


def scatter(
    embedding: Embedding | Tensor,
    labels: Sequence[Any] | Tensor | None = None,
    *,
    title: str = "InPCA",
    axes: Sequence[int] = (0, 1, 2),
    connect: bool = False,
    note: str = "",
) -> Scatter:
    """The map as a block of a report: flat with two coordinates, rotatable with three.

    Args:
        embedding, labels, axes, connect: as for ``plot_map``.
        title: what is drawn.
        note: one sentence below; default the explained stress, where it is known.

    Returns:
        dynaxx.report.Scatter.

    Raises:
        InputError: axes or labels do not fit.

    >>> import torch
    >>> scatter(torch.eye(3), ["a", "b", "b"]).labels
    ('a', 'b', 'b')
    """
    points, names = _chosen(embedding, axes)
    groups = _groups(labels, len(points))
    words = [""] * len(points)
    for name, index in groups.items():
        for i in index:
            words[i] = name
    if not note and isinstance(embedding, Embedding):
        k = len(embedding.eigenvalues)
        note = f"{k} coordinates explain {embedding.explained_stress():.0%} of the stress."
    return Scatter(title, points, words, names, connect=connect, note=note)


def record(
    run: Run,
    embedding: Embedding,
    labels: Sequence[Any] | Tensor | None = None,
    *,
    connect: bool = False,
    step: int | None = None,
) -> None:
    """Keep a map in a run of the store as the array ``dynaxx/inpca``, where the dashboard finds it.

    Args:
        run: one that goes on.
        embedding, labels, connect: as for ``plot_map``.
        step: of the run; default its last.

    Raises:
        InputError: labels do not fit.

    >>> import torch
    >>> from dynaxx.manifold import inpca
    >>> from dynaxx.track import Store
    >>> with Store("sqlite://") as store, store.run("map") as run:
    ...     record(run, inpca(1 - torch.eye(3)), ["a", "b", "b"], step=0)
    """
    words = [""] * len(embedding.coordinates)
    for name, index in _groups(labels, len(words)).items():
        for i in index:
            words[i] = name
    said = {
        "labels": words,
        "connected": connect,
        "eigenvalues": embedding.eigenvalues.tolist(),
        "explained_stress": embedding.explained_stress(),
    }
    run.log_array("dynaxx/inpca", embedding.coordinates, step, said)


def _chosen(embedding: Embedding | Tensor, axes: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    given = embedding.coordinates if isinstance(embedding, Embedding) else embedding
    if not isinstance(given, Tensor) or given.dim() != 2:
        raise InputError(f"a map is an Embedding or (m, k) coordinates; got {shape(given)}")
    if len(axes) not in (2, 3) or len(set(axes)) < len(axes) or not all(0 <= axis < given.shape[1] for axis in axes):
        raise InputError(f"axes={tuple(axes)} must be two or three of the {given.shape[1]} coordinates, from 0")
    signs = embedding.signature.tolist() if isinstance(embedding, Embedding) else [1.0] * given.shape[1]
    names = [f"coordinate {axis + 1}" + (" (time-like)" if signs[axis] < 0 else "") for axis in axes]
    return given.detach().cpu().double().numpy()[:, list(axes)], names


def _groups(labels: Sequence[Any] | Tensor | None, count: int) -> dict[str, np.ndarray]:
    """label -> indices, numbers in their order and words in the order they come."""
    if labels is None:
        return {"": np.arange(count)}
    given = labels.tolist() if isinstance(labels, (Tensor, np.ndarray)) else list(labels)
    if len(given) != count:
        raise InputError(f"{len(given)} labels for {count} points; give one each")
    found: dict[Any, list[int]] = {}
    for index, label in enumerate(given):
        found.setdefault(label, []).append(index)
    keys = sorted(found) if all(isinstance(label, (int, float)) for label in found) else list(found)
    return {str(key): np.array(found[key]) for key in keys}
