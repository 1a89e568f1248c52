"""InPCA reproduces its distances with their signs, agrees with closed forms, and puts new points where they belong."""

import math

import pytest
import torch

import dynaxx
from dynaxx.manifold import distances, geodesic, ignorance, inpca, truth


def predictions(models, examples=8, classes=4, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(models, examples, classes, generator=generator, dtype=torch.float64)).softmax(-1)


def indefinite(m=30, seed=0):
    """Intensive distances of models, and a check that they need negative eigenvalues."""
    D = distances(predictions(m, examples=2, seed=seed), kind="intensive")
    assert int((inpca(D, k=None).signature < 0).sum()) > 2
    return D


def test_all_coordinates_reproduce_the_distances_with_signs():
    D = indefinite()
    made = inpca(D, k=None)
    x, sign = made.coordinates, made.signature
    found = torch.stack([(sign * (x - point).square()).sum(1) for point in x])
    torch.testing.assert_close(found, D, rtol=1e-12, atol=1e-12 * float(D.max()))
    torch.testing.assert_close(made.squared_distances(), found, rtol=0, atol=1e-11 * float(D.max()))
    assert made.explained_stress() == pytest.approx(1.0, abs=1e-7)
    magnitudes = made.eigenvalues.abs()
    assert bool((magnitudes[:-1] >= magnitudes[1:]).all())
    # one axis is lost to the centre, and says so
    assert (sign == 0).sum() == 1
    assert bool((x.sum(0).abs() < 1e-9).all())


def test_the_centred_matrix_by_its_definition():
    D = indefinite(12)
    L = torch.eye(12, dtype=torch.float64) - 1 / 12
    W = -0.5 * L @ D @ L
    made = inpca(D, k=5)
    values = torch.linalg.eigvalsh(W)
    wanted = values[values.abs().argsort(descending=True)][:5]
    torch.testing.assert_close(made.eigenvalues, wanted, rtol=1e-12, atol=1e-12)
    share = float((wanted[:2].square().sum() / W.square().sum()).sqrt())
    assert made.explained_stress(2) == pytest.approx(1 - math.sqrt(1 - share**2), rel=1e-12)
    assert made.explained_stress() > made.explained_stress(2) > 0


def test_squared_euclidean_distances_give_principal_components():
    """Classical scaling in closed form: coordinates are those of the singular value decomposition."""
    X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.tensor(
        [5.0, 2.0, 1]
    )
    made = inpca(torch.cdist(X, X).square(), k=3)
    centred = X - X.mean(0)
    _, s, v = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(made.eigenvalues, s.square(), rtol=1e-11, atol=0)
    torch.testing.assert_close(made.coordinates.abs(), (centred @ v.T).abs(), rtol=1e-9, atol=1e-9)
    assert made.signature.tolist() == [1, 1, 1]
    assert made.explained_stress(3) == pytest.approx(1.0, abs=1e-7)
    # what an independent implementation finds
    sklearn = pytest.importorskip("sklearn.decomposition", reason="compares with scikit-learn (extra: demo)")
    wanted = torch.from_numpy(sklearn.KernelPCA(3, kernel="linear").fit_transform(X.numpy()))
    torch.testing.assert_close(made.coordinates.abs(), wanted.abs(), rtol=1e-8, atol=1e-8)


def test_a_curve_on_a_circle_has_the_coordinates_of_its_angle():
    """Squared angles along one geodesic are squared lengths of a straight line."""
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    path = geodesic(ignorance(5, 3), truth(torch.tensor([0, 1, 2, 0, 1]), 3), t)
    made = inpca(distances(path, kind="geodesic").square(), k=2)
    line = made.coordinates[:, 0] - made.coordinates[0, 0]
    wanted = t * math.acos(1 / math.sqrt(3))
    torch.testing.assert_close(line.abs(), wanted, rtol=1e-9, atol=1e-9)
    assert abs(float(made.eigenvalues[1])) < 1e-9 * float(made.eigenvalues[0])
    assert made.explained_stress(1) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_point_of_the_map_is_projected_on_itself(weighted):
    D = indefinite()
    weights = torch.rand(30, generator=torch.Generator().manual_seed(1)) + 0.1 if weighted else None
    for k in (3, None):
        made = inpca(D, k=k, weights=weights)
        scale = float(made.coordinates.abs().max())
        torch.testing.assert_close(made.project(D), made.coordinates, rtol=0, atol=1e-6 * scale)
        torch.testing.assert_close(made.project(D[7]), made.coordinates[7], rtol=0, atol=1e-6 * scale)
    # few coordinates are free of the division by small eigenvalues
    made = inpca(D, k=3, weights=weights)
    torch.testing.assert_close(made.project(D), made.coordinates, rtol=0, atol=1e-12 * scale)


def test_new_points_in_a_plane_are_placed_exactly():
    generator = torch.Generator().manual_seed(2)
    X, new = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (25, 6))
    made = inpca(torch.cdist(X, X).square(), k=2)
    placed = made.project(torch.cdist(new, X).square())
    torch.testing.assert_close(torch.cdist(placed, made.coordinates), torch.cdist(new, X), rtol=1e-10, atol=1e-10)


