"""The chart pulls the Fisher metric back: F = (4/n) J^T J to rounding, against brute force and against the engine."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import dynaxx
import oracles
from architectures import CASES
from dynaxx.likelihoods import Gaussian
from dynaxx.manifold import coordinates, embed

FLAT = {"categorical": 4.0, "bernoulli": 4.0, "poisson": 4.0, "gaussian": 1.0}


def jacobian(model, batch, likelihood, embedding):
    """Of all embedding coordinates of a batch, (rows x C, p), in the order of dynaxx's parameters."""
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    values = {name: dict(model.named_parameters())[name].detach() for name in names}
    inputs, labels = batch if isinstance(batch, tuple) else (batch, None)

    def point(parameters):
        z = functional_call(model, parameters, (inputs,))
        z = getattr(z, "logits", z)
        if labels is not None and labels.shape == z.shape[:-1] and not labels.is_floating_point():
            z = z[labels != oracles.IGNORE]
        return coordinates(z.reshape(-1, z.shape[-1]), likelihood=likelihood, embedding=embedding)

    made = jacrev(point)(values)
    rows = point(values).numel()
    return torch.cat([made[name].reshape(rows, -1) for name in names], 1)


def small(kind, classes=3):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)).double().eval()
    return model, torch.randn(7, 4, dtype=torch.float64)


@pytest.mark.parametrize("embedding", ["sqrt", "two_sqrt"])
@pytest.mark.parametrize("kind", FLAT)
def test_the_metric_is_the_fisher_matrix(kind, embedding):
    model, x = small(kind)
    factor = FLAT[kind] if embedding == "sqrt" else 1.0
    jz = jacobian(model, x, kind, embedding)
    found = factor / len(x) * jz.T @ jz
    assert oracles.distance(found, oracles.exact_fisher(oracles.examples(model, x, kind), kind)) < 1e-12
    assert oracles.distance(found, dynaxx.fisher(model, x, likelihood=kind, form="dense").to_dense()) < 1e-12


def test_regression_is_scaled_by_its_standard_deviation():
    model, x = small("gaussian", 2)
    variance = torch.tensor([0.25, 4.0], dtype=torch.float64)
    jz = jacobian(model, x, Gaussian(variance=variance), "sqrt")
    wanted = dynaxx.fisher(model, x, likelihood=Gaussian(variance=variance), form="dense").to_dense()
    assert oracles.distance(jz.T @ jz / len(x), wanted) < 1e-12
    found = embed(model, x, likelihood=Gaussian(variance=variance))
    torch.testing.assert_close(found, model(x).detach() / torch.tensor([0.5, 2.0]), rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", ["transformer_encoder", "tied_language_model", "gru", "time_first"])
def test_sequences_and_masked_positions(name):
    model, batch = CASES[name].build()
    if not isinstance(batch, tuple):
        pytest.skip("this case is called with a dict")
    jz = jacobian(model, batch, CASES[name].likelihood, "sqrt")
    wanted = dynaxx.fisher(model, batch, likelihood=CASES[name].likelihood, form="dense")
    assert oracles.distance(4 / wanted.count * jz.T @ jz, wanted.to_dense()) < 1e-12
    # embed finds the same rows as the Jacobian was taken of
    assert embed(model, batch, likelihood=CASES[name].likelihood).numel() == len(jz)


class _Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 5)

    def forward(self, ids):
        return self.head(torch.tanh(self.table(ids)))


def test_positions_without_a_label_are_left_out():
    torch.manual_seed(0)
    model, ids = _Tokens().double().eval(), torch.randint(6, (3, 4))
    labels = torch.randint(5, (3, 4))
    labels[0, 1], labels[2] = -100, -100
    every, some = embed(model, ids), embed(model, (ids, labels))
    assert every.shape == (12, 5)
    torch.testing.assert_close(some, every[(labels != -100).flatten()], rtol=0, atol=0)
    # positions of one batch may be fewer than of another
    parts = embed(model, [(ids[:2, :3], labels[:2, :3]), (ids[2:], torch.zeros(1, 4, dtype=torch.long))])
    assert parts.shape == (5 + 4, 5)
    jz = jacobian(model, (ids, labels), "categorical", "sqrt")
    wanted = dynaxx.fisher(model, (ids, labels), form="dense")
    assert wanted.count == 3
    assert oracles.distance(4 / 3 * jz.T @ jz, wanted.to_dense()) < 1e-12


