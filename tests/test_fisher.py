"""dynaxx.fisher against brute force: every architecture, every exact form, both deterministic estimators."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynaxx
import oracles
from architectures import CASES, NAMES, N, load

ESTIMATORS = ("exact", "empirical")
TOLERANCE = 1e-10


@cache
def rows(name):
    model, batch = load(name)
    return oracles.examples(model, batch, CASES[name].kind)


@cache
def wanted(name, estimator):
    case = CASES[name]
    build = oracles.exact_fisher if estimator == "exact" else oracles.empirical_fisher
    return build(rows(name), case.kind, case.variance)


def found(name, estimator, form, **options):
    case, (model, batch) = CASES[name], load(name)
    return dynaxx.fisher(model, batch, likelihood=case.likelihood, estimator=estimator, form=form, **options)


def directions(size, columns=2):
    return torch.randn(size, columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# Architectures x estimators x forms


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", NAMES)
class TestArchitectures:
    def test_dense(self, name, estimator):
        dense, operator = wanted(name, estimator), found(name, estimator, "dense")
        assert operator.names == tuple(oracles.parameters(load(name)[0]))
        assert operator.shape == tuple(dense.shape)
        assert operator.count == oracles.length(load(name)[1])
        assert oracles.distance(operator.to_dense(), dense) < TOLERANCE

    def test_implicit(self, name, estimator):
        dense, operator = wanted(name, estimator), found(name, estimator, "implicit")
        v = directions(len(dense))
        assert oracles.distance(operator @ v, dense @ v) < TOLERANCE
        assert oracles.distance(operator @ v[:, 0], dense @ v[:, 0]) < TOLERANCE

    def test_diagonal(self, name, estimator):
        operator = found(name, estimator, "diagonal")
        assert oracles.distance(operator.diagonal(), wanted(name, estimator).diagonal()) < TOLERANCE

    def test_block(self, name, estimator):
        operator = found(name, estimator, "block")
        where = oracles.offsets(load(name)[0])
        assert sorted(parameter for block in operator.blocks for parameter in block) == sorted(where)
        masked = oracles.keep_blocks(wanted(name, estimator), where, operator.blocks)
        assert oracles.distance(operator.to_dense(), masked) < TOLERANCE

    def test_gram(self, name, estimator):
        dense, operator = wanted(name, estimator), found(name, estimator, "gram")
        exact = torch.linalg.eigvalsh(dense).flip(0)
        floor = 1e-11 * exact[0]
        values = operator.eigenvalues().sort(descending=True).values
        assert oracles.distance(values[values > floor], exact[exact > floor]) < TOLERANCE
        v = directions(len(dense))
        assert oracles.distance(operator @ v, dense @ v) < TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# Verbs of every form agree with the dense matrix of the same form


FORMS = ("implicit", "dense", "diagonal", "block", "kfac", "ekfac", "gram")


@pytest.mark.parametrize("form", FORMS)
class TestVerbs:
    @pytest.fixture
    def operator(self, form):
        return found("mlp", "exact", form)

    def test_products_answer_in_kind(self, operator):
        dense = operator.to_dense()
        v = directions(len(dense))
        assert oracles.distance(operator @ v, dense @ v) < TOLERANCE
        assert (operator @ v[:, 0]).shape == (len(dense),)
        for vectors in (v, v[:, 0]):
            answer = operator @ operator.unravel(vectors)
            assert list(answer) == list(operator.names)
            assert oracles.distance(operator.ravel(answer), dense @ vectors) < TOLERANCE
        shapes = {name: value.shape for name, value in oracles.parameters(load("mlp")[0]).items()}
        assert {name: value.shape for name, value in operator.unravel(v[:, 0]).items()} == shapes

    def test_scalars(self, operator):
        dense = operator.to_dense()
        assert float(operator.trace()) == pytest.approx(float(dense.trace()), rel=1e-9)
        assert operator.trace().exact
        assert float(operator.frobenius()) == pytest.approx(float(dense.norm()), rel=1e-9)
        damped = dense + 0.1 * torch.eye(len(dense), dtype=dense.dtype)
        assert float(operator.logdet(damping=0.1)) == pytest.approx(float(torch.logdet(damped)), rel=1e-8)

    def test_quadratic_and_diagonal(self, operator):
        dense = operator.to_dense()
        v = directions(len(dense))
        assert float(operator.quadratic(v[:, 0])) == pytest.approx(float(v[:, 0] @ dense @ v[:, 0]), rel=1e-9)
        assert oracles.distance(operator.diagonal(), dense.diagonal()) < TOLERANCE

    def test_solve(self, operator):
        dense = operator.to_dense()
        v = directions(len(dense))
        damped = dense + 0.05 * torch.eye(len(dense), dtype=dense.dtype)
        # implicit solves iterate; the others factorise
        tolerance = 1e-6 if operator.__class__.__name__.lower().startswith("implicit") else 1e-9
        assert oracles.distance(operator.solve(v[:, 0], damping=0.05), torch.linalg.solve(damped, v[:, 0])) < tolerance
        answer = operator.solve(operator.unravel(v[:, 0]), damping=0.05)
        assert oracles.distance(operator.ravel(answer), torch.linalg.solve(damped, v[:, 0])) < tolerance

    def test_eigenvalues(self, operator):
        dense = operator.to_dense()
        exact = torch.linalg.eigvalsh(dense).flip(0)
        floor = 1e-10 * exact[0]
        values = operator.eigenvalues().sort(descending=True).values
        assert oracles.distance(values[values > floor], exact[exact > floor]) < 1e-8
        assert oracles.distance(operator.eigenvalues(k=3), exact[:3]) < 1e-8

    def test_eigenvectors(self, operator):
        dense = operator.to_dense()
        values, vectors = operator.eigh(k=3)
        assert vectors.shape == (len(dense), 3)
        assert oracles.distance(dense @ vectors, vectors * values) < 1e-7
        assert oracles.distance(vectors.T @ vectors, torch.eye(3, dtype=dense.dtype)) < 1e-8


# ---------------------------------------------------------------------------------------------------------------------
# Blocks, selection, forms


def test_blocks_are_modules():
    assert found("mlp", "exact", "block").blocks == [("0.weight", "0.bias"), ("2.weight", "2.bias")]


def test_bare_and_shared_parameters_stand_alone():
    assert {("scale",), ("shift",), ("temperature",)} <= set(found("bare_parameters", "exact", "block").blocks)
    assert ("embed.weight",) in found("tied_language_model", "exact", "block").blocks


SELECTIONS = {
    "names": (lambda model: ["2.weight", "0.bias"], ["0.bias", "2.weight"]),
    "one name": (lambda model: ["0.weight"], ["0.weight"]),
    "predicate": (lambda model: lambda name, value: value.dim() == 2, ["0.weight", "2.weight"]),
    "list of parameters": (lambda model: [model[2].bias, model[0].weight], ["0.weight", "2.bias"]),
    "parameters of a module": (lambda model: list(model[2].parameters()), ["2.weight", "2.bias"]),
}


@pytest.mark.parametrize("form", ["implicit", "dense", "diagonal", "block", "gram"])
@pytest.mark.parametrize("how", SELECTIONS)
def test_selection(how, form):
    choose, names = SELECTIONS[how]
    model, _ = load("mlp")
    operator = found("mlp", "exact", form, params=choose(model))
    assert sorted(operator.names) == sorted(names)
    where, full = oracles.offsets(model), wanted("mlp", "exact")
    index = torch.cat([torch.arange(where[name].start, where[name].stop) for name in operator.names])
    dense = full[index][:, index]
    if form == "diagonal":
        dense = dense.diagonal().diag()
    if form == "block":
        start, inner = 0, {}
        for name in operator.names:
            size = where[name].stop - where[name].start
            inner[name] = slice(start, start + size)
            start += size
        dense = oracles.keep_blocks(dense, inner, operator.blocks)
    assert oracles.distance(operator.to_dense(), dense) < TOLERANCE


def test_frozen_parameters_can_be_left_out_and_do_not_count():
    operator = found("frozen", "exact", "dense")
    assert "0.weight" not in operator.names
    assert "2.bias" not in operator.names


def test_tuple_of_forms_is_one_operator_each():
    forms = ("dense", "diagonal", "block", "implicit", "gram")
    operators = found("mlp", "exact", forms)
    assert len(operators) == len(forms)
    for form, operator in zip(forms, operators, strict=True):
        assert oracles.distance(operator.to_dense(), found("mlp", "exact", form).to_dense()) < TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of data


def data_kinds():
    _, (x, y) = load("mlp")
    return {
        "tensor": x,
        "tuple": (x, y),
        "dict": {"input": x, "labels": y},
        "list of tuples": [(x[:4], y[:4]), (x[4:], y[4:])],
        "list of tensors": [x[:1], x[1:]],
        "list of dicts": [{"input": x[:4], "labels": y[:4]}, {"input": x[4:], "labels": y[4:]}],
        "list of lists": [[x[:4], y[:4]], [x[4:], y[4:]]],
        "loader": DataLoader(TensorDataset(x, y), batch_size=4),
        "loader of tensors": DataLoader(x, batch_size=4),
    }


class _Keywords(nn.Module):
    """The perceptron, for batches that come as dicts and hold labels."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input, labels=None):
        return self.inner(input)


