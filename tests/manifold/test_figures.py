"""Pictures show the points they are given, on equal scales, with labels that can be told apart."""

import matplotlib as mpl
import numpy as np
import pytest
import torch

import dynaxx
from dynaxx.manifold import distances, inpca, plot_distances, plot_map, record, scatter
from dynaxx.track import Store


@pytest.fixture(autouse=True)
def headless():
    import matplotlib.pyplot as plt

    backend = mpl.get_backend()
    mpl.use("Agg")
    yield
    plt.close("all")
    mpl.use(backend)


@pytest.fixture
def made():
    generator = torch.Generator().manual_seed(0)
    P = (3 * torch.randn(12, 2, 4, generator=generator, dtype=torch.float64)).softmax(-1)
    return inpca(distances(P, kind="intensive"), k=None)


def test_a_map_in_the_plane(made):
    labels = [3, 1, 2] * 4
    axes = plot_map(made, labels, axes=(0, 1), connect=True)
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == ["1", "2", "3"]
    np.testing.assert_array_equal(lines[0].get_xdata(), made.coordinates[1::3, 0])
    np.testing.assert_array_equal(lines[0].get_ydata(), made.coordinates[1::3, 1])
    assert axes.get_aspect() == 1
    assert axes.get_xlabel() == "coordinate 1"
    axes.figure.canvas.draw()


def test_a_time_like_coordinate_says_so(made):
    negative = int((made.signature < 0).nonzero()[0])
    axes = plot_map(made, axes=(0, negative))
    assert axes.get_ylabel() == f"coordinate {negative + 1} (time-like)"
    assert axes.get_legend() is None


def test_a_map_in_space(made):
    axes = plot_map(made, ["a"] * 6 + ["b"] * 6, axes=(0, 1, 2))
    (x, y, z) = axes.get_lines()[0].get_data_3d()
    np.testing.assert_array_equal(np.stack([x, y, z], 1), made.coordinates[:6, :3])
    axes.figure.canvas.draw()


def test_a_distance_matrix_is_sorted_by_label_and_leaves_infinities_blank():
    D = torch.arange(16.0).reshape(4, 4)
    D[0, 3] = torch.inf
    axes = plot_distances(D, [1, 0, 1, 0])
    shown = axes.images[0].get_array()
    order = [1, 3, 0, 2]
    wanted = D[order][:, order].numpy()
    np.testing.assert_array_equal(np.ma.filled(shown, np.nan), np.where(np.isfinite(wanted), wanted, np.nan))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1"]
    axes.figure.canvas.draw()


def test_the_block_carries_the_map(made):
    block = scatter(made, torch.arange(12) % 2, axes=(0, 2), title="checkpoints")
    np.testing.assert_array_equal(block.points, made.coordinates[:, [0, 2]])
    assert block.labels == ("0", "1") * 6
    assert block.note == "12 coordinates explain 100% of the stress."
    assert scatter(made.coordinates[:, :2], axes=(0, 1)).note == ""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda made: plot_map(made, axes=(0,)), "two or three"),
        (lambda made: plot_map(made, axes=(0, 12)), "two or three of the 12"),
        (lambda made: plot_map(made, [1, 2]), "2 labels for 12 points"),
        (lambda made: plot_map("map"), "of type str"),
        (lambda made: plot_distances(made.coordinates[:3]), "square"),
        (lambda made: plot_distances(torch.zeros(3, 3), [1]), "1 labels for 3"),
    ],
)
def test_bad_input(made, call, words):
    with pytest.raises(dynaxx.InputError, match=words):
        call(made)


def test_a_map_is_kept_in_a_run():
    with Store("sqlite://") as store:
        with store.run("map") as run:
            record(run, inpca(1 - torch.eye(3), k=2), [7, 7, 8], connect=True, step=0)
        (kept,) = store.arrays(run.id, "dynaxx/inpca")
    assert kept.value.shape == (3, 2)
    assert kept.attributes["labels"] == ["7", "7", "8"]
    assert kept.attributes["explained_stress"] == pytest.approx(1.0)
