"""The scale of F: it is the mean over examples, and nothing about batches, masks or reductions may change that."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import dynaxx
import oracles
from architectures import CASES, NAMES, load

TOLERANCE = 1e-12
FORMS = ("implicit", "dense", "diagonal", "block", "gram")
BY_LIKELIHOOD = (
    "mlp",
    "bernoulli",
    "gaussian",
    "gaussian_variance",
    "heteroscedastic",
    "poisson",
    "tied_language_model",
    "gaussian_sequence",
    "segmentation",
)


@pytest.mark.parametrize("name", BY_LIKELIHOOD)
def test_fisher_is_the_curvature_of_the_divergence(name):
    case, (model, batch) = CASES[name], load(name)
    operator = dynaxx.fisher(model, batch, likelihood=case.likelihood, form="dense")
    direction = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    direction /= direction.norm()
    step = 1e-3
    measured = [oracles.mean_divergence(model, batch, case.kind, s * step * direction, case.variance) for s in (1, -1)]
    predicted = 0.5 * step**2 * float(operator.quadratic(direction))
    # the cubic term cancels between the two signs; the quartic leaves O(step^2)
    assert sum(measured) / 2 / predicted == pytest.approx(1, abs=1e-4)


def partitions(x, y):
    cut = lambda *sizes: list(zip(x.split(sizes), y.split(sizes), strict=True))
    return {
        "4+2": cut(4, 2),
        "1+5": cut(1, 5),
        "3+2+1": cut(3, 2, 1),
        "singles": cut(1, 1, 1, 1, 1, 1),
        "loader with a short last batch": DataLoader(TensorDataset(x, y), batch_size=4),
    }


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", partitions(torch.zeros(6), torch.zeros(6)))
def test_batches_do_not_matter(how, form, estimator):
    model, (x, y) = load("mlp")
    whole = dynaxx.fisher(model, (x, y), form=form, estimator=estimator)
    parts = dynaxx.fisher(model, partitions(x, y)[how], form=form, estimator=estimator)
    assert parts.count == whole.count == 6
    assert oracles.distance(parts.to_dense(), whole.to_dense()) < TOLERANCE


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_matter_to_any_architecture(name, sizes):
    """What is learnt of the first batch must hold for the next: here that batch is short, or as long as it is wide."""
    case, (model, batch) = CASES[name], load(name)
    cuts = [0, *torch.tensor(sizes).cumsum(0).tolist(), oracles.length(batch)]
    parts = [oracles.part(batch, a, b) for a, b in pairwise(cuts) if a < b]
    wanted = oracles.exact_fisher(oracles.examples(model, batch, case.kind), case.kind, case.variance)
    forms = dynaxx.fisher(model, parts, likelihood=case.likelihood, form=("dense", "diagonal", "implicit"))
    v = torch.randn(len(wanted), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert [operator.count for operator in forms] == [oracles.length(batch)] * 3
    assert oracles.distance(forms[0].to_dense(), wanted) < 1e-10
    assert oracles.distance(forms[1].diagonal(), wanted.diagonal()) < 1e-10
    assert oracles.distance(forms[2] @ v, wanted @ v) < 1e-10


RAGGED = (
    "time_first",
    "loop_over_time",
    "flattened_time",
    "flattened_time_slower",
    "attention",
    "gru",
    "folded_frames",
)


SHAPES = (
    [(2, 3), (5, 4), (1, 2)],
    [(2, 5), (5, 1), (1, 5)],
    [(2, 2), (5, 2), (1, 6)],
    [(2, 1), (5, 5), (1, 3)],  # nothing in the first batch tells examples from positions
    [(1, 1), (1, 5), (2, 2)],
    [(1, 3), (3, 1), (3, 3)],
)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", RAGGED)
def test_lengths_may_differ_between_batches(name, shapes):
    """Batches of (examples, positions), which now and then agree in number or are one."""
    model, (x, _) = load(name)
    draw = torch.Generator().manual_seed(9)
    batches = [torch.randn(*shape, *x.shape[2:], generator=draw, dtype=torch.float64) for shape in shapes]
    rows = [row for batch in batches for row in oracles.examples(model, batch, "categorical")]
    wanted = oracles.exact_fisher(rows, "categorical")
    dense, diagonal = dynaxx.fisher(model, batches, form=("dense", "diagonal"))
    assert dense.count == sum(count for count, _ in shapes)
    assert oracles.distance(dense.to_dense(), wanted) < 1e-10
    assert oracles.distance(diagonal.diagonal(), wanted.diagonal()) < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_order_does_not_matter(form):
    model, (x, y) = load("mlp")
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    whole, mixed = (dynaxx.fisher(model, data, form=form) for data in ((x, y), (x[order], y[order])))
    assert oracles.distance(mixed.to_dense(), whole.to_dense()) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_dropped_examples_are_not_counted(form):
    model, (x, y) = load("mlp")
    loader = DataLoader(TensorDataset(x, y), batch_size=4, drop_last=True)
    operator = dynaxx.fisher(model, loader, form=form)
    assert operator.count == 4
    assert oracles.distance(operator.to_dense(), dynaxx.fisher(model, (x[:4], y[:4]), form=form).to_dense()) < TOLERANCE


@pytest.mark.parametrize("factor", [2, 3])
def test_repeated_data_change_nothing(factor):
    model, (x, y) = load("mlp")
    once, often = (dynaxx.fisher(model, [(x, y)] * times, form="dense") for times in (1, factor))
    assert often.count == factor * once.count
    assert oracles.distance(often.to_dense(), once.to_dense()) < TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# Masks


class _PerToken(nn.Module):
    """Tokens do not see each other, so that padding can stand on either side."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 4)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)))