def test_weights_count_points():
    """A point of weight 3 is three points in one place."""
    D = indefinite(10)
    weights = torch.tensor([1, 3, 1, 1, 2, 1, 1, 1, 1, 1])
    index = torch.repeat_interleave(torch.arange(10), weights)
    once, many = inpca(D, k=4, weights=weights), inpca(D[index][:, index], k=4)
    # eigenvalues: the weights are scaled to mean one, the copies have a weight of one each
    torch.testing.assert_close(once.eigenvalues * 13 / 10, many.eigenvalues, rtol=1e-11, atol=0)
    torch.testing.assert_close(once.coordinates[index].abs(), many.coordinates.abs(), rtol=1e-9, atol=1e-9)
    assert once.explained_stress(2) == pytest.approx(many.explained_stress(2), rel=1e-10)
    full = inpca(D, k=None, weights=weights)
    torch.testing.assert_close(full.squared_distances(), D, rtol=1e-10, atol=1e-10 * float(D.max()))
    equal = inpca(D, k=4, weights=torch.full((10,), 7.0))
    torch.testing.assert_close(equal.eigenvalues, inpca(D, k=4).eigenvalues, rtol=1e-12, atol=0)


def test_many_points_by_iteration_are_those_of_the_whole_spectrum():
    P = predictions(700, examples=3)
    D = distances(P, kind="intensive")
    few, whole = inpca(D, k=4), inpca(D, k=700)
    assert few.coordinates.shape == (700, 4)
    torch.testing.assert_close(few.eigenvalues, whole.eigenvalues[:4], rtol=1e-10, atol=0)
    torch.testing.assert_close(few.coordinates, whole.coordinates[:, :4], rtol=0, atol=1e-8)
    assert few.explained_stress(4) == pytest.approx(whole.explained_stress(4), rel=1e-10)
    assert torch.equal(inpca(D, k=4).coordinates, few.coordinates)


def test_thousands_of_points_are_placed_exactly():
    """Points in space: three coordinates are theirs but for a rotation, so they have every distance and all stress."""
    m = 3000
    X = torch.randn(m, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * torch.tensor([3.0, 2, 1])
    squares = X.square().sum(1)
    made = inpca(squares[:, None] + squares - 2 * X @ X.T, k=3)
    centred = X - X.mean(0)
    torch.testing.assert_close(made.eigenvalues, torch.linalg.svdvals(centred).square(), rtol=1e-9, atol=0)
    cross = made.coordinates.T @ centred
    torch.testing.assert_close(made.coordinates @ torch.linalg.lstsq(made.coordinates, centred).solution, centred)
    torch.testing.assert_close(cross @ cross.T, made.eigenvalues.square().diag(), rtol=1e-9, atol=1e-6)
    assert made.explained_stress(3) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("m", [20, 500])
def test_a_time_like_axis_is_found_with_its_sign(m):
    """Squared intervals of space-time, by either solver: the second largest magnitude is negative."""
    X = torch.randn(m, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([3.0, 2.0, 1])
    X = torch.linalg.qr(X - X.mean(0)).Q * torch.tensor([3.0, 2.0, 1.0])
    squares = (X[:, None] - X).square()
    D = squares[..., 0] - squares[..., 1] + squares[..., 2]
    made = inpca(D, k=2)
    torch.testing.assert_close(made.eigenvalues, torch.tensor([9.0, -4.0], dtype=torch.float64), rtol=1e-9, atol=0)
    assert made.signature.tolist() == [1, -1]
    torch.testing.assert_close(made.coordinates.abs(), X[:, :2].abs(), rtol=0, atol=1e-9)
    torch.testing.assert_close(made.project(D), made.coordinates, rtol=0, atol=1e-9)


def test_points_that_coincide_are_one_point():
    made = inpca(torch.zeros(5, 5), k=2)
    assert made.coordinates.abs().max() == 0
    assert made.signature.tolist() == [0, 0]
    assert made.explained_stress() == 1
    assert made.project(torch.zeros(5)).tolist() == [0, 0]


def test_explained_stress_grows_to_one():
    made = inpca(indefinite(), k=None)
    values = [made.explained_stress(k) for k in range(1, 31)]
    assert values == sorted(values)
    assert 0 < values[0] < values[-1] <= 1


def test_it_says_what_it_is():
    made = inpca(indefinite(), k=None)
    words = repr(made)
    assert words.startswith("Embedding(30 points, 30 coordinates +")
    signs = words.split()[4].rstrip(",")
    assert [{"+": 1, "-": -1, "0": 0}[sign] for sign in signs] == made.signature.tolist()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda D: inpca(D[:3]), "square"),
        (lambda D: inpca(D, k=31), "1 to 30"),
        (lambda D: inpca(D, k=0), "1 to 30"),
        (lambda D: inpca(D + torch.eye(30)), "diagonal"),
        (lambda D: inpca(D * torch.linspace(1, 2, 30)), "not symmetric"),
        (lambda D: inpca(D.masked_fill(D > 1, torch.inf)), "ceiling"),
        (lambda D: inpca(D.tolist()), "of type list"),
        (lambda D: inpca(D, weights=torch.ones(3)), "30 finite numbers"),
        (lambda D: inpca(D, weights=torch.arange(30.0)), "project"),
        (lambda D: inpca(D).project(D[:3, :3]), r"\(q, 30\)"),
        (lambda D: inpca(D).project(D[0] * torch.nan), "nan"),
        (lambda D: inpca(D).explained_stress(4), "k=4 of 3"),
    ],
)
def test_bad_input(call, words):
    D = distances(predictions(30), kind="bhattacharyya")
    with pytest.raises(dynaxx.InputError, match=words):
        call(D)
