"""Fisher, tangent-kernel and data spectra against matrices written out."""

import copy
from importlib import import_module

import pytest
import torch
from torch import nn

import oracles
from architectures import CASES, NAMES, load
from dynaxx.errors import InputError, SizeError
from dynaxx.spectra import data_spectrum, fisher_spectrum, ntk_spectrum
from test_untouched import Watch, prepared


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def agree(found, matrix):
    """Eigenvalues are those of the matrix, and what is not listed is zero."""
    wanted = torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0)
    size = min(len(wanted), len(found.eigenvalues))
    assert torch.allclose(found.eigenvalues[:size], wanted[:size], atol=1e-10 * float(wanted[0]), rtol=0)
    assert float(wanted[size:].sum()) < 1e-10 * float(wanted[0])


@pytest.mark.parametrize("name", NAMES)
def test_fisher_and_tangent_kernel(name):
    case, (model, batch) = CASES[name], load(name)
    rows = oracles.examples(model, batch, case.kind)
    agree(
        fisher_spectrum(model, batch, likelihood=case.likelihood),
        oracles.exact_fisher(rows, case.kind, case.variance),
    )
    J = torch.cat([row.jacobian.flatten(0, -2) for row in rows])
    found = ntk_spectrum(model, batch, likelihood=case.likelihood)
    agree(found, J @ J.T / len(rows))
    assert found.count == len(rows)


def test_the_kernel_of_a_unit_gaussian_is_its_fisher_matrix():
    model, batch = load("gaussian")
    kernel, fisher = (f(model, batch, likelihood="gaussian") for f in (ntk_spectrum, fisher_spectrum))
    assert torch.allclose(kernel.eigenvalues, fisher.eigenvalues, rtol=1e-10)


def test_confidence_empties_the_fisher_matrix_and_not_the_kernel():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    confident = copy.deepcopy(model)
    with torch.no_grad():
        confident.weight.mul_(50)
    x = draw(20, 4)
    assert fisher_spectrum(confident, x).trace() < 0.2 * fisher_spectrum(model, x).trace()
    assert ntk_spectrum(confident, x).trace() == pytest.approx(ntk_spectrum(model, x).trace())


def test_beyond_the_limit_both_are_sampled_without_bias(monkeypatch):
    model, batch = load("cnn")
    exact = {f: f(model, batch).trace() for f in (fisher_spectrum, ntk_spectrum)}
    monkeypatch.setattr(import_module("dynaxx.eigenspace"), "SIDE", 9)  # one combination for each of 5 examples
    for f, wanted in exact.items():
        runs = [f(model, batch, seed=seed) for seed in range(60)]
        assert len(runs[0].eigenvalues) == 5
        assert not runs[0].exact
        found = torch.tensor([float(run.trace()) for run in runs], dtype=torch.float64)
        assert abs(float(found.mean()) - wanted) < 4 * float(found.std()) / 60**0.5
        assert float(found.std()) > 0.01 * wanted
    monkeypatch.setattr(import_module("dynaxx.eigenspace"), "SIDE", 4)
    with pytest.raises(SizeError, match="fewer examples"):
        ntk_spectrum(model, batch)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("count", "size"), [(30, 7), (7, 30), (8, 8)])
@pytest.mark.parametrize("parts", [1, 4])
def test_data(count, size, centred, parts):
    x = draw(count, size) * torch.linspace(0.1, 3, size) + 2
    batches = list(x.chunk(parts)) if parts > 1 else x
    found = data_spectrum(batches, centred=centred)
    middle = x - x.mean(0) if centred else x
    agree(found, middle.T @ middle / count)
    assert (found.dimension, found.count) == (size, count)
    assert found.rank == min(size, count - 1 if centred else count)
    assert found.trace() == pytest.approx(float(middle.square().sum() / count))


def test_a_large_mean_costs_no_digits():
    x = draw(50, 5) + 1e7
    middle = x - x.mean(0)
    wanted = torch.linalg.eigvalsh(middle.T @ middle / 50).flip(0)
    assert torch.allclose(data_spectrum(list(x.split(9)), centred=True).eigenvalues, wanted, rtol=1e-6)


def test_data_of_many_kinds():
    images = torch.randint(0, 256, (6, 3, 2, 2), dtype=torch.uint8)
    flat = images.double().flatten(1)
    agree(data_spectrum((images, torch.arange(6))), flat.T @ flat / 6)
    a, b = draw(5, 2), draw(5, 3, seed=1)
    agree(data_spectrum({"a": a, "b": b, "labels": torch.arange(5)}), torch.cat([a, b], 1).T @ torch.cat([a, b], 1) / 5)
    assert data_spectrum(iter([a, a])).count == 10  # one pass will do
    assert data_spectrum(torch.ones(4)).eigenvalues.tolist() == [1.0]


def test_a_look_leaves_the_model_untouched():
    model, batch = prepared("residual_batch_norm")
    with Watch(model):
        fisher_spectrum(model, batch)
        ntk_spectrum(model, batch)


def test_bad_input():
    for call, words in {
        (lambda: data_spectrum(torch.arange(6).view(3, 2))): "embeddings",
        (lambda: data_spectrum([torch.ones(2, 3), torch.ones(2, 4)])): "4 inputs per example",
        (lambda: data_spectrum(torch.tensor([[1.0, float("nan")]]))): "nan or inf",
        (lambda: data_spectrum([])): "data is empty",
        (lambda: ntk_spectrum(nn.Linear(2, 2), iter([torch.ones(2, 2)]))): "read once",
        (lambda: fisher_spectrum(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), torch.ones(2, 2))): "model.eval",
    }.items():
        with pytest.raises(InputError, match=words):
            call()