@pytest.fixture
def padded():
    torch.manual_seed(2)
    model = _PerToken().double().eval()
    lengths = [3, 1, 4]
    tokens, answers = [torch.randint(5, (k,)) for k in lengths], [torch.randint(4, (k,)) for k in lengths]

    def pad(left, width):
        x, y = torch.zeros(3, width, dtype=torch.int64), torch.full((3, width), -100)
        for n, k in enumerate(lengths):
            place = slice(width - k, width) if left else slice(0, k)
            x[n, place], y[n, place] = tokens[n], answers[n]
        return x, y

    return model, pad


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@pytest.mark.parametrize("form", FORMS)
def test_padding_does_not_matter(padded, form, estimator):
    model, pad = padded
    wanted = dynaxx.fisher(model, pad(False, 4), form=form, estimator=estimator).to_dense()
    for layout in (pad(True, 4), pad(False, 7), pad(True, 6)):
        found = dynaxx.fisher(model, layout, form=form, estimator=estimator)
        assert found.count == 3
        assert oracles.distance(found.to_dense(), wanted) < TOLERANCE


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@pytest.mark.parametrize("form", FORMS)
def test_a_fully_masked_example_counts_with_a_fisher_of_zero(padded, form, estimator):
    model, pad = padded
    x, y = pad(False, 4)
    wanted = dynaxx.fisher(model, (x, y), form=form, estimator=estimator)
    blank = (torch.cat([x, x[:2]]), torch.cat([y, torch.full((2, 4), -100)]))
    alone = [(x, y), (x[:2], torch.full((2, 4), -100))]
    for data in (blank, alone):
        found = dynaxx.fisher(model, data, form=form, estimator=estimator)
        assert found.count == 5
        assert oracles.distance(found.to_dense() * 5 / 3, wanted.to_dense()) < TOLERANCE


def test_sequence_is_the_sum_over_its_positions(padded):
    """Tokens that do not interact, each an example of its own, give the same sum: only the count differs."""
    model, pad = padded
    x, y = pad(False, 4)
    keep = y != -100
    sequences = dynaxx.fisher(model, (x, y), form="dense")
    tokens = dynaxx.fisher(model, (x[keep][:, None], y[keep][:, None]), form="dense")
    assert tokens.count == 8
    assert oracles.distance(tokens.to_dense() * 8 / 3, sequences.to_dense()) < TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# Reductions of a loss


