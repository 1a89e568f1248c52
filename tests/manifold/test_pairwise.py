"""Distances against their definitions in high precision, their local form, and the cases that break naive formulas."""

import math

import mpmath
import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.manifold import between_examples, distances, embed
from dynaxx.manifold import pairwise as pairwise_module

KINDS = ("hellinger", "geodesic", "bhattacharyya", "intensive", "kl")


def predictions(models, examples, classes, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(models, examples, classes, generator=generator, dtype=torch.float64)).softmax(-1)


def by_definition(kind, p, q, weights=None):
    """In 40 digits, one example and class at a time. p and q are lists of lists of mpf."""
    with mpmath.workdps(40):
        share = weights or [mpmath.mpf(1) / len(p)] * len(p)
        total = mpmath.mpf(0)
        for w, a, b in zip(share, p, q, strict=True):
            sums = mpmath.fsum(a), mpmath.fsum(b)
            a, b = ([x / s for x in row] for row, s in zip((a, b), sums, strict=True))
            affinity = mpmath.fsum(mpmath.sqrt(x * y) for x, y in zip(a, b, strict=True))
            total += (
                w
                * {
                    "hellinger": lambda affinity=affinity: 1 - affinity,
                    "geodesic": lambda affinity=affinity: mpmath.acos(min(affinity, mpmath.mpf(1))) ** 2,
                    "bhattacharyya": lambda affinity=affinity: -mpmath.log(affinity),
                    "intensive": lambda affinity=affinity: -8 * mpmath.log(affinity),
                    "kl": lambda a=a, b=b: mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(a, b, strict=True) if x),
                }[kind]()
            )
        return float(mpmath.sqrt(total)) if kind in ("hellinger", "geodesic") else float(total)


def exact(P):
    return [[[mpmath.mpf(float(x)) for x in row] for row in model] for model in P]


@pytest.mark.parametrize("kind", KINDS)
def test_definitions(kind):
    P, Q = predictions(4, 5, 3), predictions(3, 5, 3, seed=1)
    found = distances(P, Q, kind=kind)
    wanted = [[by_definition(kind, p, q) for q in exact(Q)] for p in exact(P)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7])
def test_close_models_keep_their_digits(kind, gap):
    P = predictions(1, 6, 4)
    Q = P * (1 + gap * torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    Q = Q / Q.sum(-1, keepdim=True)
    wanted = by_definition(kind, exact(P)[0], exact(Q)[0])
    # what the inputs' own rounding allows: they know their difference to 1e-16 / gap
    assert float(distances(P, Q, kind=kind)) == pytest.approx(wanted, rel=20 * 2.0**-52 / gap, abs=0)


@pytest.mark.parametrize("kind", ["bhattacharyya", "intensive"])
def test_nearly_orthogonal_predictions(kind):
    tiny = 1e-200
    P, Q = torch.tensor([[[1.0, tiny]]]).double(), torch.tensor([[[0.0, 1.0]]]).double()
    P[0, 0, 1] = tiny
    wanted = -0.5 * math.log(tiny) * (8 if kind == "intensive" else 1)
    assert float(distances(P, Q, kind=kind)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, "euclidean"])