@pytest.mark.parametrize("form", ["implicit", "dense", "diagonal", "gram"])
@pytest.mark.parametrize("kind", data_kinds())
def test_data(kind, form):
    model = _Keywords(load("mlp")[0]).eval()
    operator = dynaxx.fisher(model, data_kinds()[kind], form=form)
    assert operator.count == 6
    dense = wanted("mlp", "exact")
    dense = dense.diagonal().diag() if form == "diagonal" else dense
    assert oracles.distance(operator.to_dense(), dense) < TOLERANCE


def test_a_generator_serves_forms_that_need_one_pass():
    model, (x, y) = load("mlp")
    operator = dynaxx.fisher(model, ((x[n : n + 2], y[n : n + 2]) for n in (0, 2, 4)), form="dense")
    assert operator.count == 6
    assert oracles.distance(operator.to_dense(), wanted("mlp", "exact")) < TOLERANCE


def test_predict_overrides_the_call():
    model, (x, y) = load("mlp")
    batch = {"features": x, "labels": y, "comment": ["nothing"] * len(x)}
    operator = dynaxx.fisher(model, batch, form="dense", predict=lambda model, batch: model(batch["features"]))
    assert oracles.distance(operator.to_dense(), wanted("mlp", "exact")) < TOLERANCE


def test_attention_mask_alone_masks_positions():
    model, batch = load("dict_batch")
    unlabelled = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    masked = {
        **unlabelled,
        "labels": torch.zeros(N, 4, dtype=torch.int64).masked_fill(batch["attention_mask"] == 0, -100),
    }
    dense = oracles.exact_fisher(oracles.examples(model, masked, "categorical"), "categorical")
    assert oracles.distance(dynaxx.fisher(model, unlabelled, form="dense").to_dense(), dense) < TOLERANCE