@pytest.mark.parametrize("partition", ["6", "4+2"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_hessian_does_not_depend_on_the_reduction(reduction, partition):
    model, (x, y) = load("mlp")
    wanted = oracles.hessian(model, (x, y), functional.cross_entropy)
    data = (x, y) if partition == "6" else partitions(x, y)[partition]
    found = dynaxx.hessian(model, data, nn.CrossEntropyLoss(reduction=reduction), form="dense")
    assert found.count == 6
    assert oracles.distance(found.to_dense(), wanted) < 1e-10


@pytest.mark.parametrize("partition", ["6", "4+2"])
@pytest.mark.parametrize("loss", [functional.cross_entropy, partial(functional.cross_entropy, reduction="none")])
def test_hessian_of_a_plain_function(loss, partition):
    """A scalar is read as the mean over the batch, one value per example as it stands."""
    model, (x, y) = load("mlp")
    wanted = oracles.hessian(model, (x, y), functional.cross_entropy)
    data = (x, y) if partition == "6" else partitions(x, y)[partition]
    found = dynaxx.hessian(model, data, loss, form="implicit")
    v = torch.randn(len(wanted), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert oracles.distance(found @ v, wanted @ v) < 1e-10


# ---------------------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("form", ["dense", "diagonal", "implicit", "gram"])
@pytest.mark.parametrize("given", ["tuple", "dict"])
def test_weights_of_examples_multiply_their_fisher(given, form):
    model, (x, y) = load("mlp")
    weights = torch.linspace(0, 2, len(x), dtype=torch.float64)
    each = [dynaxx.fisher(model, x[n : n + 1], form="dense").to_dense() for n in range(len(x))]
    wanted = sum(w * F for w, F in zip(weights, each, strict=True)) / len(x)
    batch = (x, y, weights) if given == "tuple" else {"input": x, "labels": y, "sample_weight": weights}
    found = dynaxx.fisher(model, batch, form=form)
    assert oracles.distance(found.diagonal(), wanted.diagonal()) < 1e-10
    parts = [(x[:2], y[:2], weights[:2]), (x[2:], y[2:], weights[2:])]
    assert oracles.distance(dynaxx.fisher(model, parts, form=form).diagonal(), wanted.diagonal()) < 1e-10


def test_weights_of_positions_are_weights_of_their_terms():
    """A weight of 0 or 1 is a mask; the empirical score is scaled by the weight itself, not by its root."""
    model, batch = load("tied_language_model")
    tokens, labels = batch if isinstance(batch, tuple) else (batch["input_ids"], batch["labels"])
    kept = (labels != -100).double()
    filled = labels.clamp(min=0)
    for estimator in ("exact", "empirical"):
        masked = dynaxx.fisher(model, (tokens, labels), form="diagonal", estimator=estimator).diagonal()
        weighted = dynaxx.fisher(model, (tokens, filled, kept), form="diagonal", estimator=estimator).diagonal()
        double = dynaxx.fisher(model, (tokens, filled, 2 * kept), form="diagonal", estimator=estimator).diagonal()
        assert oracles.distance(weighted, masked) < 1e-12
        assert oracles.distance(double, (2 if estimator == "exact" else 4) * masked) < 1e-12


@pytest.mark.parametrize(
    "weights", [torch.tensor([1.0, -1, 1, 1, 1, 1]), torch.full((6,), float("nan")), torch.ones(4), "ones"]
)
def test_weights_that_make_no_sense(weights):
    with pytest.raises(dynaxx.InputError, match="weights"):
        dynaxx.fisher(torch.nn.Linear(3, 2), (torch.ones(6, 3), torch.zeros(6, dtype=torch.long), weights))