def test_the_diagonal_is_zero_and_symmetry_is_exact(kind, monkeypatch):
    monkeypatch.setattr(pairwise_module, "CHUNK", 37)  # many blocks, none of them even
    P = predictions(11, 9, 3)
    P[4] = P[2]
    found = distances(P, kind=kind)
    assert (found.diagonal() == 0).all()
    assert found[2, 4] == found[4, 2] == 0
    assert (found[~torch.eye(11, dtype=torch.bool)] >= 0).all()
    assert torch.equal(found, found.T) == (kind != "kl")
    monkeypatch.undo()
    torch.testing.assert_close(found, distances(P, kind=kind), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(found, distances(P, P.clone(), kind=kind), rtol=1e-13, atol=1e-15)


def test_small_steps_measure_the_fisher_metric():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    x = torch.randn(8, 4, dtype=torch.float64)
    F = dynaxx.fisher(model, x, form="dense")
    step = 1e-4 * torch.randn(F.shape[0], dtype=torch.float64)
    before = embed(model, x) ** 2
    with torch.no_grad():
        for name, part in F.unravel(step).items():
            model.get_parameter(name).add_(part)
    pair = torch.stack([before, embed(model, x) ** 2])
    quadratic = float(F.quadratic(step))
    for kind, factor, power in (
        ("hellinger", 1 / 8, 2),
        ("geodesic", 1 / 4, 2),
        ("bhattacharyya", 1 / 8, 1),
        ("intensive", 1.0, 1),
        ("kl", 1 / 2, 1),
    ):
        found = float(distances(pair, kind=kind)[0, 1]) ** power
        assert found == pytest.approx(factor * quadratic, rel=2e-3), kind


def test_regression_distances_are_those_of_normal_distributions():
    Z = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = distances(Z, kind="euclidean")
    mean = lambda u, v: float((Z[u] - Z[v]).square().sum(-1).mean())
    assert found.tolist() == [[pytest.approx(mean(u, v), rel=1e-12, abs=1e-15) for v in range(3)] for u in range(3)]
    divergence = dynaxx.likelihoods.Gaussian().divergence(Z[0], Z[1]).mean()
    assert float(found[0, 1]) == pytest.approx(2 * float(divergence), rel=1e-12)


def test_the_limit_of_replicas_is_the_intensive_distance():
    """8 (1 - BC^N) / N, the squared Hellinger distance per replica, as N goes to zero; Quinn et al. 2019."""
    P = predictions(2, 1, 4)
    affinity = float((P[0] * P[1]).sqrt().sum())
    limit = 8 * -math.expm1(1e-9 * math.log(affinity)) / 1e-9
    assert float(distances(P, kind="intensive")[0, 1]) == pytest.approx(limit, rel=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_weights(kind):
    P = predictions(3, 4, 3)
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0])
    repeated = P[:, [0, 2, 2, 3, 3, 3, 3, 3]]
    found = distances(P, kind=kind, weights=weights)
    torch.testing.assert_close(found, distances(repeated, kind=kind), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_close_models(kind):
    P, weights = predictions(1, 3, 4), torch.tensor([1.0, 3.0, 4.0])
    gaps = torch.tensor([1e-4, 2e-5, 1e-6], dtype=torch.float64)[:, None]
    Q = P * (1 + gaps * torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    Q = Q / Q.sum(-1, keepdim=True)
    wanted = by_definition(kind, exact(P)[0], exact(Q)[0], [mpmath.mpf(n) / 8 for n in (1, 3, 4)])
    assert float(distances(P, Q, kind=kind, weights=weights)) == pytest.approx(wanted, rel=1e-9, abs=0)


def test_disjoint_predictions_are_infinitely_far_and_a_ceiling_is_per_example():
    P = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    for kind in ("bhattacharyya", "intensive", "kl"):
        assert math.isinf(distances(P, kind=kind)[0, 1])
        factor = 8 if kind == "intensive" else 1
        assert float(distances(P, kind=kind, ceiling=100.0)[0, 1]) == factor * 50
        assert (distances(P, kind=kind).diagonal() == 0).all()
    assert float(distances(P, kind="hellinger")[0, 1]) == pytest.approx(math.sqrt(0.5))
    assert float(distances(P, kind="geodesic")[0, 1]) == pytest.approx(math.sqrt((math.pi / 2) ** 2 / 2))
    # a weight of zero takes the infinite example out
    assert float(distances(P, weights=torch.tensor([0.0, 1.0]))[0, 1]) == 0
    # kl is finite where only the second distribution covers more
    narrow, wide = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.5, 0.5]]])
    assert float(distances(narrow, wide, kind="kl")) == pytest.approx(math.log(2))
    assert math.isinf(distances(wide, narrow, kind="kl"))
    far, without = torch.tensor([[[0.8, 0.1, 0.1]]]), torch.tensor([[[0.01, 0.99, 0.0]]])
    assert math.isinf(distances(far, without, kind="kl"))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_sum_to_one_up_to_rounding_are_normalised(kind):
    P, Q = predictions(3, 5, 4), predictions(2, 5, 4, seed=1)
    wanted = distances(P, Q, kind=kind)
    torch.testing.assert_close(distances(P * 1.00005, Q * 0.99995, kind=kind), wanted, rtol=1e-13, atol=0)
    assert (distances(P * 1.00005, P, kind=kind).diagonal() < 1e-7).all()


@pytest.mark.parametrize("kind", ["hellinger", "geodesic"])
def test_lengths_satisfy_the_triangle_inequality(kind):
    found = distances(predictions(12, 4, 3), kind=kind)
    detour = (found[:, :, None] + found[None, :, :]).amin(1)
    assert bool((found <= detour + 1e-12).all())


def test_between_examples():
    P = predictions(1, 9, 4)[0]
    for kind in KINDS:
        found = between_examples(P, kind=kind)
        assert found.shape == (9, 9)
        assert float(found[2, 5]) == pytest.approx(by_definition(kind, exact(P[None])[0][2:3], exact(P[None])[0][5:6]))
    with pytest.raises(dynaxx.InputError, match="distances\\(\\) takes many"):
        between_examples(P[None])


def test_single_precision_and_lists():
    P = predictions(3, 5, 4)
    torch.testing.assert_close(distances(P.float()), distances(P), rtol=1e-4, atol=1e-7)
    assert torch.equal(distances(list(P)), distances(P))
    assert distances(P.half()).dtype == torch.float64


def test_a_thousand_models_in_little_time_and_memory():
    P = predictions(1000, 20, 10)
    found = distances(P)
    index = torch.tensor([0, 17, 500, 999])
    torch.testing.assert_close(found[index][:, index], distances(P[index]), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda P: distances(P.log()), r"embed\(...\) \*\* 2"),
        (lambda P: distances(P.sqrt()), r"embed\(...\) \*\* 2"),
        (lambda P: distances(P[0]), r"\(M, N, C\).*between_examples"),
        (lambda P: distances(P, P[:, :2]), "same examples and classes"),
        (lambda P: distances(P, kind="euclid"), "choose one of 'bhattacharyya'"),
        (lambda P: distances(P, weights=torch.ones(2)), "3 finite numbers"),
        (lambda P: distances(P, weights=-torch.ones(3)), "none negative"),
        (lambda P: distances(P, kind="hellinger", ceiling=1.0), "ceiling"),
        (lambda P: distances(P, ceiling=0.0), "ceiling"),
        (lambda P: distances([P[0], P[1, :2]]), "different shapes"),
        (lambda P: distances(P * torch.nan, kind="euclidean"), "nan or inf"),
        (lambda P: distances(torch.where(P > 0.5, torch.nan, P)), "not a distribution"),
        (lambda P: distances("P"), "of type str"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(dynaxx.InputError, match=words):
        call(predictions(2, 3, 3))


def test_what_would_not_fit_is_refused_before_it_is_begun():
    with pytest.raises(dynaxx.SizeError, match="take fewer examples"):
        distances(torch.full((1, 1, 1), 1.0).expand(10**7, 1, 1))
