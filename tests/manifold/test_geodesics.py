"""Geodesics have constant speed and the length of their distance; progress is a minimum that brute force also finds."""

import math

import pytest
import torch

import dynaxx
from dynaxx.manifold import distances, geodesic, ignorance, progress, truth
from dynaxx.manifold.pairwise import distances as pairwise


def predictions(models, examples, classes, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(models, examples, classes, generator=generator, dtype=torch.float64)).softmax(-1)


def test_ends_and_constant_speed():
    P, Q = predictions(2, 6, 4)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    path = geodesic(P, Q, t)
    torch.testing.assert_close(path[0], P, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(path[-1], Q, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(path.sum(-1), torch.ones(11, 6, dtype=torch.float64), rtol=0, atol=1e-14)
    along = distances(path, kind="geodesic")
    torch.testing.assert_close(along, along[0, -1] * (t[:, None] - t).abs(), rtol=1e-9, atol=1e-12)


def test_the_path_solves_the_geodesic_equation():
    """On the simplex with the Fisher metric: straight in no chart, but length is stationary under bending."""
    P, Q = torch.tensor([[[0.7, 0.2, 0.1]], [[0.1, 0.3, 0.6]]], dtype=torch.float64)
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    path = geodesic(P, Q, t)[:, 0]
    length = lambda curve: sum(
        float(pairwise(curve[i : i + 1][None], curve[i + 1 : i + 2][None], kind="geodesic")) for i in range(200)
    )
    bend = torch.sin(math.pi * t)[:, None] * torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    straight, left, right = (length(path + size * bend) for size in (0.0, 0.01, -0.01))
    assert straight == pytest.approx(float(pairwise(P[None], Q[None], kind="geodesic")), rel=1e-9)
    assert straight < min(left, right)
    assert abs(left - right) < 0.1 * (left - straight)  # no first-order change


def test_points_that_coincide_or_are_certain():
    P = predictions(1, 3, 4)[0]
    torch.testing.assert_close(geodesic(P, P, 0.3), P, rtol=1e-14, atol=0)
    # a great circle from one corner to the other runs at a quarter turn
    corner, other = truth(torch.tensor([0]), 2), truth(torch.tensor([1]), 2)
    wanted = [math.cos(math.pi / 8) ** 2, math.sin(math.pi / 8) ** 2]
    assert geodesic(corner, other, 0.25)[0].tolist() == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("classes", [2, 5])
def test_models_on_the_path_are_found_where_they_are(classes):
    labels = torch.arange(7) % classes
    t = torch.tensor([0.0, 1e-6, 0.1, 0.5, 0.77, 1.0], dtype=torch.float64)
    path = geodesic(ignorance(7, classes), truth(labels, classes), t)
    torch.testing.assert_close(progress(path, end=labels), t, rtol=0, atol=1e-12)
    torch.testing.assert_close(progress(path, end=truth(labels, classes)), t, rtol=0, atol=1e-12)


def test_progress_is_the_minimum_that_a_fine_grid_finds():
    P, labels = predictions(9, 6, 3, seed=2, scale=3.0), torch.tensor([0, 1, 2, 0, 1, 2])
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 0.0])
    grid = torch.linspace(0, 1, 4001, dtype=torch.float64)
    path = geodesic(ignorance(6, 3), truth(labels, 3), grid)
    for given in (None, weights):
        away = distances(P, path, kind="geodesic", weights=given)
        best = grid[away.argmin(1)]
        assert float((progress(P, end=labels, weights=given) - best).abs().max()) < 1.01 / 4000
        # convex in t, as the docstring claims, so the minimum is one
        squares = away.square()
        assert float((squares[:, 2:] - 2 * squares[:, 1:-1] + squares[:, :-2]).min()) > -1e-12


def test_progress_between_any_two_points_is_what_a_fine_grid_finds():
    """Examples whose two ends lie close count as little as their angle moves."""
    P, (start, end) = predictions(5, 6, 3, seed=4), predictions(2, 6, 3, seed=5)
    end[:3] = 0.9 * start[:3] + 0.1 * end[:3]
    grid = torch.linspace(0, 1, 4001, dtype=torch.float64)
    best = grid[distances(P, geodesic(start, end, grid), kind="geodesic").argmin(1)]
    assert int(((best > 0) & (best < 1)).sum()) >= 4
    assert float((progress(P, start=start, end=end) - best).abs().max()) < 1.01 / 4000


def test_wrong_models_do_not_progress_and_another_start_is_taken():
    labels = torch.zeros(4, dtype=torch.long)
    wrong = truth(torch.ones(4, dtype=torch.long), 3)[None]
    assert float(progress(wrong, end=labels)) == pytest.approx(0.0, abs=1e-15)
    start, end = predictions(2, 4, 3)
    middle = geodesic(start, end, 0.4)
    assert float(progress(middle[None], start=start, end=end)) == pytest.approx(0.4, abs=1e-12)
    assert float(progress(middle[None], start=end, end=start)) == pytest.approx(0.6, abs=1e-12)
    # where start and end agree there is nothing to tell, and nothing breaks
    assert math.isfinite(progress(middle[None], start=end, end=end))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda P: geodesic(P[0], P[0, :2], 0.5), "same shape"),
        (lambda P: geodesic(P[0], P[1], 1.5), r"\[0, 1\]"),
        (lambda P: geodesic(P[0], 2 * P[1], 0.5), "not a distribution"),
        (lambda P: progress(P, end=torch.tensor([0, 1, 7])), "from 0 to 2; got 7"),
        (lambda P: progress(P, end=torch.tensor([0, 1])), r"must be \(3, 3\)"),
        (lambda P: progress(P, end=[0, 1, 2]), "labels or"),
        (lambda P: progress(P[0], end=torch.tensor([0, 1, 2])), r"\(M, N, C\)"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(dynaxx.InputError, match=words):
        call(predictions(2, 3, 3))
