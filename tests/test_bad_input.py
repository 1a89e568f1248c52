"""What cannot work is refused before work starts, with a message that names the remedy."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynaxx
from architectures import load


@pytest.fixture
def model():
    return load("mlp")[0]


@pytest.fixture
def batch():
    return load("mlp")[1]


def refuse(match, *args, error=dynaxx.InputError, **options):
    with pytest.raises(error, match=match) as caught:
        dynaxx.fisher(*args, **options)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Models that do not answer twice alike


def train_mode_models():
    return {
        "batch norm": nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
        "dropout": nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)),
        "alpha dropout": nn.Sequential(nn.Linear(4, 5), nn.AlphaDropout(0.2), nn.Linear(5, 3)),
    }


@pytest.mark.parametrize("form", ["implicit", "diagonal"])
@pytest.mark.parametrize("name", train_mode_models())
def test_train_mode(name, form, batch):
    model = train_mode_models()[name].double().train()
    refuse(r"model\.eval\(\)", model, batch, form=form)
    assert dynaxx.fisher(model.eval(), batch, form=form).count == 6


def test_train_mode_hidden_in_attention():
    model = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, batch_first=True).double().train()
    refuse(r"model\.eval\(\)", model, torch.randn(3, 2, 4, dtype=torch.float64))


def test_dropout_of_zero_is_no_reason_to_refuse(batch):
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.0), nn.Linear(5, 3)).double().train()
    assert dynaxx.fisher(model, batch, form="diagonal").count == 6


class _Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 3), 0

    def forward(self, x):
        return self.layer(x + 0.1 * torch.randn_like(x))


def test_nondeterministic_forward(batch):
    refuse(r"(?i)determinis", _Noisy().double().eval(), batch, form="implicit")


# ---------------------------------------------------------------------------------------------------------------------
# Data


def test_shuffled_loader_cannot_be_read_again(model, batch):
    loader = DataLoader(TensorDataset(*batch), batch_size=2, shuffle=True)
    refuse(r"(?i)shuffle", model, loader, form="implicit")


def test_shuffled_loader_serves_forms_of_one_pass(model, batch):
    loader = DataLoader(TensorDataset(*batch), batch_size=2, shuffle=True)
    assert dynaxx.fisher(model, loader, form="dense").count == 6


def test_generator_cannot_be_read_again(model, batch):
    x, y = batch
    refuse(r"(?i)generator|iterator|list\(", model, ((x[k : k + 2], y[k : k + 2]) for k in (0, 2, 4)), form="implicit")


@pytest.mark.parametrize("form", ["implicit", "diagonal"])
@pytest.mark.parametrize("data", [[], (), {}, iter(())], ids=["list", "tuple", "dict", "iterator"])
def test_empty_data(model, data, form):
    refuse(r"(?i)empty|no batch|no example|nothing|iterator", model, data, form=form)


def test_batch_without_examples(model):
    refuse(r"(?i)empty|no example", model, torch.zeros(0, 4, dtype=torch.float64), form="diagonal")


@pytest.mark.parametrize("data", [None, 3, "file.csv"], ids=["none", "number", "string"])
def test_data_of_a_strange_kind(model, data):
    refuse(r"(?i)data|batch", model, data)


@pytest.mark.parametrize("form", ["dense", "diagonal", "implicit", "gram"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_name_the_batch(model, batch, bad, form):
    x, _ = batch
    broken = x.clone()
    broken[5, 0] = bad
    refuse(r"(?i)(batch 2.*(nan|inf|finite)|(nan|inf|finite).*batch 2)", model, list(broken.split(2)), form=form)


class _Kink(nn.Module):
    """Finite outputs, but the derivative of the square root at 0 is infinite, and infinity times 0 is no number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return self.layer(x).square().sqrt()


@pytest.mark.parametrize("form", ["dense", "diagonal", "gram"])
def test_gradients_that_are_not_finite(batch, form):
    x = batch[0].clone()
    x[3] = 0
    refuse(r"(?i)nan|inf|finite", _Kink().double(), x, form=form)


def test_float16_overflow():
    model = nn.Linear(4, 3).half().eval()
    with torch.no_grad():
        model.weight.fill_(60000.0)
    x = torch.full((2, 4), 100.0, dtype=torch.float16)
    assert model(x).isinf().all()
    refuse(r"(?i)(inf|finite|overflow).*", model, x, form="diagonal")


# ---------------------------------------------------------------------------------------------------------------------
# Labels and outputs


@pytest.mark.parametrize("label", [3, -1, 99])
def test_labels_out_of_range(model, batch, label):
    x, y = batch
    y = y.clone()
    y[2] = label
    message = refuse(r"(?i)label", model, (x, y), estimator="empirical", form="diagonal")
    assert str(label) in message


def test_empirical_without_labels(model, batch):
    refuse(r"(?i)label", model, batch[0], estimator="empirical", form="diagonal")


def test_labels_of_another_length(model, batch):
    x, y = batch
    refuse(r"(?i)label|target|shape", model, (x, y[:4]), estimator="empirical", form="diagonal")


def test_bernoulli_labels_outside_zero_and_one(model, batch):
    x, _ = batch
    y = torch.full((6, 3), 2.0, dtype=torch.float64)
    refuse(
        r"(?i)label|target|0 (and|or|to) 1|\[0, 1\]",
        model,
        (x, y),
        likelihood="bernoulli",
        estimator="empirical",
        form="diagonal",
    )


def test_negative_counts(model, batch):
    y = torch.full((6, 3), -1.0, dtype=torch.float64)
    refuse(
        r"(?i)count|negative|label|target",
        model,
        (batch[0], y),
        likelihood="poisson",
        estimator="empirical",
        form="diagonal",
    )