def test_dtype_is_kept():
    model, (x, y) = CASES["mlp"].build()
    operator = dynaxx.fisher(model.float(), (x.float(), y), form="dense")
    assert operator.to_dense().dtype == torch.float32
    assert oracles.distance(operator.to_dense().double(), wanted("mlp", "exact")) < 1e-5


# ---------------------------------------------------------------------------------------------------------------------
# A fixture in numbers


class _Logits(nn.Module):
    """Logits log p + J w of inputs x = [J | log p], (N, 3, 3)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        return x[..., 2] + x[..., :2] @ self.w


@pytest.mark.parametrize("form", ["implicit", "dense", "block", "gram"])
def test_two_examples_three_classes(form):
    p = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.06, 0.04]], dtype=torch.float64)
    jacobian = torch.tensor([[[1, 0], [0, 1], [1, -1]], [[2, 1], [0, 1], [-1, 0]]], dtype=torch.float64)
    x = torch.cat([jacobian, p.log()[..., None]], dim=2)
    operator = dynaxx.fisher(_Logits(), x, form=form)
    twice = torch.tensor([[0.7524, -0.1596], [-0.1596, 0.5284]], dtype=torch.float64)
    torch.testing.assert_close(2 * operator.to_dense(), twice, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", ["symmetric", "householder", "cholesky", "eigen"])
def test_the_factor_does_not_matter_where_nothing_is_sampled(factor):
    operator = found("mlp", "exact", "dense", factor=factor)
    assert oracles.distance(operator.to_dense(), wanted("mlp", "exact")) < TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# Envelopes


ENVELOPES = (
    ("lower", {"rank": 1, "method": "eigen"}),
    ("lower", {"rank": 1, "method": "cholesky"}),
    ("lower", {"rank": 1, "method": "nystrom"}),
    ("upper", {"method": "diagonal"}),
    ("upper", {"method": "laplacian"}),
    ("upper", {"method": "tail"}),
)


@pytest.mark.parametrize(("side", "options"), ENVELOPES)
@pytest.mark.parametrize("name", ["mlp", "tied_language_model"])
def test_envelopes_bound_the_fisher(name, side, options):
    """In the Loewner order, lower <= F <= upper, and not trivially so."""
    bound = found(name, side, "dense", **options).to_dense()
    gap = bound - wanted(name, "exact") if side == "upper" else wanted(name, "exact") - bound
    scale = float(wanted(name, "exact").norm())
    assert torch.linalg.eigvalsh(gap).min() > -1e-12 * scale
    assert float(bound.trace()) > 1e-3 * scale
    assert float(gap.trace()) > 1e-6 * scale


def test_upper_envelope_is_the_metric_without_its_rank_one_part():
    """The diagonal envelope leaves J^T diag(p) J."""
    dense = torch.zeros_like(wanted("mlp", "exact"))
    for row in rows("mlp"):
        dense += row.jacobian[0].T @ torch.diag(row.outputs[0].softmax(0)) @ row.jacobian[0] / 6
    bound = found("mlp", "upper", "dense", method="diagonal").to_dense()
    assert oracles.distance(bound, dense) < TOLERANCE


def test_lower_envelope_is_the_top_eigenvector_of_the_metric():
    dense = torch.zeros_like(wanted("mlp", "exact"))
    for row in rows("mlp"):
        values, vectors = torch.linalg.eigh(oracles.metric("categorical", row.outputs[0].detach()))
        pulled = row.jacobian[0].T @ vectors[:, -1]
        dense += values[-1] * torch.outer(pulled, pulled) / 6
    bound = found("mlp", "lower", "dense", rank=1, method="eigen").to_dense()
    assert oracles.distance(bound, dense) < 1e-9
