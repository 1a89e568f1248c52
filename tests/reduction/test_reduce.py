"""Reduced models against projections written out with dense eigenvectors."""

import copy
import math
from importlib import import_module

import matplotlib as mpl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import oracles
from architectures import CASES, NAMES
from dynaxx.errors import InputError, SizeError
from dynaxx.reduction import Curve, Point, reduce
from dynaxx.reduction.bisection import bisect
from dynaxx.report import Document, Section, page
from dynaxx.track import Store
from test_untouched import Watch, prepared

mpl.use("Agg")


def flat(model, names=None):
    return torch.cat([value.detach().flatten() for value in oracles.parameters(model, names).values()])


def dense(model, batch, kind="categorical", variance=1.0, names=None):
    F = oracles.exact_fisher(oracles.examples(model, batch, kind, names), kind, variance)
    values, vectors = torch.linalg.eigh(F)
    return values.flip(0), vectors.flip(1)


def a_clear_k(values, rank):
    """In the middle of the ranks at which the eigenspace is well defined."""
    found = [k for k in range(1, rank) if values[k - 1] > 1.05 * values[k] and values[k - 1] > 1e-9 * values[0]]
    return found[len(found) // 2]


def moved(model, scale=0.3):
    """The weights of the model some way off, as a state dict."""
    generator = torch.Generator().manual_seed(5)
    state = copy.deepcopy(model.state_dict())
    for value in state.values():
        if value.is_floating_point():
            value.add_(scale * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return state


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_dense_projection(name):
    """Every architecture: convolutions, embeddings, tied weights, attention, frozen and unused parameters."""
    case = CASES[name]
    model, batch = case.build()
    values, vectors = dense(model, batch, case.kind, case.variance)
    reduction = reduce(model, batch, likelihood=case.likelihood)
    k = a_clear_k(values, reduction.rank)
    small = reduction.apply(k)
    assert type(small) is type(model)
    w = flat(model)
    assert float((flat(small) - vectors[:, :k] @ (vectors[:, :k].T @ w)).abs().max()) < 1e-8
    kept = float((vectors[:, :k].T @ w).square().sum() / (w @ w))
    assert reduction.energy(k) == pytest.approx(kept, abs=1e-9)
    chosen = oracles.parameters(model)
    for other, value in model.named_parameters():
        if other not in chosen:
            assert torch.equal(dict(small.named_parameters())[other], value), other
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_centre(name):
    model, batch = CASES[name].build()
    init = moved(model)
    values, vectors = dense(model, batch)
    c = torch.cat([init[n].flatten() for n in oracles.parameters(model)])
    other = copy.deepcopy(model)
    other.load_state_dict(init)
    made = [
        reduce(model, batch, centre="init", init=init),
        reduce(model, batch, centre="init", init=other),
        reduce(model, batch, centre=init),
        reduce(model, batch, centre=other),
        reduce(model, batch, centre=c),
        reduce(model, batch).about("init", init=init),
        reduce(model, batch, centre=init).about(c),
    ]
    k = a_clear_k(values, made[0].rank)
    wanted = c + vectors[:, :k] @ (vectors[:, :k].T @ (flat(model) - c))
    for reduction in made:
        assert float((flat(reduction.apply(k)) - wanted).abs().max()) < 1e-8
        assert torch.equal(flat(reduction.apply(0)), c)
    origin = reduce(model, batch)
    assert float(flat(origin.apply(0)).abs().max()) == 0


def test_sum_rules():
    model, batch = CASES["cnn"].build()
    reduction = reduce(model, batch)
    shares = reduction.subspace.coordinates.square()
    d = reduction.displacement
    for k in (0, 1, 3, reduction.rank):
        assert reduction.energy(k) == pytest.approx(float(shares[:k].sum() / (d @ d)), abs=1e-12)
        assert reduction.share_of_parameters(k) == k / 112
        assert reduction.share_of_rank(k) == k / reduction.rank
        w = flat(reduction.apply(k))
        assert reduction.energy(k) == pytest.approx(float(w @ w / (d @ d)), abs=1e-9)
    assert reduction.energy(0) == 0
    assert reduction.energy(reduction.rank) <= 1
    assert reduction.spectrum.rank == reduction.rank <= 5 * 2


def test_many_at_once_are_the_ones_made_alone(monkeypatch):
    model, (x, _) = CASES["cnn"].build()
    reduction = reduce(model, [x[:2], x[2:]], k=4)
    together = reduction.apply([1, 4, 9])
    for k, small in zip([1, 4, 9], together, strict=True):
        assert torch.allclose(flat(small), flat(reduction.apply(k)), atol=1e-12)
    monkeypatch.setattr(import_module("dynaxx.eigenspace"), "COLUMN_BYTES", 2 * 8 * 112)  # two vectors at a time
    assert reduction.space.columns_at_once == 2
    for one, two in zip(reduction.apply([1, 4, 9]), together, strict=True):
        assert torch.allclose(flat(one), flat(two), atol=1e-12)
    assert torch.allclose(flat(reduction.apply()), flat(together[1]))
    assert reduction.apply([]) == []
    assert "k = 4" in repr(reduction)


def test_some_parameters_alone():
    model, batch = CASES["mlp"].build()
    names = ["0.weight", "0.bias"]
    reduction = reduce(model, batch, params=names)
    values, vectors = dense(model, batch, names=names)
    k = a_clear_k(values, reduction.rank)
    small, w = reduction.apply(k), flat(model, names)
    assert float((flat(small, names) - vectors[:, :k] @ (vectors[:, :k].T @ w)).abs().max()) < 1e-8
    rest = [name for name, _ in model.named_parameters() if name not in names]
    assert torch.equal(flat(small, rest), flat(model, rest))


class Normed(nn.Module):
    """A class of the user's, with BatchNorm, a buffer and an attribute."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 8), nn.BatchNorm1d(8, momentum=0.3), nn.Linear(8, 3)
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))
        self.label = "mine"

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x)))) * self.scale


def normed():
    torch.manual_seed(0)
    model = Normed().double()
    x = torch.randn(40, 5, dtype=torch.float64)
    for _ in range(20):
        model(x)  # running statistics
    return model.eval(), x


def test_batch_norm_statistics_are_those_of_the_reduced_model():
    model, x = normed()
    before = copy.deepcopy(model.state_dict())
    reduction = reduce(model, x)
    small = reduction.apply(6)
    hidden = small.first(x).detach()
    assert torch.allclose(small.norm.running_mean, hidden.mean(0))
    assert torch.allclose(small.norm.running_var, hidden.var(0))
    assert not torch.allclose(small.norm.running_mean, model.norm.running_mean)
    assert (small.norm.momentum, small.norm.training, small.training) == (0.3, False, False)
    assert isinstance(small, Normed)
    assert (small.label, float(small.scale)) == ("mine", 2.0)
    for name, value in before.items():
        assert torch.equal(value, model.state_dict()[name])
    other = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1
    small = reduce(model, x, calibration=other).apply(6)
    assert torch.allclose(small.norm.running_mean, small.first(other).detach().mean(0))


def test_single_precision_and_a_loader():
    model, x = normed()
    model, x = model.float(), x.float()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(40) % 3), batch_size=16)
    model.scale = model.scale.float()
    reduction = reduce(model, loader, k=5)
    small, same = reduction.apply(), reduce(model, x).apply(5)
    assert next(small.parameters()).dtype == torch.float32
    assert torch.allclose(flat(small), flat(same), atol=1e-4)


def test_everything_kept_predicts_as_before():
    """On the eigenvectors of all of a linear model's input space nothing is lost but what no prediction sees."""
    torch.manual_seed(1)
    model = nn.Linear(4, 3).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    reduction = reduce(model, x)
    small = reduction.apply(reduction.rank)
    assert torch.allclose(small(x).softmax(1), model(x).softmax(1), atol=1e-9)
    assert not torch.allclose(small(x), model(x), atol=1e-3)  # the common shift of the logits is gone
    assert not torch.allclose(reduction.apply(2)(x).softmax(1), model(x).softmax(1), atol=1e-3)


@pytest.mark.parametrize("name", ["residual_batch_norm", "frozen", "tied_language_model"])
def test_the_model_is_untouched(name):
    model, batch = prepared(name)
    with Watch(model):
        reduction = reduce(model, batch)
        reduction.apply([1, 2])
        reduction.curve(lambda m: 0.5, [1, 2], controls=("random", "magnitude", "diagonal"))
        reduction.smallest(lambda m: float(flat(m).norm()), tolerance=0.1)


def test_smallest_by_a_score_that_grows():
    """The score is the energy itself, so the answer is known from the coordinates."""
    model, batch = CASES["cnn"].build()
    reduction = reduce(model, batch)
    w = flat(model)

    def score(m):
        return float(flat(m) @ flat(m) / (w @ w))

    reached = [k for k in range(reduction.rank + 1) if reduction.energy(k) >= 1 - 0.9]
    found = reduction.smallest(score, tolerance=0.9)
    assert found.k == reached[0]
    assert found.score == pytest.approx(reduction.energy(reached[0]), abs=1e-9)
    assert found.reference == 1
    assert found.dips == ()
    assert dict(found.tried)[found.k] == found.score
    assert len(found.tried) <= math.ceil(math.log2(reduction.rank)) + 5
    nothing = reduction.smallest(score, tolerance=0.0)
    assert nothing.k is None
    assert math.isnan(nothing.score)


@given(largest=st.integers(1, 300), threshold=st.integers(1, 400))
def test_bisection_finds_the_threshold_of_a_score_that_grows(largest, threshold):
    asked = []

    def score(k):
        asked.append(k)
        return float(k >= threshold)

    found = bisect(score, largest, reference=1.0, tolerance=0.5)
    assert found.k == (threshold if threshold <= largest else None)
    assert found.dips == ()
    assert len(asked) == len(set(asked)) <= math.ceil(math.log2(largest)) + 5


@given(scores=st.lists(st.booleans(), min_size=1, max_size=40))
def test_bisection_of_any_score_is_good_enough_and_lists_what_is_not(scores):
    found = bisect(lambda k: float(scores[k - 1]), len(scores), reference=1.0, tolerance=0.5)
    tried = dict(found.tried)
    assert all(value == scores[k - 1] for k, value in tried.items())
    if not scores[-1]:
        assert found.k is None
    else:
        assert found.score == 1
        assert found.dips == tuple(k for k in sorted(tried) if k > found.k and not scores[k - 1])


def test_smallest_reports_dips():
    found = bisect(lambda k: float(k in range(40, 46) or k >= 50), 50, reference=1.0, tolerance=0.5)
    assert (found.k, found.dips) == (40, (47,))


def test_bad_input(monkeypatch):
    model, (x, _) = CASES["mlp"].build()
    state = model.state_dict()
    missing = {name: value for name, value in state.items() if name != "0.bias"}
    reduction = reduce(model, x)
    rank = reduction.rank
    for call, words in {
        (lambda: reduce(model, x, centre="init")): "needs the initial weights.*init=",
        (lambda: reduce(model, x, centre="middle")): "centre='middle'.*'origin', 'init'",
        (lambda: reduce(model, x, init=state)): "init= belongs to centre='init'",
        (lambda: reduce(model, x, centre=state)): "equal the centre",
        (lambda: reduce(model, x, centre=missing)): "lacks 1 of 4.*'0.bias'",
        (lambda: reduce(model, x, centre={**state, "0.bias": torch.zeros(1)})): "'0.bias' has shape",
        (lambda: reduce(model, x, centre=torch.zeros(3))): r"expected \(43,\)",
        (lambda: reduce(model, x, centre=7)): "centre=a int",
        (lambda: reduce(model, x, centre=torch.full((43,), float("nan")))): "nan or inf",
        (lambda: reduce(model, x, k=rank + 1)): f"from 0 to {rank}: F on these data has rank {rank}",
        (lambda: reduce(model, x, k=0.05)): "k=0.05; expected a whole number",
        (lambda: reduce(model, iter([x]))): "read once",
        (lambda: reduce(model, x, estimator="exakt")): "estimator='exakt'",
        (lambda: reduction.apply()): "say how many dimensions",
        (lambda: reduction.apply(-1)): "k=-1",
        (lambda: reduction.apply([1, rank + 1])): f"k={rank + 1}",
        (lambda: reduction.energy(True)): "k=True",
        (lambda: reduction.control("randm")): "control='randm'.*'random', 'magnitude'",
        (lambda: reduction.control("random", seed=-1)): "seed=-1",
        (lambda: reduction.control("random").apply(44)): "from 0 to 43$",
        (lambda: reduction.curve(lambda m: 1.0, [99])): "k=99",
        (lambda: reduction.curve(lambda m: 1.0, controls=["best"])): "control='best'",
        (lambda: reduction.smallest(lambda m: 1.0, tolerance=-1)): "tolerance=-1",
        (lambda: reduction.smallest(lambda m: math.nan, tolerance=0.1)): "evaluate gave nan",
    }.items():
        with pytest.raises(InputError, match=words):
            call()
    monkeypatch.setattr(import_module("dynaxx.eigenspace"), "SIDE", 4)
    with pytest.raises(SizeError, match="fewer examples, or fewer parameters"):
        reduce(model, x)
    with torch.no_grad():
        model[0].weight.add_(1e-3)
    with pytest.raises(InputError, match="changed since"):
        reduction.apply(1)


def test_a_model_that_cannot_be_copied_says_so():
    model, (x, _) = CASES["mlp"].build()
    model.cache = model(x)  # a tensor with a graph
    with pytest.raises(InputError, match="cannot be copied"):
        reduce(model, x).apply(1)


def test_curve_as_figure_rows_and_block():
    model, batch = CASES["cnn"].build()
    reduction = reduce(model, batch)
    curve = reduction.curve(
        lambda m: float(flat(m).norm()), [1, 4, 9], controls=("random", "magnitude"), seeds=(0, 1, 2)
    )
    assert [row["k"] for row in curve.rows()] == [1, 4, 9] * 5
    assert curve.reference == pytest.approx(float(flat(model).norm()))
    for point in curve.points:
        assert point.share_of_parameters == point.k / 112
        assert point.share_of_rank == point.k / reduction.rank
        assert point.score**2 == pytest.approx(point.energy * curve.reference**2, abs=1e-9)
    axes = curve.figure(label="norm")
    assert axes.get_legend_handles_labels()[1] == ["eigenvectors", "random", "magnitude", "full model"]
    assert axes.get_lines()[0].get_xdata().tolist() == [1 / 112, 4 / 112, 9 / 112]
    assert axes.get_ylabel() == "norm"
    assert len(axes.collections) == 1  # the band of the random subspaces
    text = page(Document("t", "", [Section("s", "", [curve.block("Reduction")])]))
    assert "rank 10" in text
    assert len(list(reduction.points(lambda m: 0.0))) == len({math.ceil(s * 10) for s in (0.1, 0.2, 0.4, 0.7, 1.0)})
    mpl.pyplot.close("all")


def test_a_curve_is_kept_in_a_run():
    points = [
        Point(name, 0, k, k / 10, k / 5, 0.5, score) for name, k, score in (("random", 1, 0.25), ("random", 2, 0.5))
    ]
    with Store("sqlite://") as store:
        with store.run("reduced") as run:
            Curve(tuple(points), 1.0, 5, 10).record(run, step=3)
        (kept,) = store.arrays(run.id, "dynaxx/reduction/random")
    assert kept.value.tolist() == [[0.1, 0.25], [0.2, 0.5]]
    assert kept.attributes == {"x": "k / p", "y": "score"}