def test_one_class_is_no_classifier(batch):
    """Softmax over one class is a constant: almost surely a Bernoulli was meant."""
    refuse(r"(?i)class|bernoulli", nn.Linear(4, 1).double(), batch[0], form="diagonal")


def test_heteroscedastic_outputs_come_in_pairs(batch):
    from dynaxx import likelihoods

    refuse(
        r"(?i)variance|pair|even|\b2\b",
        nn.Linear(4, 3).double(),
        batch[0],
        likelihood=likelihoods.HeteroscedasticGaussian(),
        form="diagonal",
    )


class _Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.layer, self.answer = nn.Linear(4, 3), answer

    def forward(self, x):
        return self.answer(self.layer(x))


@pytest.mark.parametrize(
    "answer",
    [lambda z: z.sum(), lambda z: z.argmax(1), lambda z: "logits", lambda z: None, lambda z: z[:2]],
    ids=["scalar", "integers", "string", "none", "too few rows"],
)
def test_outputs_no_likelihood_can_take(answer, batch):
    refuse(r"(?i)output|predict", _Answers(answer).double(), batch, form="diagonal")


# ---------------------------------------------------------------------------------------------------------------------
# Parameters


def test_unknown_parameter_name(model, batch):
    message = refuse(r"0\.wieght", model, batch, params=["0.wieght"])
    assert "0.weight" in message


def test_duplicate_parameter_name(model, batch):
    refuse(r"(?i)twice|duplicate|more than once", model, batch, params=["0.weight", "0.weight"])


def test_duplicate_parameter(model, batch):
    refuse(r"(?i)twice|duplicate|more than once", model, batch, params=[model[0].weight, model[0].weight])


def test_parameter_of_another_model(model, batch):
    refuse(r"(?i)param", model, batch, params=[nn.Parameter(torch.zeros(2))])


@pytest.mark.parametrize("params", [[], lambda name, value: False], ids=["empty list", "predicate"])
def test_no_parameters_selected(model, batch, params):
    refuse(r"(?i)no param|param.*(empty|none|no )|select", model, batch, params=params)


def test_everything_frozen(batch):
    model = nn.Linear(4, 3).double().requires_grad_(False)
    refuse(r"(?i)requires?[_ ]grad|frozen", model, batch)


def test_model_without_parameters(batch):
    refuse(r"(?i)param", nn.Softplus(), batch)


def test_model_that_is_no_module(batch):
    refuse(r"(?i)module|model", lambda x: x, batch)


# ---------------------------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize(
    ("option", "wrong", "right"),
    [
        ("form", "diag", ("implicit", "dense", "diagonal", "block", "kfac", "ekfac", "gram")),
        ("estimator", "mc", ("exact", "hutchinson", "monte_carlo", "empirical", "lower", "upper")),
        ("likelihood", "softmax", ("categorical", "bernoulli", "gaussian", "poisson")),
    ],
)
def test_wrong_strings_are_answered_with_the_right_ones(model, batch, option, wrong, right):
    message = refuse(repr(wrong), model, batch, **{option: wrong})
    assert all(word in message for word in right)


@pytest.mark.parametrize("form", [None, 3, (), ("dense", "diag"), nn.Linear])
def test_forms_of_a_strange_kind(model, batch, form):
    refuse(r"form", model, batch, form=form)


def test_factor_and_sharing_strings(model, batch):
    assert "householder" in refuse(r"factor", model, batch, estimator="hutchinson", factor="lu", form="diagonal")
    assert "reduce" in refuse(r"sharing", model, batch, form="kfac", sharing="mean")


@pytest.mark.parametrize("samples", [0, -1, 1.5])
def test_number_of_samples(model, batch, samples):
    refuse(r"samples", model, batch, estimator="monte_carlo", form="diagonal", samples=samples)


def test_loss_that_is_not_callable(model, batch):
    loss: Any = "cross_entropy"
    with pytest.raises(dynaxx.InputError, match=r"loss"):
        dynaxx.hessian(model, batch, loss)


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


class _Wide(nn.Module):
    """Many parameters that cost nothing: one million coordinates, 8 TB as a dense matrix."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1_000_000, dtype=torch.float64))

    def forward(self, x):
        return x + self.weight[:3]


@pytest.mark.parametrize("form", ["implicit", "diagonal"])
def test_dense_matrix_that_does_not_fit(form):
    operator = dynaxx.fisher(_Wide(), torch.randn(2, 3, dtype=torch.float64), form=form)
    with pytest.raises(dynaxx.SizeError, match=r"8(\.0)? TB"):
        operator.to_dense()


def test_dense_form_that_does_not_fit():
    refuse(r"\d+(\.\d)? TB", _Wide(), torch.randn(2, 3, dtype=torch.float64), form="dense", error=dynaxx.SizeError)


# ---------------------------------------------------------------------------------------------------------------------
# Vectors


@pytest.mark.parametrize("form", ["implicit", "dense", "diagonal", "block", "kfac", "gram"])
def test_vectors_that_do_not_fit(model, batch, form):
    operator = dynaxx.fisher(model, batch, form=form)
    with pytest.raises(dynaxx.InputError, match=r"43"):
        operator @ torch.ones(42, dtype=torch.float64)
    with pytest.raises(dynaxx.InputError, match=r"0\.weight"):
        operator @ {"0.weight": torch.ones(5, 4, dtype=torch.float64)}


@pytest.mark.parametrize("damping", [-1.0, float("nan")])
def test_damping_must_not_be_negative(model, batch, damping):
    operator = dynaxx.fisher(model, batch, form="dense")
    with pytest.raises(dynaxx.InputError, match=r"damping"):
        operator.solve(torch.ones(43, dtype=torch.float64), damping=damping)
