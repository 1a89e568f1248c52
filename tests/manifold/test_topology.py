"""Comparisons of maps: what must not matter does not, what must does, and chance is where it is said to be."""

import math

import numpy as np
import pytest
import torch

import dynaxx
from dynaxx.manifold import knn_overlap, persistence, persistence_distance, procrustes, rank_correlation


def cloud(m, k=3, seed=0):
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaps(X):
    return torch.cdist(X, X, compute_mode="donot_use_mm_for_euclid_dist")


def test_neighbours_by_counting():
    A, B = gaps(cloud(20)), gaps(cloud(20, seed=1))
    total = 0
    for i in range(20):
        near = [set(sorted((j for j in range(20) if j != i), key=lambda j: float(D[i, j]))[:4]) for D in (A, B)]
        total += len(near[0] & near[1])
    assert knn_overlap(A, B, k=4) == total / 80
    assert knn_overlap(A, A.square() * 3, k=4) == 1


def test_neighbours_of_unrelated_points_overlap_by_chance():
    """k / (m - 1): the mean over 20 pairs of clouds, within 4 standard errors."""
    found = np.array(
        [knn_overlap(gaps(cloud(60, seed=2 * s)), gaps(cloud(60, seed=2 * s + 1)), k=6) for s in range(20)]
    )
    assert abs(found.mean() - 6 / 59) < 4 * found.std(ddof=1) / math.sqrt(20)


def test_ranks():
    A = gaps(cloud(15))
    assert rank_correlation(A, A**3) == pytest.approx(1.0, abs=1e-12)
    assert rank_correlation(A, A.max() - A) == pytest.approx(-1.0)
    # by the textbook: the correlation of ranks
    B = gaps(cloud(15, seed=1))
    i, j = np.triu_indices(15, 1)
    ranks = [np.argsort(np.argsort(D[i, j].numpy())).astype(float) for D in (A, B)]
    assert rank_correlation(A, B) == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-12)


def test_procrustes_sees_shape_alone():
    X = cloud(12)
    rotation = torch.linalg.qr(cloud(3, seed=5)).Q
    assert procrustes(X, 3 * X @ rotation + 7) == pytest.approx(1.0, abs=1e-7)
    noisy = X + 0.3 * cloud(12, seed=8)
    assert 0.5 < procrustes(X, noisy) < 0.999
    # r is the nuclear norm of X'^T Y'
    normal = [(Z - Z.mean(0)) / (Z - Z.mean(0)).norm() for Z in (X, noisy)]
    assert procrustes(X, noisy) == pytest.approx(float(torch.linalg.svdvals(normal[0].T @ normal[1]).sum()), rel=1e-9)
    flat = X[:, :2]
    padded = torch.cat([flat, torch.zeros(12, 1, dtype=torch.float64)], 1)
    assert procrustes(X, flat) == pytest.approx(procrustes(X, padded), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda A: knn_overlap(A, A[:4, :4]), "same points"),
        (lambda A: knn_overlap(A, A, k=9), "1 to 8"),
        (lambda A: knn_overlap(A[0], A[0]), "square"),
        (lambda A: rank_correlation(A, torch.ones(9, 9)), "equal"),
        (lambda A: rank_correlation(A * torch.nan, A), "nan"),
        (lambda A: rank_correlation(A[:2, :2], A[:2, :2]), "3 or more"),
        (lambda A: procrustes(A, A[:4]), "as many points"),
        (lambda A: procrustes(A, torch.ones(9, 2)), "coincide"),
        (lambda A: persistence_distance(A, A, kind="l2"), "'bottleneck', 'wasserstein'"),
        (lambda A: persistence(A, dimension=-1), "dimension=-1"),
    ],
)
def test_bad_input(call, words):
    if "dimension" in words:
        pytest.importorskip("ripser", reason="persistent homology needs ripser (extra: topology)")
    with pytest.raises(dynaxx.InputError, match=words):
        call(gaps(cloud(9)))


def test_the_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ripser", None)
    with pytest.raises(dynaxx.InputError, match=r"dynaxx\[topology\]"):
        persistence(gaps(cloud(5)))


@pytest.fixture
def homology():
    pytest.importorskip("ripser", reason="persistent homology needs ripser (extra: topology)")
    pytest.importorskip("persim", reason="persistent homology needs persim (extra: topology)")


def circle(m, radius=1.0):
    angle = torch.arange(m, dtype=torch.float64) * 2 * math.pi / m
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def test_a_circle_has_one_loop(homology):
    """Of m points on a circle the loop is born at the gap of neighbours and dies at the side of a triangle in it."""
    components, loops = persistence(gaps(circle(30)))
    assert loops.shape == (1, 2)
    diameter = 2.0
    assert loops[0, 0] == pytest.approx(2 * math.sin(math.pi / 30) / diameter, rel=1e-6)
    assert loops[0, 1] == pytest.approx(math.sqrt(3) / diameter, rel=1e-6)
    assert len(components) == 30
    assert np.isinf(components[-1, 1])


def test_diagrams_are_apart_by_the_loop_that_one_of_them_lacks(homology):
    ring, line = gaps(circle(24)), gaps(cloud(24, 1))
    persistent = math.sqrt(3) / 2 - math.sin(math.pi / 24)
    assert persistence_distance(ring, line) == pytest.approx(persistent / 2, rel=1e-5)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = 5 * ring[order][:, order]
    assert persistence_distance(ring, shuffled) == pytest.approx(0.0, abs=1e-6)
    assert persistence_distance(ring, shuffled, kind="wasserstein") == pytest.approx(0.0, abs=1e-6)
    assert persistence_distance(line, gaps(cloud(9, 1, seed=3))) == 0


def test_diagrams_are_stable(homology):
    """The bottleneck distance is at most the largest change of a distance (Cohen-Steiner et al. 2007)."""
    A = gaps(cloud(40, 2))
    noise = 0.01 * torch.rand(40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.triu(noise, 1) + torch.triu(noise, 1).T
    for dimension in (0, 1):
        moved = persistence_distance(A, A + noise, dimension=dimension)
        change = float((A / A.max() - (A + noise) / (A + noise).max()).abs().max())
        assert 0 < moved <= change * (1 + 1e-5)