def test_roots_of_the_label_alone_are_another_matrix():
    """Cowlagi & Chaudhari's formula read literally: rank n instead of n (C - 1), and a trace that is too small."""
    model, x = small("categorical")
    jz = jacobian(model, x, "categorical", "sqrt").reshape(len(x), 3, -1)
    labels = model(x).argmax(1)
    alone = jz[torch.arange(len(x)), labels]
    exact = dynaxx.fisher(model, x, form="gram").spectrum()
    assert torch.linalg.matrix_rank(alone) == len(x)
    assert exact.rank == 2 * len(x)
    assert float(alone.square().sum()) * 4 / len(x) < 0.5 * float(exact.trace())


@pytest.mark.parametrize("kind", FLAT)
def test_rows_are_what_the_likelihood_says(kind):
    model, x = small(kind)
    z = model(x).detach()
    wanted = {
        "categorical": z.softmax(-1).sqrt(),
        "bernoulli": torch.stack([z.sigmoid(), 1 - z.sigmoid()], -1).sqrt().reshape(-1, 2),
        "poisson": z.exp().sqrt(),
        "gaussian": z,
    }[kind]
    torch.testing.assert_close(embed(model, x, likelihood=kind), wanted, rtol=1e-12, atol=1e-14)
    batches = [x[:3], x[3:]]
    assert torch.equal(embed(model, batches, likelihood=kind), embed(model, x, likelihood=kind))


def test_steps_of_the_point_have_the_length_of_the_metric():
    model, x = small("categorical")
    F = dynaxx.fisher(model, x, form="dense")
    step = 1e-4 * torch.randn(F.shape[0], dtype=torch.float64)
    before = embed(model, x)
    with torch.no_grad():
        for name, part in F.unravel(step).items():
            model.get_parameter(name).add_(part)
    length = 4 / len(x) * float((embed(model, x) - before).square().sum())
    assert length == pytest.approx(float(F.quadratic(step)), rel=1e-3)


def test_roots_outlive_the_underflow_of_probabilities():
    z = torch.tensor([[0.0, -900.0]], dtype=torch.float64)
    assert float(coordinates(z)[0, 1]) == pytest.approx(math.exp(-450.0), rel=1e-12)


def test_half_precision_and_frozen_models():
    model, x = small("categorical")
    exact = embed(model, x)
    half = embed(model.bfloat16(), x.bfloat16())
    assert half.dtype == torch.float64
    assert float((half.square().sum(1) - 1).abs().max()) < 1e-14
    assert float((half - exact).abs().max()) < 0.02
    model.requires_grad_(False)
    assert torch.equal(embed(model, x.bfloat16()), half)


def test_what_cannot_be_embedded():
    model, x = small("categorical", 4)
    with pytest.raises(dynaxx.InputError, match="hyperbolic"):
        embed(model, x, likelihood="heteroscedastic_gaussian")
    with pytest.raises(dynaxx.InputError, match="'sqrt', 'two_sqrt'"):
        embed(model, x, embedding="root")
    with pytest.raises(dynaxx.InputError, match=r"pass weights= to distances"):
        embed(model, (x, torch.zeros(7, dtype=torch.long), torch.full((7,), 0.5)))
    dropout = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double()
    with pytest.raises(dynaxx.InputError, match=r"model\.eval\(\)"):
        embed(dropout.train(), x)
    with pytest.raises(dynaxx.InputError, match="empty"):
        embed(model, [])


def test_the_model_is_left_as_it_was():
    from test_untouched import Watch, prepared

    for name in ("mlp", "residual_batch_norm"):
        model, batch = prepared(name)
        with Watch(model):
            embed(model, batch, likelihood=CASES[name].likelihood)
